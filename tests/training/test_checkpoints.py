"""Which checkpoints are kept, and what damage does."""

import json
import logging
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.errors import UserError
from training.checkpoints import Checkpoints


def tree(value):
    return {"a": jnp.arange(4096.0) * value, "b": {"c": jnp.full((3, 2), value, jnp.int32)}}


def batches():
    return iter(grain.MapDataset.range(100).to_iter_dataset())


def shapes(found):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), found)


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def save(directory, losses, **options):
    """Checkpoints with these held-out losses by step; before each one batch is drawn."""
    checkpoints, iterator = Checkpoints(directory, **options), batches()
    for step, loss in losses.items():
        next(iterator)
        checkpoints.save(step, {"ema": tree(step), "state": tree(-step)}, iterator, loss=loss)
    checkpoints.close()


def restore(directory, iterator=None):
    checkpoints = Checkpoints(directory)
    found = checkpoints.restore(shapes({"ema": tree(0), "state": tree(0)}), iterator)
    checkpoints.close()
    return found


def test_newest_and_best_are_kept(tmp_path):
    save(tmp_path, {10: 0.9, 20: 0.1, 30: 0.5, 40: 0.4, 50: 0.3}, keep_last=2, keep_best=1)
    assert steps(tmp_path) == [20, 40, 50]


def test_newest_only(tmp_path):
    save(tmp_path, {10: 0.9, 20: 0.1, 30: 0.5, 40: 0.4}, keep_last=2, keep_best=0)
    assert steps(tmp_path) == [30, 40]


def test_every_multiple_is_kept_besides_the_newest_and_the_best(tmp_path):
    losses = {5: 0.1, 10: 0.9, 15: 0.8, 20: 0.7, 25: 0.6, 30: 0.5, 33: 0.4}
    save(tmp_path, losses, keep_last=1, keep_every=10, keep_best=1)
    assert steps(tmp_path) == [5, 10, 20, 30, 33]
    save(tmp_path, {35: 0.4, 36: 0.3}, keep_last=1, keep_every=10, keep_best=1)  # also after a restart
    assert steps(tmp_path) == [5, 10, 20, 30, 36]


def test_best_is_still_known_after_a_restart(tmp_path):
    save(tmp_path, {10: 0.9, 20: 0.1, 30: 0.5}, keep_last=2, keep_best=1)
    save(tmp_path, {40: 0.4, 50: 0.3, 60: 0.2}, keep_last=2, keep_best=1)
    assert steps(tmp_path) == [20, 50, 60]


def test_restored_as_saved_with_the_place_in_the_data(tmp_path, same):
    save(tmp_path, {10: 0.9, 20: 0.1}, keep_last=2)
    iterator = batches()
    step, found = restore(tmp_path, iterator)
    assert step == 20
    assert same(found, {"ema": tree(20), "state": tree(-20)})
    assert next(iterator) == 2


def test_nothing_there(tmp_path):
    assert restore(tmp_path) is None


def largest(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(directory):
    path = largest(directory)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bytes(directory):
    path = largest(directory)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - byte for byte in content[middle : middle + 4])
    path.write_bytes(bytes(content))


def delete_data(directory):
    largest(directory).unlink()


def delete_tree(directory):
    shutil.rmtree(directory / "ema")


def garbage_in_checksums(directory):
    (directory / "checksums" / "metadata").write_text("{not json")


def garbage_in_metadata(directory):
    (directory / "state" / "_METADATA").write_text("\x00garbage{")


def garbage_in_data_position(directory):
    for path in (directory / "data").glob("*.json"):
        path.write_text("[")


def garbage_in_step_metadata(directory):
    (directory / "_CHECKPOINT_METADATA").write_text("no json")


def wrong_checksum(directory):
    path = directory / "checksums" / "metadata"
    found = json.loads(path.read_text())
    found["state"][1] += 1
    path.write_text(json.dumps(found))


DAMAGES = [truncate, flip_bytes, delete_data, delete_tree, garbage_in_checksums, garbage_in_metadata,
           garbage_in_data_position, wrong_checksum]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_checkpoint_is_said_and_passed_over(tmp_path, caplog, same, damage):
    save(tmp_path, {10: 0.9, 20: 0.1}, keep_last=2)
    damage(tmp_path / "20")
    iterator = batches()
    with caplog.at_level(logging.WARNING, logger="absl"):
        step, found = restore(tmp_path, iterator)
    assert step == 10
    assert same(found, {"ema": tree(10), "state": tree(-10)})
    assert next(iterator) == 1
    said = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(said) == 1
    assert "20 is damaged and skipped" in said[0]
    assert steps(tmp_path) == [10]
    save(tmp_path, {20: 0.2}, keep_last=2)  # its step can be written again
    assert restore(tmp_path)[0] == 20


def test_broken_step_metadata_does_not_stop_a_restart(tmp_path, same):
    """Orbax's note of what it wrote, without which all that a run needs can be read and checked."""
    save(tmp_path, {10: 0.9, 20: 0.1}, keep_last=2, keep_best=1)
    garbage_in_step_metadata(tmp_path / "20")
    iterator = batches()
    step, found = restore(tmp_path, iterator)
    assert step == 20
    assert same(found, {"ema": tree(20), "state": tree(-20)})
    assert next(iterator) == 2


