"""The report of a workdir: of a finished run, of one that has hardly begun, and of one with damaged files."""

import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import cifar10, digits
from jobs import report
from jobs.workdir import read_config


@pytest.fixture
def copy(workdir, tmp_path):
    """A workdir to write into."""
    return shutil.copytree(workdir, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "tokens"))


def test_finished_run_is_told_whole(copy, capsys):
    report.run(read_config(copy), copy)
    assert capsys.readouterr().out.strip() == str(copy / "report.html")
    text = (copy / "report.html").read_text()
    for title in ("Samples", "Reconstructions", "Nearest training images", "Metrics", "Training", "Settings"):
        assert f"<h2>{title}</h2>" in text
    assert text.count("sample of class 3") == 2  # of 20 samples of ten classes
    assert not [path.name for path in copy.iterdir() if path.name.startswith(".")]


def test_stages_say_how_far_they_are(copy):
    config = read_config(copy)
    config.training.generator.steps = 12
    run = report.collect(config, copy)
    _, tokenizer, generator = run.stages
    assert tokenizer[0] == "tokenizer"
    assert tokenizer[3] == "6 of 6"
    assert generator[3] == "6 of 12"
    total = (copy / "generator" / "parameters.txt").read_text().rpartition("Total: ")[2].partition(" --")[0]
    assert generator[2] == total


@pytest.mark.parametrize("kept", [(), ("tokenizer",), ("tokenizer", "generator", "samples")])
def test_half_trained_run_has_a_report(copy, kept):
    for path in copy.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
    report.run(read_config(copy), copy)
    text = (copy / "report.html").read_text()
    assert "<h2>Metrics</h2>" not in text
    assert ("<h2>Samples</h2>" in text) == ("samples" in kept)
    assert ("<h3>Tokenizer</h3>" in text) == ("tokenizer" in kept)
    assert ("<h3>Generator</h3>" in text) == ("generator" in kept)


