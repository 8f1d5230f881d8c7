"""What counts as equal, and what is told of what does not."""

import numpy as np
import pytest

from jobs.parity.comparison import Recomputed, compare
from jobs.parity.reference import Wanted


def wanted(atol=0.0, rtol=0.0):
    return Wanted("a", "ref.npz", "a", (), "", atol, rtol, "")


def found(got, want, atol=0.0, rtol=0.0, **options):
    ways = got if isinstance(got, dict) else {"": np.asarray(got)}
    return compare(Recomputed(ways, **options), np.asarray(want), wanted(atol, rtol))


def test_the_tolerance_is_absolute_and_relative_to_what_is_wanted():
    assert found([1.0, 100.0], [1.1, 101.0], 0.1001, 0.01).ok
    assert not found([1.0, 101.0], [1.0, 100.0], 0.001, 0.00998).ok
    assert found([0.5], [0.25], 0.5).share == 0.5
    assert found([0.5], [0.25], 0.5).numbers == {"max_abs_diff": 0.25}


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_the_same(odd):
    assert found([odd, 1.0], [odd, 1.0], 1.0, 1.0).ok
    assert not found([1.0, 1.0], [odd, 1.0], 1.0, 1.0).ok
    assert not found([odd, 1.0], [1.0, 1.0], 1.0, 1.0).ok


def test_integers_and_booleans_are_counted():
    finding = found(np.array([1, 2, 3, 5], np.int32), np.array([1, 2, 3, 4]))
    assert (finding.ok, finding.numbers) == (False, {"share_equal": 0.75})
    assert "(3,)" in finding.note
    assert found(np.array([True, False]), np.array([True, False])).numbers == {"share_equal": 1.0}
    assert not found(np.array([True, True]), np.array([True, False])).ok
    near = found(np.array([255, 7], np.uint8), np.array([254, 8], np.uint8), 1.0)
    assert (near.ok, near.numbers) == (True, {"share_equal": 0.0, "max_abs_diff": 1.0})
    assert not found(np.array([0], np.uint8), np.array([255], np.uint8), 1.0).ok


def test_shapes_are_not_broadcast():
    assert "shape" in found(np.ones((2, 1)), np.ones((2, 2)), 1.0).note


def test_the_worst_of_several_ways_counts_and_is_named():
    ways = {"this": np.array([1.0]), "that": np.array([3.0])}
    finding = found(ways, [1.0], 0.5)
    assert not finding.ok
    assert finding.note.startswith("by that: ")
    assert found(ways, [2.0], 1.0).ok


def test_views_apply_to_both_sides():
    assert found([3.0, 1.0, 2.0], [1.0, 2.0, 3.0], view=np.sort).ok
    assert not found([3.0, 1.0, 1.0], [1.0, 2.0, 3.0], view=np.sort).ok


def test_a_wrong_choice_is_told_with_both_margins():
    got = Recomputed({"": np.array([4, 7])}, margins=lambda: np.array([0.5, 0.001]))
    finding = compare(got, np.array([4, 8]), wanted(), np.array([0.5, 0.002]))
    assert "0.001 here, 0.002 there" in finding.note
