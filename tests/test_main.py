"""The command line: a user's mistake is one line on stderr and exit code 2."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from main import experiment

ROOT = Path(__file__).parent.parent
TINY = (
    "tokenizer.channels=4 tokenizer.latent_channels=8 tokenizer.quantizer.codes=16 tokenizer.quantizer.width=4 "
    "generator.width=16 generator.depth=1 generator.heads=2 generator.mlp=32 extract.copies=1 sample.count=2 "
    "training.tokenizer.steps=1 training.tokenizer.batch_size=8 training.generator.steps=1 "
    "training.generator.batch_size=8"
)


def test_an_experiment_is_named_so_that_any_folder_finds_it(tmp_path, monkeypatch):
    assert experiment(str(ROOT / "configs" / "digits.py")) == "configs/digits.py"
    monkeypatch.chdir(ROOT / "configs")
    assert experiment("cifar10.py:size=S") == "configs/cifar10.py:size=S"
    monkeypatch.chdir(tmp_path)
    assert experiment("mine.py:a=b:c") == f"{tmp_path.resolve()}/mine.py:a=b:c"


def overrides(text):
    return [f"--config.{item}" for item in text.split()]


def run(*arguments):
    """main.py with these arguments, as a user's shell would run it."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip


def run_all(commands):
    """Several commands, two at a time: name -> result."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(lambda arguments: run(*arguments), commands.values())))


def assert_error(result, *parts):
    """Exit code 2 and nothing on stderr but one line that says all of `parts`."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A dataset folder of two classes, whose one image is cut in the middle."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(10):
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    cut = folder / "b" / "3.png"
    cut.write_bytes(cut.read_bytes()[:150])
    return folder


@pytest.fixture(scope="module")
def misspelt(tmp_path_factory):
    """Results of commands that are refused before jax is imported."""
    root = tmp_path_factory.mktemp("misspelt")
    commands = {
        "field": [f"--workdir={root}/0", "--config.generator.widht=16"],
        "job": [f"--workdir={root}/1", "--job=trian"],
        "argument": [f"--workdir={root}/2", "train"],
        "llamagen": [f"--workdir={root}/3", f"--config={ROOT}/configs/llamagen.py:size=M"],
        "type": [f"--workdir={root}/4", "--config.generator.width=wide"],
        "no config": [f"--workdir={root}/5", f"--config={root}/absent.py"],
        "bucket": ["--workdir=gs://bucket/run"],
        "half joined": [f"--workdir={root}/6", "--coordinator=host:1234"],
    }
    return run_all(commands)


@pytest.mark.parametrize(
    ("mistake", "parts"),
    [
        ("field", ["'generator.widht'", "did you mean 'generator.width'?"]),
        ("job", ["'trian'", "did you mean 'train'?"]),
        ("argument", ["'train'", "--"]),
        ("llamagen", ["'M'", "B, L, XL, XXL, 3B"]),
        ("type", ["wide"]),
        ("no config", ["absent.py"]),
        ("bucket", ["gs://bucket/run", "--config.checkpoints"]),
        ("half joined", ["--processes and --process missing"]),
    ],
)
def test_misspelt_command_is_one_line_that_says_what_would_be_right(misspelt, mistake, parts):
    assert_error(misspelt[mistake], *parts)


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory, images):
    """Results of commands that need no trained workdir, each with a workdir of its name."""
    root = tmp_path_factory.mktemp("mistakes")
    (root / "file").touch()
    (root / "empty").mkdir()
    folder = overrides("data.name=folder stages=('tokenizer',) data.shift=0")
    commands = {
        "dataset": ["--job=train", *overrides("data.name=digitz")],
        "no images": ["--job=train", *folder, f"--config.data.path={root}/empty"],
        "cut image": ["--job=train", *overrides(TINY), *folder, f"--config.data.path={images}",
                      "--config.training.tokenizer.steps=4"],
        "stride": ["--job=train", *overrides("data.resolution=15")],
        "file/workdir": ["--job=train"],
        "lpips": ["--job=train", *overrides(f"losses.lpips_weights={root}/lpips.npz")],
        "no run": ["--job=sample"],
        "no run to follow": ["--job=evaluate", "--follow"],
        "batch": ["--job=train", *overrides(f"{TINY} training.tokenizer.accumulate=3")],
    }  # fmt: skip
    results = run_all({name: [f"--workdir={root / name}", *arguments] for name, arguments in commands.items()})
    return results, root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "parts"),
    [
        ("dataset", ["'digitz'", "did you mean 'digits'?"]),
        ("no images", ["empty", ".png", "one folder a class"]),
        ("cut image", ["3.png", "corrupt", "data.corrupt_limit"]),
        ("stride", ["15", "stride 2", "14 or 16"]),
        ("file/workdir", ["file/workdir", "cannot be written"]),
        ("lpips", ["lpips.npz", "https://", "python -m interop.lpips"]),
        ("no run", ["/no run", "holds no run"]),
        ("no run to follow", ["/no run to follow", "holds no run"]),
        ("batch", ["batch_size 8", "3"]),
    ],
)
def test_mistake_is_one_line_that_says_what_would_be_right(mistakes, mistake, parts):
    assert_error(mistakes[0][mistake], *parts)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["dataset", "no images", "stride", "no run", "no run to follow"])
def test_refused_command_leaves_no_workdir_that_looks_like_a_run(mistakes, mistake):
    results, root = mistakes
    assert results[mistake].returncode == 2
    assert not (root / mistake / "config.json").exists()


@pytest.fixture(scope="module")
def on_a_run(tmp_path_factory):
    """Results of commands on a workdir trained for one step."""
    workdir, empty = tmp_path_factory.mktemp("run") / "w", tmp_path_factory.mktemp("empty")
    trained = run(f"--workdir={workdir}", "--job=train", *overrides(TINY))
    assert trained.returncode == 0, trained.stderr
    demo = f"--config={ROOT}/configs/digits.py"
    other = TINY.replace("generator.width=16", "generator.width=32")
    commands = {
        "class": [f"--workdir={workdir}", "--job=sample", "--config.sample.classes=(3,10)"],
        "other width": [f"--workdir={workdir}", "--job=sample", demo, *overrides(other)],
        "override": [f"--workdir={workdir}", "--job=train", "--config.tokenizer.quantizer.codes=32"],
        "reference": [f"--workdir={workdir}", "--job=evaluate", "--reference=tset"],
        "empty reference": [f"--workdir={workdir}", "--job=search", f"--reference={empty}"],
        "sample": [f"--workdir={workdir}", "--job=sample"],
    }
    return {"trained": trained, **run_all(commands)}


@pytest.mark.slow
def test_class_that_the_model_does_not_know(on_a_run):
    assert_error(on_a_run["class"], "class 10", "0 to 9")


@pytest.mark.slow
def test_config_that_does_not_fit_the_workdir_is_refused_by_name(on_a_run):
    assert_error(on_a_run["other width"], "generator.width=16", "32", "--workdir")
    assert_error(on_a_run["override"], "tokenizer.quantizer.codes=16", "32", "--workdir")


@pytest.mark.slow
def test_reference_that_is_none(on_a_run):
    assert_error(on_a_run["reference"], "tset", "is not there", "cifar10:test")
    assert_error(on_a_run["empty reference"], "empty", "holds no images")


@pytest.mark.slow
def test_workdir_needs_no_config_and_nothing_is_noisy(on_a_run):
    assert on_a_run["sample"].returncode == 0, on_a_run["sample"].stderr
    assert "2 images" in on_a_run["sample"].stdout
    assert on_a_run["sample"].stderr == on_a_run["trained"].stderr == ""