def write_records(folder, records):
    """Records in place of whatever lies there."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))


def test_searches_are_no_evaluations_and_tokenizers_stand_alone(copy):
    rows = [{"guidance_scale": scale, "fid_768": 10 - scale} for scale in (1.0, 2.0)]
    search = {
        "settings": {"step": 6, "search": {"samples": 50}},
        "rows": rows,
        "metric": "fid_768",
        "final": {"fid_768": 8.5},
    }
    sampled = {
        "settings": {"step": 6, "sampler": {"name": "sequential"}},
        "metrics": {"fid": 1.0, "tokenizer_psnr": 20.0},
    }
    write_records(copy / "eval", {
        "search-1500": search,
        "search-1500-2": search,
        "search-600": {"rows": rows},
        "tokenizer-3": {"settings": {"step": 3}, "metrics": {"tokenizer_psnr": 20.0}},
        "sequential-6": sampled,
        "sequential-600": sampled | {"settings": {"step": 600}, "metrics": {"fid": float("nan"), "kid": None}},
        "sequential-60": sampled | {"settings": {"step": 60}, "missing": None, "warnings": None},
    })  # fmt: skip
    run = report.collect(read_config(copy), copy)
    assert [one.name for one in run.evaluations] == ["sequential-6", "sequential-60", "sequential-600"]  # by step
    assert [one.name for one in run.tokenizers] == ["tokenizer-3"]
    assert list(run.searches) == ["Step 600", "Step 1,500", "Step 1,500, grid 2"]
    assert run.evaluations[-1].metrics["kid"] is None
    assert run.evaluations[0].settings["sampler.name"] == "sequential"
    assert not run.notes
    report.run(read_config(copy), copy)
    text = (copy / "report.html").read_text()
    assert ">NaN<" in text
    assert "50 samples a setting." in text
    assert "The best setting, judged in full (step 6): FID-768 8.500." in text


def test_versions_are_of_the_newest_evaluation(copy):
    record = {"metrics": {}, "versions": {"jax": "old"}}
    newest = record | {"settings": {"step": 1000}, "versions": {"jax": "new"}}
    write_records(copy / "eval", {"sequential-1000": newest, "sequential-200": record | {"settings": {"step": 200}}})
    assert report.collect(read_config(copy), copy).versions == {"jax": "new"}


def test_pictures_are_those_of_the_newest_evaluations(copy):
    record = {"settings": {"step": 6}, "metrics": {}}
    write_records(copy / "eval", dict.fromkeys(("tokenizer-6", "sequential-6"), record))
    run = report.collect(read_config(copy), copy)
    assert run.neighbours is run.reconstructions is None
    for name in ("nearest-sequential-6", "nearest-sequential-3", "reconstructions-tokenizer-6"):
        Image.effect_noise((64, 64), 50).save(copy / "eval" / f"{name}.png")
    whole = (copy / "eval" / "reconstructions-tokenizer-6.png").read_bytes()
    run = report.collect(read_config(copy), copy)
    assert run.neighbours.name == "nearest-sequential-6.png"
    assert run.reconstructions.name == "reconstructions-tokenizer-6.png"
    (copy / "eval" / "reconstructions-tokenizer-6.png").write_bytes(whole[: len(whole) // 2])
    run = report.collect(read_config(copy), copy)
    assert run.reconstructions is None
    assert run.notes == ["eval/reconstructions-tokenizer-6.png cannot be read and is left out."]


def test_speeds_tell_the_jobs_apart_and_show_no_speed_of_a_single_batch(copy):
    sampler = {"step": 6, "sampler": {"name": "sequential"}}
    settings = sampler | {"evaluation": {"samples": 5000, "batch_size": 250}}
    metrics = {"images_per_second_sampling": 63.72, "model_calls_per_image": 64.0}
    write_records(copy / "eval", {"a": {"settings": settings, "metrics": metrics}})
    settings = sampler | {"sample": {"count": 20, "batch_size": 20}}
    write_records(copy / "samples", {"b": {"settings": settings, "images_per_second": None, "calls_per_image": 16.0}})
    assert report.collect(read_config(copy), copy).speeds[1:] == [
        ["sequential", "sample", "6", "20", "20", "–", "16"],
        ["sequential", "evaluate", "6", "5,000", "250", "63.7", "64"],
    ]


def test_newest_samples_are_shown_and_damaged_files_are_named(copy):
    (copy / "eval" / "other-6.json").write_text('{"settings": ')
    (copy / "eval" / "list-6.json").write_text("[]")
    (copy / "samples" / "damaged-9.npz").write_bytes(b"PK\x03\x04 not whole")
    np.savez(copy / "samples" / "foreign-9.npz", arr_0=np.zeros(3), arr_1=np.zeros(3))
    np.savez_compressed(copy / "samples" / "packed-9.npz", arr_0=np.zeros((1, 2, 2, 1), np.uint8), arr_1=np.zeros(1))
    run = report.collect(read_config(copy), copy)
    assert len(run.evaluations) == 1
    assert run.samples.source == "samples/fixed_noise-6.npz"
    assert run.samples.settings["sampler.guidance_scale"] == read_config(copy).sampler.guidance_scale
    assert sorted(note.split()[0] for note in run.notes) == [
        "eval/list-6.json", "eval/other-6.json", "samples/damaged-9.npz", "samples/foreign-9.npz", "samples/packed-9.npz",
    ]  # fmt: skip


def test_samples_lie_in_their_file_until_they_are_looked_at(copy):
    path = copy / "samples" / "fixed_noise-6.npz"
    images = report.collect(read_config(copy), copy).samples.images
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, np.load(path)["arr_0"])
    np.testing.assert_array_equal(report.stored_array(path, "arr_1"), np.load(path)["arr_1"])


@pytest.mark.parametrize(
    ("record", "left_out"),
    [
        ({"settings": {"step": 6}, "metrics": None}, True),
        ({"settings": {"step": 6}, "metrics": [1.0]}, True),
        ({"metrics": {"fid": 1.0}}, True),
        ({"fid": 1.0, "features": "2048", "n_a": 10, "missing": {}, "warnings": []}, True),  # of evaluation.fid
        (
            {"settings": {"step": "six"}, "metrics": {"fid": "low", "kid": True}, "missing": [], "warnings": "none"},
            False,
        ),
    ],
)
def test_foreign_records_are_left_out_and_foreign_values_are_none(copy, record, left_out):
    write_records(copy / "eval", {"foreign-6": record})
    report.run(read_config(copy), copy)
    run = report.collect(read_config(copy), copy)
    assert [note.split()[0] for note in run.notes] == ["eval/foreign-6.json"] * left_out
    assert [one.metrics for one in run.evaluations] == [{"fid": None, "kid": None}] * (not left_out)


def test_damaged_lines_of_metrics_are_counted(copy):
    path = copy / "generator" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], '{"step": 2, "lo\n', '["step"]\n', *lines[1:], '{"step": 7, "l']))
    (copy / "seconds.json").write_text("null")
    run = report.collect(read_config(copy), copy)
    assert [json.dumps(row) + "\n" for row in run.metrics["generator"]] == lines
    assert sorted(run.notes) == [
        "generator/metrics.jsonl: 2 lines cannot be read; the curves are drawn without.",
        "seconds.json cannot be read and is left out.",
    ]


def test_hostile_workdir_name_is_escaped(copy):
    hostile = copy.rename(copy.with_name("<img src=x onerror=alert(1)>"))
    report.run(read_config(hostile), hostile)
    text = (hostile / "report.html").read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_command_gives_the_config_again(tmp_path):
    config = cifar10.get_config("size=S")
    config.experiment = "configs/cifar10.py:size=S"
    quoted = report.command(config, tmp_path, "my configs/a.py", "")
    assert shlex.split(quoted)[2] == "--config=my configs/a.py"
    config.data.update(classes=10, path="data")  # as the dataset and the machine decide
    config.sample.classes = (3, 7)
    config.training.generator.steps = 9
    experiment, about, changed = report.read_experiment(config)
    assert experiment == "configs/cifar10.py:size=S"
    assert about.startswith("CIFAR-10")
    assert changed == {
        "sample.classes": (-1,),
        "training.generator.steps": cifar10.get_config("size=S").training.generator.steps,
    }
    words = shlex.split(report.command(config, tmp_path / "a run", experiment, changed).replace("\\\n", " "))
    assert words[:4] == [
        "python", "main.py", "--config=configs/cifar10.py:size=S", f"--workdir={tmp_path / 'a run'}-again",
    ]  # fmt: skip
    assert sorted(words[4:]) == [
        "--config.data.path=data", "--config.sample.classes=(3, 7)", "--config.training.generator.steps=9",
    ]  # fmt: skip


def test_facts_say_how_many_fields_were_changed(config, tmp_path):
    told = [report.facts(config, tmp_path, "configs/digits.py", n, [])["config"] for n in (0, 1, 2)]
    assert told == ["unchanged", "1 field changed", "2 fields changed"]


@pytest.mark.parametrize("source", [None, "", "def get_config():\n    raise RuntimeError", "1 +"])
def test_unreadable_experiment_is_not_named_and_the_config_copied(tmp_path, source):
    config = digits.get_config()
    config.experiment = str(tmp_path / "mine.py")
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    experiment, about, changed = report.read_experiment(config)
    assert (experiment, about, changed) == ("", "", {})
    text = report.command(config, tmp_path, experiment, changed)
    assert f"cp {tmp_path}/config.json {tmp_path}-again/\n" in text
