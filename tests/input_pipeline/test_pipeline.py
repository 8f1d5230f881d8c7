import itertools
import json

import numpy as np
import pytest

from input_pipeline.pipeline import ALL, image_batches, records_read, state_after
from input_pipeline.transforms import to_uint8
from models.errors import UserError
from models.sharding import Reader


@pytest.fixture
def numbered(section, tmp_path):
    """A section whose 40 training images are 4 x 4, record i filled with i and labelled i % 4."""
    for name in ("train", "test"):
        values = np.arange(40 if name == "train" else 6, dtype=np.uint8)
        images = values[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=values.astype(np.int64) % 4)
    return section(name="npz", path=str(tmp_path), resolution=4)


def stream(data, split="train", *, batch_size=8, seed=0, augment=False, repeat=True, reader=ALL):
    return iter(
        image_batches(data, split, batch_size=batch_size, seed=seed, augment=augment, repeat=repeat, reader=reader)
    )


def numbers(batches):
    """Which records the batches hold, in order."""
    return [int(value) for batch in batches for value in to_uint8(batch["image"])[:, 0, 0, 0]]


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_batches_are_float_images_and_int_labels(numbered):
    batch = next(stream(numbered))
    assert batch["image"].shape == (8, 4, 4, 1)
    assert batch["image"].dtype == np.float32
    assert batch["label"].dtype == np.int32
    assert batch["label"].tolist() == [n % 4 for n in numbers([batch])]


def test_one_pass_is_in_order_and_ends_with_a_smaller_batch(numbered):
    batches = list(stream(numbered, "test", batch_size=4, repeat=False))
    assert [len(batch["label"]) for batch in batches] == [4, 2]
    assert numbers(batches) == list(range(6))


def test_every_epoch_is_a_new_permutation_that_the_seed_decides(numbered):
    order = numbers(take(stream(numbered), 15))
    epochs = [order[i : i + 40] for i in (0, 40, 80)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(40)]}) == 4
    assert numbers(take(stream(numbered), 15)) == order
    assert numbers(take(stream(numbered, seed=1), 15)) != order


def test_epochs_follow_on_another_without_losing_the_remainder(numbered):
    order = numbers(take(stream(numbered, batch_size=7), 12))[:80]
    assert sorted(order[:40]) == sorted(order[40:]) == list(range(40))


def test_a_batch_may_be_larger_than_the_dataset(numbered):
    assert np.bincount(numbers([next(stream(numbered, batch_size=80))])).tolist() == [2] * 40


@pytest.mark.parametrize("resolution", [16, 72])  # read at once, and ahead in threads
def test_augmentation_is_decided_by_the_seed_and_differs_between_epochs(section, resolution):
    data = section(resolution=resolution, crop_scale=(0.5, 1.0), shift=1, flip=True)
    first, second = (take(stream(data, batch_size=64, augment=True), 3) for _ in range(2))
    assert_same(first, second)
    other = take(stream(data, batch_size=64, augment=True, seed=1), 3)
    assert not np.array_equal(first[0]["image"], other[0]["image"])


def test_the_same_image_is_augmented_anew_in_the_next_epoch(section, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (1, 16, 16, 1), np.uint8), labels=[0])
    data = section(name="npz", path=str(tmp_path / "a.npz"), resolution=16, shift=3)
    batch = next(stream(data, batch_size=30, augment=True))
    assert len({image.tobytes() for image in batch["image"]}) > 15


def test_each_augmentation_happens_only_where_it_is_asked_for(section):
    plain = next(stream(section(), batch_size=32))["image"]
    np.testing.assert_array_equal(next(stream(section(), batch_size=32, augment=True))["image"], plain)
    flipped = next(stream(section(flip=True), batch_size=32, augment=True))["image"]
    for image, original in zip(flipped, plain):
        assert np.array_equal(image, original) or np.array_equal(image, original[:, ::-1])
    assert not np.array_equal(flipped, plain)
    for fields in ({"shift": 1}, {"crop_scale": (0.5, 0.9)}):
        assert not np.array_equal(next(stream(section(**fields), batch_size=32, augment=True))["image"], plain)
        np.testing.assert_array_equal(next(stream(section(**fields), batch_size=32))["image"], plain)


@pytest.mark.parametrize("resolution", [16, 72])
@pytest.mark.parametrize("batches", [0, 3, 31])  # at the start, within the first epoch, within the second
def test_a_restored_state_continues_bit_for_bit(section, resolution, batches):
    data = section(resolution=resolution, crop_scale=(0.5, 1.0), shift=1, flip=True)
    iterator = stream(data, batch_size=48, augment=True)
    take(iterator, batches)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 3)
    fresh = stream(data, batch_size=48, augment=True)
    fresh.set_state(state)
    assert_same(take(fresh, 3), expected)
    iterator.set_state(state)
    assert_same(take(iterator, 3), expected)


# Corrupt images


@pytest.fixture
def broken(section, tmp_path, write_folder):
    """Twenty pictures in a folder, of which dog/003.png is cut off."""
    write_folder(tmp_path, count=10)
    file = tmp_path / "dog" / "003.png"
    file.write_bytes(file.read_bytes()[:50])
    return section(name="folder", path=str(tmp_path), channels=3)


