"""Checkpoints in a bucket: the run is the same to the last bit, also after a kill, damage, and from another machine."""

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import grain
import jax.numpy as jnp
import numpy as np
import pytest
from buckets import Buckets
from conftest import make_config

from jobs import sample, train
from jobs.evaluate import next_step
from jobs.workdir import bring_config, checkpoints_of, prepare, read_config
from models.errors import UserError
from models.files import folder
from training.checkpoints import Checkpoints, steps_on_disk

pytestmark = pytest.mark.slow
pytest.importorskip("gcsfs", reason="the extra gcs is not installed")

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def bucket():
    server = Buckets()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("gcs").clear_instance_cache()
        yield server
    server.shutdown()


def small(checkpoints="", steps=4, stages=("tokenizer", "generator")):
    config = make_config()
    config.generator.depth = 1
    config.update(checkpoints=checkpoints, stages=stages)
    config.sample.update(count=4, batch_size=4)
    for stage in ("tokenizer", "generator"):
        config.training[stage].update(steps=steps, save_every=2, schedule="constant")
    return config


def trained(workdir, config):
    train.run(prepare(config, workdir, write=True), workdir)
    return workdir


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run that nobody disturbed, all of it in its workdir."""
    return trained(tmp_path_factory.mktemp("local") / "w", small())


@pytest.fixture(scope="module")
def remote(tmp_path_factory, bucket):
    """The same with its checkpoints in the bucket, in two commands."""
    workdir = tmp_path_factory.mktemp("remote") / "w"
    trained(workdir, small("gs://bucket/run", steps=2, stages=("tokenizer",)))
    return trained(workdir, small("gs://bucket/run"))


def contents(workdir, stage, step=4):
    """Checksums of every bit of the state, and the place in the data."""
    place = checkpoints_of(stage, read_config(workdir), workdir) / str(step)
    states = [json.loads(file.read_text()) for file in (place / "data").glob("*.json")]
    return json.loads((place / "checksums" / "metadata").read_text()), states


def test_a_run_that_goes_on_from_a_bucket_ends_as_a_local_one(local, remote, bucket):
    for stage in ("tokenizer", "generator"):
        assert steps_on_disk(f"gs://bucket/run/{stage}/checkpoints") == [2, 4]
        sums, states = contents(remote, stage)
        assert {"ema", "state"} < sums.keys()
        assert len(states) == 1
        assert (sums, states) == contents(local, stage)
        assert sums != contents(local, stage, step=2)[0]
        assert not (remote / stage / "checkpoints").exists()
        assert (remote / stage / "metrics.jsonl").exists()
    assert next_step(folder("gs://bucket/run/generator/checkpoints"), 2) == 4
    assert not any("orbax-checkpoint-tmp" in name for name in bucket.names("bucket/run"))


def test_another_machine_samples_the_same_images(local, remote, tmp_path):
    bring_config("gs://bucket/run", tmp_path)
    images = []
    for workdir in (local, tmp_path):
        sample.run(prepare(read_config(workdir), workdir, write=False), workdir)
        (path,) = (workdir / "samples").glob("*.npz")
        images.append(np.load(path)["arr_0"])
    assert images[0].std() > 0
    np.testing.assert_array_equal(*images)


def test_a_save_that_is_killed_before_its_mark_leaves_the_one_before(local, bucket, tmp_path):
    place = "gs://bucket/killed/tokenizer/checkpoints"
    assert steps_on_disk(place) == []
    (tmp_path / "w").mkdir()
    config = small("gs://bucket/killed", stages=("tokenizer",))
    (tmp_path / "w" / "config.json").write_text(config.to_json())
    bucket.held = "checkpoints/4/commit_success.txt"
    process = subprocess.Popen([sys.executable, ROOT / "main.py", "--job=train", f"--workdir={tmp_path / 'w'}"],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    came = bucket.waiting.wait(timeout=200)
    process.kill()
    _, said = process.communicate()
    bucket.held = None
    assert came, said[-2000:]
    assert "4/checksums/metadata" in bucket.names("bucket/killed/tokenizer/checkpoints/")
    assert steps_on_disk(place) == [2]
    trained(tmp_path / "w", config)
    assert steps_on_disk(place) == [2, 4]
    assert contents(tmp_path / "w", "tokenizer") == contents(local, "tokenizer")


def test_a_damaged_checkpoint_is_set_aside(local, remote, bucket, tmp_path, capsys):
    for name in bucket.names("bucket/run/"):
        if name.startswith("tokenizer/"):
            bucket.put(f"bucket/damaged/{name}", bucket.objects[f"bucket/run/{name}"][1])
    (data,) = [name for name in bucket.names("bucket/damaged/") if "/4/ema/" in name and "/d/" in name][:1]
    content = bytearray(bucket.objects[f"bucket/damaged/{data}"][1])
    content[len(content) // 2] ^= 255
    bucket.put(f"bucket/damaged/{data}", bytes(content))
    trained(tmp_path, small("gs://bucket/damaged", stages=("tokenizer",)))
    assert "going on at step 2 of 4" in capsys.readouterr().out
    assert contents(tmp_path, "tokenizer") == contents(local, "tokenizer")
    assert data.replace("/4/", "/damaged-4-0/") in bucket.names("bucket/damaged/")
    trained(tmp_path, small("gs://bucket/damaged", stages=("tokenizer",)))  # which cleans up what was left unfinished
    assert data.replace("/4/", "/damaged-4-0/") in bucket.names("bucket/damaged/")


def test_a_bucket_that_cannot_be_written_is_one_line(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "closed", "")
    with pytest.raises(UserError, match=r"gs://bucket/closed cannot be read or written .*Forbidden.*your rights"):
        prepare(small("gs://bucket/closed"), tmp_path, write=True)


def save(checkpoints, step, batches):
    """Until it is written."""
    checkpoints.save(step, {"ema": {"a": jnp.arange(8.0)}}, batches, loss=1.0)
    with checkpoints.written():
        checkpoints.manager.wait_until_finished()


@pytest.mark.parametrize(("closed", "said"), [("2/metrics", "Forbidden"), ("2/ema/ocdbt", "HTTP status 403")])
def test_a_bucket_that_closes_later_is_one_line(bucket, monkeypatch, closed, said):
    """gcsfs writes the one, tensorstore the other."""
    place = f"gs://bucket/{closed.replace('/', '-')}"
    checkpoints, batches = Checkpoints(place), iter(grain.MapDataset.range(100).to_iter_dataset())
    save(checkpoints, 1, batches)
    monkeypatch.setattr(bucket, "closed", closed)
    with pytest.raises(
        UserError, match=rf"cannot be written to {place} \({said}.*\); the last good checkpoint is step 1"
    ):
        save(checkpoints, 2, batches)
    assert steps_on_disk(place) == [1]


@pytest.mark.parametrize("other", ["", "gs://bucket/empty"])
def test_a_workdirs_checkpoints_are_not_looked_for_elsewhere(remote, other):
    with pytest.raises(UserError, match=r"lie in gs://bucket/run, .*--config\.checkpoints=gs://bucket/run"):
        prepare(small(other), remote, write=True)


def test_other_services_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"s3://bucket/run is neither a folder nor .*gs://"):
        prepare(small("s3://bucket/run"), tmp_path, write=True)
