import json
import os

import numpy as np
import pytest

from input_pipeline.records import read_manifest, token_batches, token_records, write_tokens
from models.errors import UserError


def examples(count, positions=6, sizes=(16, 8), seed=0):
    rng = np.random.default_rng(seed)
    return {"ids": rng.integers(0, sizes, (count, positions, len(sizes))), "label": np.arange(count)}


def in_batches(whole, size):
    for i in range(0, len(whole["label"]), size):
        yield {name: array[i : i + size] for name, array in whole.items()}


@pytest.mark.parametrize(
    ("sizes", "dtype"), [((16, 8), "uint16"), ((1 << 16,), "uint16"), (((1 << 16) + 1, 4), "uint32")]
)
def test_tokens_come_back_as_written(tmp_path, sizes, dtype):
    whole = examples(25, sizes=sizes)
    whole["ids"][0, 0] = np.array(sizes) - 1  # the largest ids fit
    whole["label"][3] = -1
    write_tokens(tmp_path / "tokens", in_batches(whole, 8), {"vocabulary": sizes, "dataset": "none"})
    assert read_manifest(tmp_path / "tokens") == {
        "vocabulary": list(sizes),
        "dataset": "none",
        "records": 25,
        "positions": 6,
        "sub_codes": len(sizes),
        "dtype": dtype,
    }
    records = token_records(tmp_path / "tokens")
    assert len(records) == 25
    assert records[0]["ids"].dtype == records[0]["label"].dtype == np.int32
    for i in (24, 0, 3):  # random access
        np.testing.assert_array_equal(records[i]["ids"], whole["ids"][i])
        assert records[i]["label"] == whole["label"][i]


def test_a_record_is_compact_and_little_endian(tmp_path):
    write_tokens(
        tmp_path / "tokens", [{"ids": np.array([[[258], [3]]]), "label": np.array([-2])}], {"vocabulary": [300]}
    )
    assert b"\xfe\xff\xff\xff\x02\x01\x03\x00" in (tmp_path / "tokens" / "tokens.array_record").read_bytes()


def test_an_interrupted_write_leaves_nothing_and_can_be_repeated(tmp_path):
    def interrupted():
        yield from in_batches(examples(8), 4)
        raise KeyboardInterrupt

    directory = tmp_path / "deep" / "tokens"
    with pytest.raises(KeyboardInterrupt):
        write_tokens(directory, interrupted(), {"vocabulary": [16, 8]})
    assert not directory.exists()
    assert read_manifest(directory) is None
    with pytest.raises(UserError, match="holds no tokens; run the extract job first"):
        token_records(directory)
    write_tokens(directory, in_batches(examples(4), 4), {"vocabulary": [16, 8]})
    assert len(token_records(directory)) == 4
    assert os.listdir(tmp_path / "deep") == ["tokens"]


def test_finished_tokens_are_not_overwritten(tmp_path):
    write_tokens(tmp_path / "tokens", in_batches(examples(4), 4), {"vocabulary": [16, 8]})
    with pytest.raises(UserError, match="exists already"):
        write_tokens(tmp_path / "tokens", in_batches(examples(8), 4), {"vocabulary": [16, 8]})
    assert len(token_records(tmp_path / "tokens")) == 4


@pytest.mark.parametrize("wrong", [-1, 8])
def test_ids_outside_their_own_vocabulary_are_refused(tmp_path, wrong):
    whole = examples(4)
    whole["ids"][2, 1, 1] = wrong  # fits the first sub-code's vocabulary of 16
    with pytest.raises(ValueError, match="do not fit the vocabulary"):
        write_tokens(tmp_path / "tokens", [whole], {"vocabulary": [16, 8]})
    with pytest.raises(ValueError, match="no tokens"):
        write_tokens(tmp_path / "tokens", [], {"vocabulary": [16, 8]})


@pytest.fixture
def stored(tmp_path):
    whole = examples(24)
    write_tokens(tmp_path / "tokens", in_batches(whole, 10), {"vocabulary": [16, 8]})
    return tmp_path / "tokens", whole["ids"]


def test_token_batches_are_shuffled_epochs_of_matching_ids_and_labels(stored):
    directory, ids = stored
    iterator = iter(token_batches(directory, batch_size=6, seed=0, repeat=True))
    batches = [next(iterator) for _ in range(8)]
    assert batches[0]["ids"].shape == (6, 6, 2)
    assert batches[0]["ids"].dtype == batches[0]["label"].dtype == np.int32
    for batch in batches:
        np.testing.assert_array_equal(batch["ids"], ids[batch["label"]])
    order = np.concatenate([batch["label"] for batch in batches]).tolist()
    assert sorted(order[:24]) == sorted(order[24:]) == list(range(24))
    assert order[:24] != order[24:]
    assert order[:24] != list(range(24))


def test_one_pass_over_the_tokens_is_in_order_and_complete(stored):
    directory, ids = stored
    batches = list(token_batches(directory, batch_size=10, seed=0, repeat=False))
    assert [len(batch["label"]) for batch in batches] == [10, 10, 4]
    np.testing.assert_array_equal(np.concatenate([batch["ids"] for batch in batches]), ids)


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


def test_readers_share_the_tokens(stored):
    directory, _ = stored
    batches = [
        next(iter(token_batches(directory, batch_size=12, seed=0, repeat=True, reader=(index, 2))))
        for index in range(2)
    ]
    whole = next(iter(token_batches(directory, batch_size=24, seed=0, repeat=True)))
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), whole["label"])
