"""Runs that are stopped, killed and damaged end bit for bit as the run that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from input_pipeline.pipeline import image_batches
from input_pipeline.records import token_batches
from jobs.workdir import read_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
STEPS = 40
FIELDS = (
    "tokenizer.channels=4 tokenizer.latent_channels=8 tokenizer.quantizer.codes=16 tokenizer.quantizer.width=4 "
    "generator.width=16 generator.depth=1 generator.heads=2 generator.mlp=32 extract.copies=1"
)
STAGES = ("tokenizer", "generator")


def command(workdir, save_every):
    fields = FIELDS.split()
    for stage in STAGES:
        fields += [f"training.{stage}.{field}" for field in
                   (f"steps={STEPS}", "batch_size=16", "log_every=1", f"save_every={save_every}")]  # fmt: skip
    return [sys.executable, str(ROOT / "main.py"), "--job=train", f"--workdir={workdir}",
            *(f"--config.{field}" for field in fields)]  # fmt: skip


def start(workdir, save_every=10):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command(workdir, save_every), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment)  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def interrupt(process, when, sent):
    """Send a signal as soon as `when()` holds; (exit code, stdout, stderr)."""
    end = time.monotonic() + 240
    while not when() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    assert process.poll() is None, process.communicate()
    process.send_signal(sent)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def logged(workdir, stage):
    """Number of lines in metrics.jsonl."""
    path = workdir / stage / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(workdir, stage):
    """Whether a checkpoint is being written beside finished ones."""
    folder = workdir / stage / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    finished = [name for name in names if name.isdigit() and (folder / name / "commit_success.txt").exists()]
    return len(names) > len(finished) >= 2


def last(workdir, stage):
    return workdir / stage / "checkpoints" / str(STEPS)


def iterator(workdir, stage):
    config = read_config(workdir)
    if stage == "tokenizer":
        return iter(image_batches(config.data, "train", batch_size=16, seed=config.seed, augment=True, repeat=True))
    return iter(token_batches(workdir / "tokens" / "train", batch_size=16, seed=config.seed, repeat=True))


def assert_same_run(first, second):
    """Parameters, optimizer, EMA, statistics, place in the data and the next batch of both stages."""
    for stage in STAGES:
        for name in ("ema", "state"):
            with ocp.StandardCheckpointer() as checkpointer:
                trees = [checkpointer.restore(last(workdir, stage) / name) for workdir in (first, second)]
            leaves = [jax.tree.leaves_with_path(tree) for tree in trees]
            assert len(leaves[0]) == len(leaves[1]) > 3
            for (path, a), (_, b) in zip(*leaves):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), f"{stage} {name}{jax.tree_util.keystr(path)}"
        nexts = []
        for workdir in (first, second):
            (state,) = (last(workdir, stage) / "data").glob("*.json")
            batches = iterator(workdir, stage)
            batches.set_state(json.loads(state.read_text()))
            nexts.append(next(batches))
        fresh = iterator(first, stage)
        for _ in range(STEPS):
            next(fresh)
        expected = next(fresh)
        for name, value in expected.items():
            for found in nexts:
                np.testing.assert_array_equal(found[name], value)


def losses(workdir, stage):
    rows = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows if "learning_rate" in row]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "w"
    finish(start(workdir))
    return workdir


def test_run_that_was_asked_to_stop_goes_on(undisturbed, tmp_path):
    workdir = tmp_path / "w"
    for stage in STAGES:
        process = start(workdir)
        code, out, err = interrupt(process, lambda: logged(workdir, stage) >= 15, signal.SIGTERM)  # noqa: B023
        assert "stopped and saved at step" in out + err
        assert "Traceback" not in err, err[-1500:]
        assert code == 0
        assert not last(workdir, stage).exists()
    out = finish(start(workdir))
    assert "generator: going on at step" in out
    assert_same_run(undisturbed, workdir)
    for stage in STAGES:
        assert losses(workdir, stage) == losses(undisturbed, stage)  # each step once, with the same figures


def test_run_that_was_killed_in_the_middle_of_a_save_goes_on(undisturbed, tmp_path):
    workdir = tmp_path / "w"
    for stage in STAGES:
        process = start(workdir, save_every=3)
        code, _, _ = interrupt(process, lambda: saving(workdir, stage), signal.SIGKILL)  # noqa: B023
        assert code == -signal.SIGKILL
        assert not last(workdir, stage).exists()
    out = finish(start(workdir, save_every=3))
    assert "generator: going on at step" in out
    assert_same_run(undisturbed, workdir)
    for stage in STAGES:
        assert losses(workdir, stage) == losses(undisturbed, stage)
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]
