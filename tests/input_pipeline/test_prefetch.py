import json
import threading
import time

import grain
import jax
import numpy as np
import pytest

from input_pipeline.prefetch import prefetch
from models.errors import UserError


def numbers(count=None):
    """Batches [0, 1], [2, 3], ..., shuffled if they go on forever."""
    records = grain.MapDataset.range(20) if count is None else grain.MapDataset.range(count)
    records = records.seed(3).shuffle().repeat(None) if count is None else records
    return records.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)).batch(2)


def take(iterator, count):
    return [np.asarray(next(iterator)).tolist() for _ in range(count)]


@pytest.fixture
def iterate():
    """Makes iterators and closes them in the end."""
    made = []

    def make(dataset, place=jax.device_put, **options):
        made.append(prefetch(dataset, place, **options))
        return made[-1]

    yield make
    for iterator in made:
        iterator.close()


def wait_until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_every_batch_comes_once_in_order_and_placed(iterate, depth):
    iterator = iterate(numbers(9), depth=depth)
    batches = list(iterator)
    assert all(isinstance(batch, jax.Array) for batch in batches)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    with pytest.raises(StopIteration):
        next(iterator)


def test_batches_are_placed_ahead_in_another_thread_but_no_further_than_asked(iterate):
    placed = []

    def place(batch):
        placed.append(threading.current_thread())
        return batch

    iterator = iterate(numbers(), place, depth=2)
    next(iterator)
    wait_until(lambda: len(placed) == 4)  # one handed out, two that lie ready, one in the making
    time.sleep(0.05)
    assert len(placed) == 4
    assert threading.current_thread() not in placed
    next(iterator)
    wait_until(lambda: len(placed) == 5)


def test_the_state_is_of_what_was_handed_out_and_resumes_bit_for_bit(iterate):
    placed = []

    def place(batch):
        placed.append(batch)
        return batch

    plain = iter(numbers())
    iterator = iterate(numbers(), place, depth=2)
    for taken in (0, 11, 22):  # of ten batches an epoch
        state = json.loads(json.dumps(iterator.get_state()))
        assert state == plain.get_state()
        wait_until(lambda taken=taken: not taken or len(placed) > taken)  # it is ahead of what it says
        other = iterate(numbers())
        other.set_state(state)
        expected = take(plain, 11)
        assert take(other, 11) == expected
        assert take(iterator, 11) == expected


def test_an_iterator_that_ran_ahead_can_be_set_back(iterate):
    iterator = iterate(numbers())
    state, first = iterator.get_state(), take(iterator, 3)
    iterator.set_state(state)
    assert take(iterator, 3) == first


def test_its_place_is_saved_and_restored_like_that_of_grains_own_iterators(iterate, tmp_path):
    handler = grain.checkpoint.CheckpointHandler()
    iterator = iterate(numbers())
    take(iterator, 5)
    handler.save(tmp_path, iterator)
    expected = take(iterator, 4)
    restored = handler.restore(tmp_path, iterate(numbers()))
    assert take(restored, 4) == expected


@pytest.mark.parametrize("where", ["read", "place"])
def test_an_error_is_raised_where_its_batch_would_have_come(iterate, where):
    def bad(batch):
        if 6 in np.asarray(batch):
            raise UserError("six is damaged")
        return batch

    dataset = numbers(20).map(bad) if where == "read" else numbers(20)
    iterator = iterate(dataset, bad if where == "place" else jax.device_put)
    assert take(iterator, 3) == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UserError, match="six is damaged"):
        next(iterator)


def test_closing_ends_the_thread_whatever_it_is_at():
    before = set(threading.enumerate())
    started = threading.Event()

    def slow(batch):
        started.set()
        time.sleep(0.05)
        return batch

    for place in (slow, lambda batch: batch):  # within a batch, and waiting for room
        iterator = prefetch(numbers(), place)
        next(iterator)
        started.wait(60)
        ahead = [
            thread for thread in threading.enumerate() if "thread-prefetch" in thread.name and thread not in before
        ]
        assert ahead
        iterator.close()
        assert not any(thread.is_alive() for thread in ahead)
