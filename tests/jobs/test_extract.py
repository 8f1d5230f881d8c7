"""Images to tokens: which crops, in which order, by how many processes, and of which tokenizer."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from conftest import make_config
from PIL import Image

from input_pipeline import records
from input_pipeline.records import read_manifest, token_batches, token_records
from input_pipeline.sources import open_source
from input_pipeline.transforms import center_crop, to_float
from jobs import extract, train
from jobs.workdir import prepare
from models.errors import UserError
from tokenizer.tokenizer import describe_tokenizer
from training.checkpoints import Checkpoints
from training.step import checksum

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
IMAGES = 40  # a class, of two, every tenth of which is held out
CORRUPT = "cat/012.png"

# Process 1 may be unable to read a step of the tokenizer; any may be killed in the middle of a shard of the training images.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
options = json.loads(sys.argv[1])
from models import distributed
from models.errors import UserError
from input_pipeline import records

def killed(directory, plan, k, batches, write_shard=records.write_shard):
    def some():
        yield next(iter(batches))
        os.kill(os.getpid(), signal.SIGKILL)
    write_shard(directory, plan, k, some() if k == options["killed"] else batches)

records.write_shard = killed
try:
    if options["join"]:
        distributed.join(tuple(options["join"]), 60)
        if options["join"][2] and options["blind"] is not None:
            from runs import cannot_read
            cannot_read(options["blind"])
    from test_extract import config_of
    from jobs import extract
    extract.run(config_of(Path(options["folder"])), Path(options["workdir"]))
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    distributed.leave(2)
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


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def test_the_manifest_says_what_decided_the_tokens(extracted, folder, params):
    manifest = read_manifest(extracted / "tokens" / "train")
    digest = open_source(config_of(folder).data, "train").digest()
    assert manifest == {
        "tokenizer": checksum(params), "tokenizer_step": 0, "vocabulary": [16], "positions": 16, "dataset": "folder",
        "split": "train", "images": 72, "digest": digest, "records": 71, "resolution": 16, "channels": 3, "shards": 8,
        "crops": {"name": "ten", "number": 10, "ranges": [1.25]}, "at_a_time": 3, "device": "cpu",
    }  # fmt: skip
    assert read_manifest(extracted / "tokens" / "test")["crops"] == {"name": "plain", "number": 1}


def test_a_killed_extraction_goes_on_and_ends_as_an_undisturbed_one(fresh, extracted, folder):
    (killed,) = start([(folder, fresh)], killed=5)
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert not (fresh / "tokens" / "train").exists()
    (left,) = (fresh / "tokens").iterdir()
    assert len(list(left.glob(".tokens-*"))) == 1  # half of a shard
    before = {path.name: path.stat().st_mtime_ns for path in left.glob("tokens-*")}
    assert len(before) == 5
    extract.run(config_of(folder), fresh)
    after = {path.name: path.stat().st_mtime_ns for path in (fresh / "tokens" / "train").iterdir()}
    assert before.items() <= after.items()
    assert contents(fresh) == contents(extracted)


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokenizer", "0" * 16), ("crops", {"name": "ten", "number": 10, "ranges": [1.5]}), ("digest", "of another dataset"),
     ("at_a_time", 1)],
)  # fmt: skip
def test_what_a_run_of_something_else_left_is_not_used(field, value, fresh, extracted, folder):
    plan = {**read_manifest(extracted / "tokens" / "train"), field: value}
    del plan["records"]
    directory = fresh / "tokens" / "train"
    records.begin(directory, plan)
    records.write_shard(directory, plan, 2, [{"ids": np.zeros((9, 10, 16, 1), int), "label": np.zeros(9, int)}])
    extract.run(config_of(folder), fresh)
    assert contents(fresh) == contents(extracted)


def start(places, *, blind=None, killed=None, devices=1):
    """Processes that extract together, each from the folder to the workdir that it is given."""
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE, ROOT / "tests" / "training"))),
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    started = []
    for process, (folder, workdir) in enumerate(places):
        join = [address, len(places), process] if len(places) > 1 else None
        options = {"workdir": str(workdir), "folder": str(folder), "join": join, "blind": blind, "killed": killed}
        started.append(subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        ))  # fmt: skip
    return started


@pytest.mark.slow
def test_two_processes_of_two_devices_write_the_bytes_that_one_writes(fresh, extracted, folder):
    for process in start([(folder, fresh)] * 2, devices=2):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
    assert contents(fresh) == contents(extracted)


def add_step(workdir, params, step):
    """Another checkpoint of the tokenizer, as training writes them."""
    checkpoints = Checkpoints(workdir / "tokenizer" / "checkpoints", keep_last=2)
    batches = iter(grain.MapDataset.range(8).to_iter_dataset().batch(2))
    checkpoints.save(step, {"ema": params}, batches, loss=0.0)
    checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("checkpoints", r"the hosts read different checkpoints of .*/tokenizer/checkpoints; see in their warnings"),
        ("images", r"tokens/train: the hosts differ in digest, which is '[0-9a-f]+' here; they must see the same"),
        ("workdirs", r"the hosts do not all see .*/tokens; give a --workdir that they do"),
    ],
    ids=["checkpoints", "images", "workdirs"],
)
def test_processes_that_read_other_things_are_told(what, told, fresh, folder, params, tmp_path):
    mine = its = (folder, fresh)
    if what == "images":
        its = (shutil.copytree(folder, tmp_path / "other"), fresh)
        (its[0] / "dog" / "003.png").rename(its[0] / "dog" / "0031.png")
    elif what == "workdirs":
        its = (folder, begin_workdir(tmp_path / "its", folder, params))
    else:
        add_step(fresh, describe_tokenizer(config_of(folder)).init(jax.random.key(4)), 3)
    for process in start([mine, its], blind=3 if what == "checkpoints" else None):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, err[-3000:]
        assert re.search(told, err)
    assert not list(tmp_path.glob("*/tokens/*/*"))


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


def test_tokens_are_of_a_dataset_wherever_it_lies(extracted, tmp_path, folder):
    before, moved = contents(extracted), shutil.copytree(folder, tmp_path / "moved")
    extract.run(prepare(config_of(moved), extracted, write=False), extracted)
    assert contents(extracted) == before
    for name in ("cat/001.png", "dog/001.png"):  # as many images, one of them another
        (moved / name).rename(moved / name.replace("001", "0010"))
    with pytest.raises(UserError, match=r"tokens/train has digest '[0-9a-f]+', not '[0-9a-f]+'; delete it"):
        extract.run(config_of(moved), extracted)


def test_tokens_that_do_not_say_of_which_images_they_are_are_refused(extracted, tmp_path, folder):
    workdir = copied(extracted, tmp_path / "w")
    path = workdir / "tokens" / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="older version, which did not say its digest; delete it to extract anew"):
        extract.run(config_of(folder), workdir)


def test_a_size_that_makes_no_sense_is_told(fresh, folder):
    with pytest.raises(UserError, match=r"extract\.shard_size and extract\.batch_size"):
        extract.run(config_of(folder, **{"extract.shard_size": 0}), fresh)


def test_tokens_that_are_there_are_left_alone_however_they_would_be_cut_into_files(extracted, folder):
    before = contents(extracted)
    config = config_of(folder, **{"extract.shard_size": 20, "extract.batch_size": 8})
    extract.run(prepare(config, extracted, write=False), extracted)
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