def test_a_corrupt_image_is_an_error_that_names_the_file_and_the_field(broken):
    with pytest.raises(UserError, match=r"dog.003\.png is corrupt, which makes 1;.*data\.corrupt_limit"):
        take(stream(broken), 6)


def test_a_corrupt_image_within_the_limit_is_skipped_and_counted_once(broken, caplog):
    broken.corrupt_limit = 1
    order = numbers(take(stream(broken, batch_size=17), 3))
    kept = sorted({*range(9), *range(20, 29)} - {23})  # the tenth of each class is test
    assert [sorted(order[i : i + 17]) for i in (0, 17, 34)] == [kept] * 3
    assert [record.getMessage() for record in caplog.records] == [
        f"Skipping the corrupt image {broken.path}/dog/003.png (1 so far)."
    ]


def test_the_limit_counts_distinct_images(broken, tmp_path):
    broken.corrupt_limit = 1
    other = tmp_path / "cat" / "005.png"
    other.write_bytes(other.read_bytes()[:50])
    with pytest.raises(UserError, match="which makes 2"):
        take(stream(broken), 6)


def test_nothing_but_corrupt_images_is_an_error_under_any_limit(section, tmp_path, write_folder):
    write_folder(tmp_path, classes=("cat",), count=2)
    for file in (tmp_path / "cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="corrupt"):
        next(stream(section(name="folder", path=str(tmp_path), corrupt_limit=100)))


def test_a_restored_state_continues_bit_for_bit_past_skipped_images(broken):
    broken.corrupt_limit, broken.shift, broken.crop_scale = 1, 1, (0.5, 1.0)
    iterator = stream(broken, batch_size=3, augment=True)
    for _ in range(14):
        state = iterator.get_state()
        expected = next(iterator)
        fresh = stream(broken, batch_size=3, augment=True)
        fresh.set_state(state)
        assert_same([next(fresh)], [expected])


# Readers


def test_readers_share_an_epoch_without_overlap(numbered):
    shares = [numbers(take(stream(numbered, batch_size=5, reader=Reader((index,), 2)), 8)) for index in range(2)]
    for epoch in (slice(0, 20), slice(20, 40)):
        assert sorted(shares[0][epoch] + shares[1][epoch]) == list(range(40))
    assert set(shares[0][:20]) != set(shares[0][20:])  # a share is not a fixed half of the dataset


def test_readers_share_one_pass_in_order(numbered):
    shares = [
        numbers(stream(numbered, "test", batch_size=2, repeat=False, reader=Reader((index,), 2))) for index in range(2)
    ]
    assert shares == [[0, 1, 4, 5], [2, 3]]
    shares = [
        numbers(stream(numbered, "test", batch_size=4, repeat=False, reader=Reader((index,), 4))) for index in range(4)
    ]
    assert shares == [[0, 1, 2, 3], [4, 5], [], []]
    held = ((0, 2), (1, 3))
    shares = [numbers(stream(numbered, "test", batch_size=2, repeat=False, reader=Reader(rows, 4))) for rows in held]
    assert shares == [[0, 2, 4], [1, 3, 5]]


def test_the_batches_of_several_readers_are_rows_of_the_batch_of_one(section):
    data = section(shift=2, crop_scale=(0.5, 1.0))
    whole = take(stream(data, batch_size=32, augment=True), 3)
    for held in ((0,), (1,), (2,), (3,), (0, 2), (1, 3)):  # parts of four; on a torus they need not be neighbours
        part = take(stream(data, batch_size=8 * len(held), augment=True, reader=Reader(held, 4)), 3)
        rows = np.concatenate([np.arange(8 * index, 8 * index + 8) for index in held])
        assert_same(part, [{name: array[rows] for name, array in batch.items()} for batch in whole])


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (2, 3)])
def test_other_readers_go_on_with_the_next_records(section, before, after):
    def streams(count):
        data = section(shift=2)
        return [
            stream(data, batch_size=24 // count, augment=True, reader=Reader((index,), count)) for index in range(count)
        ]

    def joined(readers, count):
        parts = [take(reader, count) for reader in readers]
        return [{name: np.concatenate([batch[name] for batch in row]) for name in row[0]} for row in zip(*parts)]

    expected = joined(streams(1), 8)
    first = streams(before)
    assert_same(joined(first, 5), expected[:5])
    read = sum(records_read(json.loads(json.dumps(reader.get_state()))) for reader in first)
    second = streams(after)
    for reader in second:
        reader.set_state(state_after(read, after))
    assert_same(joined(second, 3), expected[5:])


# Mistakes


def test_wrong_fields_are_told(section):
    with pytest.raises(UserError, match=r"data\.crop_scale is \(0\.5, 1\.5\)"):
        stream(section(crop_scale=(0.5, 1.5)), augment=True)
    with pytest.raises(UserError, match=r"data\.channels is 2"):
        next(stream(section(channels=2)))


def test_a_label_outside_the_classes_reaches_the_caller_from_the_threads(section, tmp_path):
    images, labels = np.zeros((30, 4, 4, 1), np.uint8), np.arange(30) % 3 - 1
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(UserError, match="label -1; labels are 0 to 1"):
        next(stream(section(name="npz", path=str(tmp_path / "a.npz"), resolution=72)))
