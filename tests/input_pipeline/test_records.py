import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.records import (
    begin,
    finish,
    is_written,
    read_manifest,
    shard_name,
    token_batches,
    token_records,
    write_shard,
)
from models.errors import UserError
from models.sharding import Reader

COPIES, POSITIONS = 3, 6
ROOT = Path(__file__).parent.parent.parent
KILLED = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from input_pipeline.records import begin, write_shard

directory, plan = Path(sys.argv[1]), json.loads(sys.argv[2])

def batches():
    yield {"ids": np.zeros((4, 3, 6, 2), int), "label": np.arange(4)}
    os.kill(os.getpid(), signal.SIGKILL)

begin(directory, plan)
write_shard(directory, plan, 0, batches())
"""


def plan_of(sizes=(16, 8), shards=3, copies=COPIES, positions=POSITIONS, **fields):
    crops = {"name": "any", "number": copies}
    return {"vocabulary": list(sizes), "positions": positions, "crops": crops, "shards": shards, **fields}


def examples(count, copies=COPIES, sizes=(16, 8), seed=0):
    rng = np.random.default_rng(seed)
    return {"ids": rng.integers(0, sizes, (count, copies, POSITIONS, len(sizes))), "label": np.arange(count)}


def in_batches(whole, size):
    for i in range(0, len(whole["label"]), size):
        yield {name: array[i : i + size] for name, array in whole.items()}


def write(directory, whole, plan):
    """All shards, each a run of the images, in batches of four."""
    begin(directory, plan)
    cuts = np.linspace(0, len(whole["label"]), plan["shards"] + 1).astype(int)
    for k, (start, stop) in enumerate(itertools.pairwise(cuts)):
        write_shard(directory, plan, k, in_batches({name: array[start:stop] for name, array in whole.items()}, 4))
    finish(directory, plan)


@pytest.mark.parametrize("sizes", [(16, 8), (1 << 16,), ((1 << 16) + 1, 4)])
def test_tokens_come_back_as_written(tmp_path, sizes):
    whole = examples(25, sizes=sizes)
    whole["ids"][0, 0, 0] = np.array(sizes) - 1  # the largest ids fit
    whole["label"][3] = -1
    plan = plan_of(sizes, dataset="none")
    write(tmp_path / "tokens", whole, plan)
    assert read_manifest(tmp_path / "tokens") == {**plan, "records": 25}
    names = {"manifest.json", *(f"tokens-0000{k}-of-00003.array_record" for k in range(3))}
    assert set(os.listdir(tmp_path / "tokens")) == names
    records = token_records(tmp_path / "tokens")
    assert len(records) == 25
    for i in (24, 0, 3, 9):  # random access, over all shards
        np.testing.assert_array_equal(records[i]["ids"], whole["ids"][i])
        assert records[i]["label"] == whole["label"][i]


@pytest.mark.parametrize(("size", "code"), [(300, b"\x02\x01"), ((1 << 16) + 1, b"\x02\x01\x00\x00")])
def test_a_record_is_compact_and_little_endian(tmp_path, size, code):
    plan = plan_of((size,), shards=1, copies=2, positions=1)
    begin(tmp_path / "tokens", plan)
    write_shard(tmp_path / "tokens", plan, 0, [{"ids": np.array([[[[258]], [[3]]]]), "label": np.array([-2])}])
    finish(tmp_path / "tokens", plan)
    three = b"\x03".ljust(len(code), b"\x00")
    assert b"\xfe\xff\xff\xff" + code + three in (tmp_path / "tokens" / shard_name(0, 1)).read_bytes()


def test_an_interrupted_write_leaves_no_half_result_and_keeps_whole_shards(tmp_path):
    def interrupted():
        yield from in_batches(examples(8), 4)
        raise KeyboardInterrupt

    directory, plan = tmp_path / "deep" / "tokens", plan_of(shards=2)
    begin(directory, plan)
    write_shard(directory, plan, 1, in_batches(examples(4), 4))
    with pytest.raises(KeyboardInterrupt):
        write_shard(directory, plan, 0, interrupted())
    assert not directory.exists()
    assert read_manifest(directory) is None
    with pytest.raises(UserError, match="holds no tokens; run the extract job first"):
        token_records(directory)
    begin(directory, plan)  # the same again
    assert [is_written(directory, plan, k) for k in range(2)] == [False, True]
    write_shard(directory, plan, 0, in_batches(examples(8), 4))
    finish(directory, plan)
    assert len(token_records(directory)) == 12
    assert os.listdir(tmp_path / "deep") == ["tokens"]


def test_half_a_shard_of_a_killed_process_does_not_get_into_the_tokens(tmp_path):
    directory, plan = tmp_path / "tokens", plan_of(shards=2)
    killed = subprocess.run([sys.executable, "-c", KILLED, directory, json.dumps(plan)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    (half,) = tmp_path.glob("*.tmp/.*")
    assert not is_written(directory, plan, 0)
    write(directory, examples(8), plan)
    assert not half.exists()
    assert set(os.listdir(directory)) == {"manifest.json", *(shard_name(k, 2) for k in range(2))}
    assert os.listdir(tmp_path) == ["tokens"]
    assert [int(record["label"]) for record in token_records(directory)] == list(range(8))


@pytest.mark.parametrize("removable", [True, False])
def test_shards_of_another_plan_are_not_taken_over(tmp_path, monkeypatch, removable):
    """Not even where they cannot be removed, as of a disk that is far away and busy."""
    directory, older = tmp_path / "tokens", tmp_path / "tokens.tmp"
    plan, other = plan_of(tokenizer="a"), plan_of(tokenizer="b")
    older.mkdir()  # where an older version wrote
    (older / shard_name(0, 3)).write_bytes(b"of another version")
    begin(directory, plan)
    write_shard(directory, plan, 0, in_batches(examples(4, seed=1), 4))
    if not removable:
        monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    begin(directory, other)
    assert not is_written(directory, other, 0)
    write(directory, examples(12), other)
    for record, ids in zip(token_records(directory), examples(12)["ids"], strict=True):
        np.testing.assert_array_equal(record["ids"], ids)
    assert (len(os.listdir(tmp_path)) == 1) == removable


def test_finished_tokens_are_not_overwritten(tmp_path):
    write(tmp_path / "tokens", examples(4), plan_of())
    with pytest.raises(UserError, match="exists already"):
        begin(tmp_path / "tokens", plan_of())
    assert len(token_records(tmp_path / "tokens")) == 4


def test_tokens_of_an_older_version_are_refused(tmp_path):
    (tmp_path / "manifest.json").write_text(
        json.dumps({"vocabulary": [16], "copies": 2, "records": 4, "dtype": "uint16"})
    )
    with pytest.raises(UserError, match="older version; delete it and run the extract job again"):
        token_batches(tmp_path, batch_size=2, seed=0, repeat=True)


@pytest.mark.parametrize("wrong", [-1, 8])
def test_ids_outside_their_own_vocabulary_are_refused(tmp_path, wrong):
    whole, plan = examples(4), plan_of(shards=1)
    whole["ids"][2, 0, 1, 1] = wrong  # fits the first sub-code's vocabulary of 16
    begin(tmp_path / "tokens", plan)
    with pytest.raises(ValueError, match="do not fit the vocabulary"):
        write_shard(tmp_path / "tokens", plan, 0, [whole])
    with pytest.raises(ValueError, match="not"):  # one crop's ids are not stretched over three
        write_shard(tmp_path / "tokens", plan, 0, [examples(4, copies=1)])
    write_shard(tmp_path / "tokens", plan, 0, [])
    with pytest.raises(ValueError, match="no tokens"):
        finish(tmp_path / "tokens", plan)


@pytest.fixture
def stored(tmp_path):
    whole = examples(24)
    write(tmp_path / "tokens", whole, plan_of())
    return tmp_path / "tokens", whole["ids"]


def take(directory, count, **options):
    iterator = iter(token_batches(directory, repeat=True, **options))
    return [next(iterator) for _ in range(count)]


def drawn(batches, ids):
    """Which crop of its image every row is; ids of the crops are all different."""
    found = []
    for batch in batches:
        same = (ids[batch["label"]] == batch["ids"][:, None]).all((2, 3))
        assert (same.sum(1) == 1).all()
        found += same.argmax(1).tolist()
    return np.array(found)


def test_token_batches_are_shuffled_epochs_of_one_crop_an_image(stored):
    directory, _ = stored
    batches = take(directory, 8, batch_size=6, seed=0)
    assert batches[0]["ids"].shape == (6, 6, 2)
    assert batches[0]["ids"].dtype == batches[0]["label"].dtype == np.int32
    order = np.concatenate([batch["label"] for batch in batches]).tolist()
    assert sorted(order[:24]) == sorted(order[24:]) == list(range(24))
    assert order[:24] != order[24:]
    assert order[:24] != list(range(24))


def test_crops_are_drawn_evenly_and_anew_for_every_image_and_epoch(stored):
    directory, ids = stored
    epochs = 200
    batches = take(directory, epochs, batch_size=24, seed=0)
    crops = np.empty((epochs, 24), int)
    for epoch, batch in enumerate(batches):
        crops[epoch, batch["label"]] = drawn([batch], ids)
    counts = np.stack([np.bincount(column, minlength=COPIES) for column in crops.T])
    chi2 = ((counts - epochs / COPIES) ** 2 / (epochs / COPIES)).sum()  # 24 images of 2 degrees of freedom each
    assert 20 < chi2 < 90  # 48 is expected; below 0.0001 either side
    both = np.zeros((COPIES, COPIES))  # of an image in an epoch and in the next: independent
    np.add.at(both, (crops[:-1].ravel(), crops[1:].ravel()), 1)
    expected = both.sum() / COPIES**2
    assert ((both - expected) ** 2 / expected).sum() < 32  # 8 degrees of freedom, 0.0001
    other = drawn(take(directory, 1, batch_size=24, seed=1), ids)
    assert not np.array_equal(other, drawn(batches[:1], ids))


def test_one_pass_over_the_tokens_is_in_order_and_has_every_crop(stored):
    directory, ids = stored
    batches = list(token_batches(directory, batch_size=30, seed=0, repeat=False))
    assert [len(batch["label"]) for batch in batches] == [30, 30, 12]
    np.testing.assert_array_equal(np.concatenate([batch["ids"] for batch in batches]), ids.reshape(-1, POSITIONS, 2))
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, np.repeat(np.arange(24), COPIES))


def test_token_batches_resume_bit_for_bit(stored):
    directory, _ = stored
    iterator = iter(token_batches(directory, batch_size=5, seed=3, repeat=True))
    for _ in range(7):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    fresh = iter(token_batches(directory, batch_size=5, seed=3, repeat=True))
    fresh.set_state(state)
    for _ in range(5):
        expected, resumed = next(iterator), next(fresh)
        np.testing.assert_array_equal(resumed["ids"], expected["ids"])
        np.testing.assert_array_equal(resumed["label"], expected["label"])


def test_readers_share_the_tokens_and_draw_what_one_draws(stored):
    directory, _ = stored
    (whole,) = take(directory, 1, batch_size=24, seed=0)
    halves = [take(directory, 1, batch_size=12, seed=0, reader=Reader((index,), 2))[0] for index in range(2)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array)