def test_reading_without_an_iterator_sets_nothing_aside(tmp_path):
    save(tmp_path, {10: 0.9, 20: 0.1}, keep_last=2)
    truncate(tmp_path / "20")
    assert restore(tmp_path)[0] == 10
    assert steps(tmp_path) == [10, 20]


def test_all_damaged(tmp_path):
    save(tmp_path, {10: 0.9, 20: 0.1}, keep_last=2)
    for step in ("10", "20"):
        flip_bytes(tmp_path / step)
    assert restore(tmp_path, batches()) is None
    assert steps(tmp_path) == []


@pytest.mark.parametrize("change", ["shape", "name"])
def test_checkpoint_of_another_model_is_refused_and_left_alone(tmp_path, change):
    save(tmp_path, {10: 0.9}, keep_last=2)
    wanted = tree(0)
    if change == "shape":
        wanted["a"] = jnp.zeros(8)
    else:
        wanted["b"] = {"d": wanted["b"]["c"]}
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="another config"):
        checkpoints.restore(shapes({"ema": wanted, "state": tree(0)}), batches())
    checkpoints.close()
    assert steps(tmp_path) == [10]
    assert not list(tmp_path.glob("damaged*"))
    assert restore(tmp_path)[0] == 10


def test_save_that_was_killed_is_cleaned_up_by_the_next_run(tmp_path):
    save(tmp_path, {10: 0.9}, keep_last=2)
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp")
    assert restore(tmp_path, batches())[0] == 10
    save(tmp_path, {20: 0.8}, keep_last=2)  # which waits for the cleaning up
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]
    assert restore(tmp_path)[0] == 20


def test_reader_leaves_the_save_of_a_running_training_alone(tmp_path):
    """--job=sample beside --job=train: what looks like the rest of a killed save may be one that goes on."""
    save(tmp_path, {10: 0.9}, keep_last=2)
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp")
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.restore(shapes({"ema": tree(0)}))[0] == 10
    reader.close()
    assert (tmp_path / "20.orbax-checkpoint-tmp").exists()


def test_reader_deletes_and_renames_nothing(tmp_path):
    save(tmp_path, {10: 0.9, 20: 0.1, 30: 0.2}, keep_last=3)
    truncate(tmp_path / "30")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.restore(shapes({"ema": tree(0), "state": tree(0)}), batches())[0] == 20
    assert reader.latest() == 30
    reader.close()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def as_saved_by(directory, step, states, readers):
    """Rewrite a checkpoint's places in the data as if several processes had saved them."""
    for path in (directory / str(step) / "data").glob("process_*"):
        path.unlink()
    for index, state in enumerate(states):
        path = directory / str(step) / "data" / f"process_{index}-of-{len(states)}.json"
        path.write_text(json.dumps({"next_index": state}))
    sums = directory / str(step) / "checksums" / "metadata"
    sums.write_text(json.dumps({**json.loads(sums.read_text()), "readers": readers}))


@pytest.mark.parametrize(
    ("states", "readers", "following"),
    [
        ([7], 1, 7),  # one process: exactly where it was
        ([7, 7], 2, 14),  # two that read different records
        ([7, 7, 7, 7], 2, 14),  # four, two by two the same ones
        ([7, 9], 2, 16),  # one of which left out two that were corrupt
        ([7, 7], 1, 7),  # two that read the same ones
    ],
)
def test_place_in_the_data_is_that_of_all_readers_together(tmp_path, states, readers, following):
    save(tmp_path, {10: 0.9}, keep_last=1)
    as_saved_by(tmp_path, 10, states, readers)
    iterator = batches()
    assert restore(tmp_path, iterator)[0] == 10
    assert next(iterator) == following


def test_place_in_the_data_of_which_a_process_is_missing_is_damage(tmp_path):
    save(tmp_path, {10: 0.9, 20: 0.8}, keep_last=2)
    as_saved_by(tmp_path, 20, [7, 7], 2)
    (tmp_path / "20" / "data" / "process_0-of-2.json").unlink()
    iterator = batches()
    assert restore(tmp_path, iterator)[0] == 10
    assert next(iterator) == 1


def test_checkpoint_of_a_version_that_did_not_write_its_readers(tmp_path):
    save(tmp_path, {10: 0.9}, keep_last=1)
    sums = tmp_path / "10" / "checksums" / "metadata"
    found = json.loads(sums.read_text())
    assert found.pop("readers") == 1
    sums.write_text(json.dumps(found))
    iterator = batches()
    assert restore(tmp_path, iterator)[0] == 10
    assert next(iterator) == 1


def test_checksum_is_of_every_tree_by_itself(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.checksum(tree(1)) != checkpoints.checksum(tree(2))
    assert checkpoints.checksum(tree(1)) == checkpoints.checksum(jax.tree.map(np.asarray, tree(1)))
    checkpoints.close()
