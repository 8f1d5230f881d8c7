"""The report of a workdir: of a finished run, of one that has hardly begun, and of one with damaged files."""

import json
import shlex
import shutil

import pytest

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


def test_searches_are_no_evaluations_and_tokenizers_stand_alone(copy):
    shutil.rmtree(copy / "eval")
    (copy / "eval").mkdir()
    rows = [{"guidance_scale": scale, "fid_768": 10 - scale} for scale in (1.0, 2.0)]
    sampled = {
        "settings": {"step": 6, "sampler": {"name": "sequential"}},
        "metrics": {"fid": 1.0, "tokenizer_psnr": 20.0},
    }
    for name, record in {
        "search-1500": {"rows": rows, "metric": "fid_768"},
        "tokenizer-3": {"settings": {"step": 3}, "metrics": {"tokenizer_psnr": 20.0}},
        "sequential-6": sampled,
        "sequential-600": sampled | {"settings": {"step": 600}, "metrics": {"fid": float("nan"), "kid": None}},
        "sequential-60": sampled | {"settings": {"step": 60}, "missing": None, "warnings": None},
    }.items():
        (copy / "eval" / f"{name}.json").write_text(json.dumps(record))
    run = report.collect(read_config(copy), copy)
    assert [one.name for one in run.evaluations] == ["sequential-6", "sequential-60", "sequential-600"]  # by step
    assert [one.name for one in run.tokenizers] == ["tokenizer-3"]
    assert list(run.searches) == ["Step 1,500"]
    assert run.evaluations[-1].metrics["kid"] is None
    assert run.evaluations[0].settings["sampler.name"] == "sequential"
    report.run(read_config(copy), copy)
    assert ">NaN<" in (copy / "report.html").read_text()


def test_newest_samples_are_shown_and_damaged_files_are_named(copy):
    (copy / "eval" / "other-6.json").write_text('{"settings": ')
    (copy / "eval" / "list-6.json").write_text("[]")
    (copy / "samples" / "damaged-9.npz").write_bytes(b"PK\x03\x04 not whole")
    run = report.collect(read_config(copy), copy)
    assert len(run.evaluations) == 1
    assert run.samples[2] == "samples/sequential-6.npz"
    assert sorted(note.split()[0] for note in run.notes) == [
        "eval/list-6.json", "eval/other-6.json", "samples/damaged-9.npz",
    ]  # fmt: skip


def test_hostile_workdir_name_is_escaped(copy):
    hostile = copy.rename(copy.with_name("<img src=x onerror=alert(1)>"))
    report.run(read_config(hostile), hostile)
    text = (hostile / "report.html").read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_command_gives_the_config_again(tmp_path):
    config = cifar10.get_config("size=S")
    config.experiment = "configs/cifar10.py:size=S"
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
