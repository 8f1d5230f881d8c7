"""Images to tokens: which crops, in which order, by how many processes, and of which tokenizer."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import make_config
from PIL import Image

from input_pipeline import records
from input_pipeline.records import read_manifest, token_batches, token_records
from input_pipeline.transforms import center_crop, to_float
from jobs import extract, train
from jobs.workdir import prepare
from models.errors import UserError
from tokenizer.tokenizer import describe_tokenizer
from training.checkpoints import Checkpoints
from training.step import checksum

HERE = Path(__file__).parent
IMAGES = 40  # a class, of two, every tenth of which is held out
CORRUPT = "cat/012.png"

SCRIPT = """
import json, sys
from pathlib import Path
folder, workdir, port, process, processes = sys.argv[1:]
import jax
if int(processes) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
from test_extract import config_of
from jobs import extract
extract.run(config_of(Path(folder)), Path(workdir))
"""


def config_of(folder, **fields):
    """Ten crops of colour pictures of odd sizes; shards of ten images, encoded three at a time."""
    config = make_config()
    config.data.update(name="folder", path=str(folder), channels=3, shift=0, corrupt_limit=1)
    config.extract.update(crops="ten", ranges=(1.25,), shard_size=10, batch_size=35)
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures 24 to 40 pixels a side, one of which is cut off."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(IMAGES):
            height, width = rng.integers(24, 41, 2)
            coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(root / name / f"{i:03d}.png")
    damaged = root / CORRUPT
    damaged.write_bytes(damaged.read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def params(folder):
    """Of a tokenizer that nobody trained: its codes are as good as any here."""
    return describe_tokenizer(config_of(folder)).init(jax.random.key(3))


def begin_workdir(workdir, folder, params):
    prepare(config_of(folder), workdir, write=True)
    checkpoints = Checkpoints(workdir / "tokenizer" / "checkpoints")
    checkpoints.save_imported(params)
    checkpoints.close()
    return workdir


@pytest.fixture
def fresh(tmp_path, folder, params):
    """A workdir with a tokenizer and no tokens."""
    return begin_workdir(tmp_path / "w", folder, params)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, folder, params):
    """A workdir with all tokens, extracted by one process; tests leave it as it is."""
    workdir = begin_workdir(tmp_path_factory.mktemp("extracted") / "w", folder, params)
    extract.run(config_of(folder), workdir)
    return workdir


def contents(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes() for path in (workdir / "tokens").rglob("*") if path.is_file()
    }


def expected_images(folder, split):
    """(pictures, labels) in the order of the folders and names, without the corrupt one; every tenth is held out."""
    pictures, labels = [], []
    for label, name in enumerate(("cat", "dog")):
        for i in range(IMAGES):
            if f"{name}/{i:03d}.png" != CORRUPT and (i % 10 == 9) == (split == "test"):
                pictures.append(np.asarray(Image.open(folder / name / f"{i:03d}.png")))
                labels.append(label)
    return pictures, labels


def test_every_image_has_the_codes_of_its_ten_crops_in_the_order_of_the_dataset(extracted, folder, params):
    encode = jax.jit(lambda images: describe_tokenizer(config_of(folder)).merge(params).encode(images).ids)
    pictures, labels = expected_images(folder, "train")
    found = token_records(extracted / "tokens" / "train")
    assert [int(record["label"]) for record in found] == labels
    assert found[0]["ids"].shape == (10, 16, 1)
    differ = total = 0
    for record, picture in zip(found, pictures):
        square = center_crop(picture, 20)  # int(16 * 1.25)
        first = [square[y : y + 16, x : x + 16] for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
        # An even margin: the crops of the mirror image are the mirror images of the crops, right for left.
        mirrored = [first[k][:, ::-1] for k in (1, 0, 3, 2, 4)]
        codes = np.asarray(encode(to_float(np.stack(first + mirrored))))
        differ, total = differ + (record["ids"] != codes).sum(), total + codes.size
    assert differ <= total / 1000  # a tie may fall the other way in a batch of another size
    assert len(np.unique(found[0]["ids"])) > 4


def test_held_out_images_have_the_middle_square_alone(extracted, folder, params):
    encode = jax.jit(lambda images: describe_tokenizer(config_of(folder)).merge(params).encode(images).ids)
    pictures, labels = expected_images(folder, "test")
    (batch,) = token_batches(extracted / "tokens" / "test", batch_size=64, seed=0, repeat=False)
    assert batch["label"].tolist() == labels
    codes = encode(to_float(np.stack([center_crop(picture, 16) for picture in pictures])))
    np.testing.assert_array_equal(batch["ids"], codes)


def test_the_manifest_says_what_decided_the_tokens(extracted, params):
    manifest = read_manifest(extracted / "tokens" / "train")
    assert manifest == {
        "tokenizer": checksum(params), "tokenizer_step": 0, "vocabulary": [16], "positions": 16, "dataset": "folder",
        "split": "train", "images": 72, "records": 71, "resolution": 16, "channels": 3, "shards": 8,
        "crops": {"name": "ten", "number": 10, "ranges": [1.25]},
    }  # fmt: skip
    assert read_manifest(extracted / "tokens" / "test")["crops"] == {"name": "plain", "number": 1}


def test_an_interrupted_extraction_goes_on_and_ends_as_an_undisturbed_one(fresh, extracted, folder, monkeypatch):
    write_shard = records.write_shard

    def killed(directory, plan, k, batches):
        def some():
            yield next(iter(batches))
            raise KeyboardInterrupt

        write_shard(directory, plan, k, some() if k == 5 else batches)

    monkeypatch.setattr(records, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        extract.run(config_of(folder), fresh)
    monkeypatch.setattr(records, "write_shard", write_shard)
    assert not (fresh / "tokens" / "train").exists()
    before = {path: path.stat().st_mtime_ns for path in (fresh / "tokens" / "train.tmp").glob("tokens-*")}
    assert len(before) == 5
    extract.run(config_of(folder), fresh)
    after = {path.name: path.stat().st_mtime_ns for path in (fresh / "tokens" / "train").iterdir()}
    assert {path.name: time for path, time in before.items()}.items() <= after.items()
    assert contents(fresh) == contents(extracted)


def test_what_a_run_with_other_crops_left_is_not_used(fresh, extracted, folder):
    left = fresh / "tokens" / "train.tmp"
    shutil.copytree(extracted / "tokens" / "train", left)
    manifest = json.loads((left / "manifest.json").read_text())
    manifest["crops"]["ranges"] = [1.5]
    del manifest["records"]
    (left / "manifest.json").rename(left / "plan.json").write_text(json.dumps(manifest))
    (left / "tokens-00002-of-00008.array_record").write_bytes(b"not what it should be")
    extract.run(config_of(folder), fresh)
    assert contents(fresh) == contents(extracted)


def start(folder, workdir, port, process, processes, devices):
    environment = {
        **os.environ, "PYTHONPATH": f"{HERE.parent.parent}:{HERE}", "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, *map(str, (folder, workdir, port, process, processes))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_two_processes_of_two_devices_write_the_bytes_that_one_writes(fresh, extracted, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = [start(folder, fresh, port, process, 2, devices=2) for process in range(2)]
    for process in running:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
    assert contents(fresh) == contents(extracted)


def test_processes_share_the_shards_next_to_each_other(monkeypatch):
    for processes in (1, 3, 8, 11):
        monkeypatch.setattr(jax, "process_count", lambda processes=processes: processes)
        shares = []
        for index in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            shares.append(list(extract.own_shards(8)))
        assert [k for share in shares for k in share] == list(range(8))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def copied(workdir, target):
    shutil.copytree(workdir, target)
    return target


@pytest.mark.parametrize("stage", ["extract", "generator", "forecast"])
def test_tokens_of_another_tokenizer_are_refused_by_extraction_and_training(stage, extracted, tmp_path, folder):
    workdir = copied(extracted, tmp_path / "w")
    shutil.rmtree(workdir / "tokenizer")
    other = describe_tokenizer(config_of(folder)).init(jax.random.key(4))
    begin_workdir(workdir, folder, other)
    before = contents(workdir)
    job = {"extract": extract.run}.get(stage, train.run)
    with pytest.raises(UserError, match=r"tokens/train has tokenizer '[0-9a-f]+', not '[0-9a-f]+'; delete it"):
        job(config_of(folder, stages=(stage,), **{"data.classes": 2}), workdir)
    assert contents(workdir) == before
    assert not (workdir / stage).exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"extract.ranges": (1.25, 1.5)}, r"crops .* not .*'ranges': \[1\.25, 1\.5\]"),
        ({"extract.crops": "augmented"}, "crops .*'ten'.*'augmented'"),
    ],
)
def test_tokens_of_other_crops_are_refused(fields, told, extracted, folder):
    with pytest.raises(UserError, match=told):
        extract.run(config_of(folder, **fields), extracted)


def test_a_size_that_makes_no_sense_is_told(fresh, folder):
    with pytest.raises(UserError, match=r"extract\.shard_size and extract\.batch_size"):
        extract.run(config_of(folder, **{"extract.shard_size": 0}), fresh)


def test_tokens_that_are_there_are_left_alone_however_they_would_be_cut_into_files(extracted, folder):
    before = contents(extracted)
    extract.run(config_of(folder, **{"extract.shard_size": 20, "extract.batch_size": 8}), extracted)
    assert contents(extracted) == before


def test_tokens_of_an_older_version_are_refused(fresh, folder):
    (fresh / "tokens" / "train").mkdir(parents=True)
    (fresh / "tokens" / "train" / "manifest.json").write_text(
        json.dumps({"dataset": "folder", "copies": 10, "records": 720})
    )
    with pytest.raises(UserError, match="older version; delete it and run the extract job again"):
        extract.run(config_of(folder), fresh)


@pytest.mark.parametrize("kept", [1, 3, 9])
def test_frequencies_can_be_counted_of_some_crops_of_every_image(kept):
    """Of one crop an image: the first of the first image, the second of the second, ..., of four crops the first again."""
    batch = {"label": np.repeat(np.arange(5), 4), "ids": np.arange(20)}
    found = extract.some_crops(batch, 4, kept)
    assert np.bincount(found["label"]).tolist() == [min(kept, 4)] * 5
    assert len(set(found["ids"].tolist())) == 5 * min(kept, 4)
    if kept == 1:
        assert found["ids"].tolist() == [0, 5, 10, 15, 16]


def test_frequencies_are_counted_anew_with_the_tokens(fresh, extracted, folder):
    expected = contents(extracted)["tokens/frequencies.npz"]
    (fresh / "tokens").mkdir()
    (fresh / "tokens" / "frequencies.npz").write_bytes(b"of another tokenizer")
    extract.run(config_of(folder), fresh)
    assert (fresh / "tokens" / "frequencies.npz").read_bytes() == expected
