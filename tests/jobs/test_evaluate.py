"""An evaluation: what it writes down, that nothing is sampled twice, and that devices and kills change no number."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from evaluation.references import Reference
from jobs import evaluate, judges, records, search
from jobs.judges import image_set
from jobs.sample import Sampler
from jobs.workdir import read_config
from models.errors import UserError

ROOT = Path(__file__).parent.parent.parent
SPEED = "images_per_second_sampling"


@pytest.fixture
def copy(workdir, tmp_path):
    """A trained workdir whose samples were never evaluated, but its tokenizer was."""
    folder = shutil.copytree(workdir, tmp_path / "w")
    for path in (folder / "eval").glob("fixed_noise-*"):
        path.unlink()
    return folder


def read(path):
    return json.loads(path.read_text())


def numbers(record):
    return {name: value for name, value in record["metrics"].items() if name != SPEED}


def command(folder, *options, devices=1):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return [sys.executable, str(ROOT / "main.py"), f"--workdir={folder}", "--job=evaluate", *options], environment


def test_a_record_says_what_moves_its_numbers(workdir):
    record = read(workdir / "eval" / "fixed_noise-6.json")
    settings = record["settings"]
    assert settings["step"] == 6
    assert settings["reference"]["count"] == 1442
    assert len(settings["reference"]["sha256"]) == 64
    assert settings["sampler"]["guidance_scale"] == 2.5
    assert "1 is off" in settings["guidance"]
    assert settings["evaluation"]["samples"] == 20
    assert settings["metrics"]["kid"] == {"subsets": 100, "size": 1000}
    assert settings["weights"].keys() == {"generator", "tokenizer", "classifier"}
    assert settings["data"]["shift"] == 1
    assert settings["images"]["heldout"]["count"] == 355
    assert settings["images"]["training"]["sha256"] == settings["reference"]["sha256"]
    assert settings["ema_decay"]["generator"] == 0.99
    assert record["versions"].keys() >= {"jax", "tessera", "python"}
    assert record["metrics"]["cfd"] > 0
    assert "fid" not in record["metrics"]  # no weights here
    for name in ("fid", "sfid", "inception_score", "recall", "tokenizer_rfid"):
        assert "TESSERA_WEIGHTS" in record["missing"][name]
    assert any(warning.startswith("cfd: 20 samples are too few") for warning in record["warnings"])
    tokenizer = read(workdir / "eval" / "tokenizer-6.json")
    assert tokenizer["metrics"].items() <= record["metrics"].items()


def test_what_was_sampled_before_an_interruption_is_not_sampled_again(copy, monkeypatch):
    undisturbed = read(copy / "summary.json")
    config, calls, real = read_config(copy), [], Sampler.batch

    def batch(self, labels, start, size):
        if start == 10 and not calls.count("killed"):
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append(start)
        return real(self, labels, start, size)

    monkeypatch.setattr(Sampler, "batch", batch)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config, copy)
    assert list((copy / "eval").glob("*.unfinished-*"))
    metrics = evaluate.run(config, copy)
    assert calls == [0, "killed", 10]
    assert not list((copy / "eval").glob("*.unfinished-*"))
    for name in ("cfd", "class_accuracy", "near_copy_share", "distinct_samples"):
        assert metrics[name] == undisturbed[name], name


@pytest.mark.slow
def test_kill_and_eight_devices_change_no_number(copy, shared, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)
    np.savez(tmp_path / "reference.npz", images=images)
    weights = next((shared / "data" / "weights").glob("*.npz"))
    options = [f"--reference={tmp_path / 'reference.npz'}", f"--config.evaluation.inception={weights}",
               "--config.evaluation.samples=32", "--config.evaluation.batch_size=8",
               "--config.evaluation.heldout=8"]  # fmt: skip
    other = shutil.copytree(copy, tmp_path / "eight")
    killed = shutil.copytree(copy, tmp_path / "killed")
    line, environment = command(copy, *options)
    subprocess.run(line, env=environment, check=True, timeout=600)
    (path,) = (copy / "eval").glob("fixed_noise-*.json")
    undisturbed = read(path)
    assert undisturbed["metrics"].keys() >= {"fid_768", "kid_768", "precision_768", "sfid", "cfd", "tokenizer_rfid_768"}
    assert any(warning.startswith("fid_768: 32 samples are too few") for warning in undisturbed["warnings"])

    line, environment = command(killed, *options)
    process = subprocess.Popen(line, env=environment)
    while not list((killed / "eval").glob("fixed_noise-*/00001.npz")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in (killed / "eval").glob("fixed_noise-*/*.npz")}
    assert 2 <= len(before) < 4
    again = subprocess.Popen(line, env=environment)
    while not (killed / "eval" / "fixed_noise-6.json").exists() and again.poll() is None:
        left = {path: path.stat().st_mtime_ns for path in before if path.exists()}
        assert left.items() <= before.items()
        time.sleep(0.2)
    assert again.wait() == 0
    assert numbers(read(killed / "eval" / "fixed_noise-6.json")) == numbers(undisturbed)

    line, environment = command(other, *options, devices=8)
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")  # the reference is measured on eight devices as well
    subprocess.run(line, env=environment, check=True, timeout=600)
    eight = numbers(read(other / "eval" / "fixed_noise-6.json"))
    for name, value in numbers(undisturbed).items():
        assert eight[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name


@pytest.mark.slow
def test_two_processes_share_the_work_and_agree(copy, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line, environment = command(copy)
    environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "TESSERA_WEIGHTS": "",
                    "XDG_CACHE_HOME": str(tmp_path / "cache")}  # fmt: skip
    both = [subprocess.Popen(line, env={**environment, "JAX_PROCESS_ID": str(n)}) for n in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    found, alone = numbers(read(copy / "eval" / "fixed_noise-6.json")), read(copy / "summary.json")
    assert found == {name: alone[name] for name in found}


def test_other_settings_make_another_record_and_the_same_make_none(copy, capsys):
    config = read_config(copy)
    first = evaluate.run(config, copy)
    config.sampler.guidance_scale = 1.0
    second = evaluate.run(config, copy)
    for name in (
        "fixed_noise-6.json",
        "fixed_noise-6-2.json",
        "nearest-fixed_noise-6.png",
        "nearest-fixed_noise-6-2.png",
    ):
        assert (copy / "eval" / name).exists(), name
    assert first["cfd"] != second["cfd"]
    capsys.readouterr()
    assert evaluate.run(config, copy) == second
    assert "evaluated already: " in capsys.readouterr().out
    config.evaluation.name = "unguided"
    evaluate.run(config, copy)
    assert (copy / "eval" / "unguided-6.json").exists()


def test_an_older_checkpoint_can_be_judged(copy):
    config = read_config(copy)
    config.evaluation.step = 3
    evaluate.run(config, copy)
    assert read(copy / "eval" / "fixed_noise-3.json")["settings"]["step"] == 3
    config.evaluation.step = 4
    with pytest.raises(UserError, match="no sound checkpoint of step 4"):
        evaluate.run(config, copy)


def test_follow_judges_each_checkpoint_as_it_appears(copy, monkeypatch):
    config = read_config(copy)
    config.evaluation.follow = True
    checkpoints, waiting = copy / "generator" / "checkpoints", copy / "later"
    (checkpoints / "6").rename(waiting)

    def sleep(seconds):
        assert [path.name for path in (copy / "eval").glob("fixed_noise*.json")] == ["fixed_noise-3.json"]
        waiting.rename(checkpoints / "6")

    monkeypatch.setattr("jobs.evaluate.time.sleep", sleep)
    metrics = evaluate.run(config, copy)
    assert metrics == read(copy / "eval" / "fixed_noise-6.json")["metrics"]


@pytest.mark.parametrize("kind", ["test", "folder", "npz", "statistics"])
def test_every_kind_of_reference(copy, tmp_path, kind):
    from PIL import Image

    from evaluation.image_sets import read_split

    config = read_config(copy)
    heldout = read_split(config.data, "test", 1000)["image"]
    if kind == "folder":
        (tmp_path / "f").mkdir()
        for n, image in enumerate(heldout):
            Image.fromarray(image[..., 0]).save(tmp_path / "f" / f"{n:04d}.png")
    np.savez(tmp_path / "i.npz", arr_0=heldout)
    np.savez(tmp_path / "s.npz", mu_classifier=np.zeros(128), sigma_classifier=np.eye(128))
    config.evaluation.reference = {
        "test": "test", "folder": f"{tmp_path}/f", "npz": f"{tmp_path}/i.npz", "statistics": f"{tmp_path}/s.npz",
    }[kind]  # fmt: skip
    metrics = evaluate.run(config, copy)
    record = read(copy / "eval" / "fixed_noise-6.json")
    if kind == "statistics":
        assert record["settings"]["reference"]["count"] is None
        assert metrics["cfd"] > 0
    else:  # the same pixels, wherever they lie, are the same reference
        assert record["settings"]["reference"]["count"] == len(heldout)
        assert record["settings"]["reference"]["sha256"] == record["settings"]["images"]["heldout"]["sha256"]
        assert metrics["cfd"] > 0


def test_class_counts(config):
    config.data.classes = 10
    config.evaluation.samples = 25
    assert evaluate.class_labels(config).tolist() == [n % 10 for n in range(25)]
    config.evaluation.update(class_counts="dataset", samples=1442)
    counts = np.bincount(evaluate.class_labels(config))
    from evaluation.image_sets import read_labels

    assert counts.tolist() == np.bincount(read_labels(config.data, "train")).tolist()
    config.evaluation.samples = 101
    assert len(evaluate.class_labels(config)) == 101
    assert len(np.unique(evaluate.class_labels(config)[:40])) > 5
    config.evaluation.class_counts = "ballanced"
    with pytest.raises(UserError, match="balanced"):
        evaluate.class_labels(config)


def test_search_ranks_settings_and_judges_the_best_in_full(copy):
    config = read_config(copy)
    config.evaluation.search.update(guidance_scale=(1.0, 3.0), temperature=(1.0,), top_k=(0, 4), samples=10)
    search.run(config, copy)
    found = read(copy / "eval" / "search-6.json")
    assert found["metric"] == "cfd"
    tried = [(row["guidance_scale"], row["top_k"]) for row in found["rows"]]
    assert tried == [(1.0, 0), (1.0, 4), (3.0, 0), (3.0, 4)]
    assert len({row["cfd"] for row in found["rows"]}) == 4
    assert found["best"] == min(found["rows"], key=lambda row: row["cfd"])
    full = read(copy / "eval" / "fixed_noise-6.json")
    assert full["settings"]["evaluation"]["samples"] == 20
    assert full["settings"]["sampler"]["top_k"] == found["best"]["top_k"]
    assert found["final"] == full["metrics"]
    assert (copy / "eval" / "search-6.png").stat().st_size > 1000
    assert found["settings"]["search"]["samples"] == 10
    before = {path: path.stat().st_mtime_ns for path in (copy / "eval" / "search").glob("*.json")}
    assert len(before) == 4
    config.evaluation.search.guidance_scale = (1.0,)
    search.run(config, copy)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(read(copy / "eval" / "search-6-2.json")["rows"]) == 2
    assert read(copy / "eval" / "search-6.json") == found
    config.evaluation.search.top_k = ()
    with pytest.raises(UserError, match=r"search\.top_k is empty"):
        search.run(config, copy)


def test_settings_bind_the_work_folder(tmp_path):
    path = tmp_path / "a.json"
    assert records.work_folder(path, {"a": 1}) == records.work_folder(path, {"a": 1})
    assert records.work_folder(path, {"a": 1}) != records.work_folder(path, {"a": 2})


def test_what_moves_the_numbers_is_in_the_settings(config):
    """Another value of each makes another record."""
    config.data.classes = 10

    def settings():
        reference = Reference(config.evaluation.reference, image_set("r", np.zeros((1, 2, 2, 1), np.uint8)))
        return records.settings(config, step=6, reference=reference, weights={}, images={})

    for field, value in {
        "sampler.temperature": 0.9, "sampler.guidance_scale": 1.5, "sampler.top_k": 3, "sampler.top_p": 0.5, "seed": 1,
        "evaluation.samples": 21, "evaluation.class_counts": "dataset", "evaluation.reference": "test",
        "evaluation.heldout": 7, "evaluation.training_images": 9, "evaluation.classifier_epochs": 2, "data.shift": 0,
        "data.flip": True, "data.resolution": 8, "training.generator.ema_decay": 0.5,
    }.items():  # fmt: skip
        before = settings()
        config.update_from_flattened_dict({field: value})
        assert settings() != before, field
    before = settings()
    config.evaluation.update(name="other", step=3, follow=True)
    config.data.path = "elsewhere"
    assert settings() == before


def test_another_tokenizer_or_lpips_is_judged_anew(copy, monkeypatch):
    config = read_config(copy)
    first = judges.judge_tokenizer(config, copy, judges.call_judges(config, copy))
    assert first.metrics == read(copy / "eval" / "tokenizer-6.json")["metrics"]
    monkeypatch.setattr("jobs.judges.checksum", lambda params: "another")
    judges.judge_tokenizer(config, copy, judges.call_judges(config, copy))
    assert (copy / "eval" / "tokenizer-6-2.json").exists()
    assert (copy / "eval" / "reconstructions-tokenizer-6-2.png").exists()


def test_one_evaluation_of_a_workdir_at_a_time(tmp_path, capsys):
    order = []

    def other():
        with records.alone(tmp_path):
            order.append("second")

    thread = threading.Thread(target=other)
    with records.alone(tmp_path):
        thread.start()
        while "waiting for another evaluation" not in capsys.readouterr().out:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("field", ["samples", "batch_size", "heldout"])
def test_nothing_to_judge_is_a_mistake(copy, field):
    config = read_config(copy)
    config.evaluation[field] = 0
    with pytest.raises(UserError, match=f"evaluation.{field} is 0"):
        evaluate.run(config, copy)


def test_weights_that_are_named_and_not_there_are_a_mistake(copy, monkeypatch):
    monkeypatch.setenv("TESSERA_WEIGHTS", str(copy / "none.npz"))
    with pytest.raises(UserError, match="there is no file"):
        evaluate.run(read_config(copy), copy)
