import numpy as np
import pytest

from generator.layouts import LAYOUTS
from models.errors import UserError
from models.tokens import Grid, Scales, TokenSpec

GRIDS = (Grid(1, 1), Grid(2, 3), Grid(3, 5))
SPECS = {"raster": TokenSpec(Grid(3, 5), (7,)), "scales": TokenSpec(Scales(GRIDS), (7,), 4)}
CASES = [("raster", 1), ("raster", 4), ("scales", 1)]


@pytest.mark.parametrize(("name", "entries"), CASES)
def test_every_token_is_predicted_once_and_in_order(name, entries):
    layout = LAYOUTS[name](SPECS[name], entries)
    np.testing.assert_array_equal(layout.target[layout.predicting], np.arange(SPECS[name].positions))
    assert (np.diff(layout.time) >= 0).all()
    assert layout.time[0] == 0
    assert layout.groups[0][0] == 0
    assert layout.groups[-1][1] == layout.slots
    assert all(start == stop for (_, start), (stop, _) in zip(layout.groups, layout.groups[1:]))


@pytest.mark.parametrize(("name", "entries"), CASES)
def test_the_condition_feeds_the_slots_of_the_first_call_and_the_feed_all_others(name, entries):
    layout = LAYOUTS[name](SPECS[name], entries)
    assert layout.conditions == layout.groups[0][1]
    np.testing.assert_array_equal(layout.source < 0, layout.time == 0)
    np.testing.assert_array_equal(layout.source[layout.conditions :], np.arange(layout.slots - layout.conditions))
    assert set(-1 - layout.source[: layout.conditions]) == set(range(entries))


@pytest.mark.parametrize("entries", [1, 4])
def test_no_token_of_a_raster_is_predicted_from_itself_or_what_comes_later(entries):
    layout = LAYOUTS["raster"](SPECS["raster"], entries)
    mask = np.asarray(layout.visibility.as_array())
    for slot, key in zip(*np.nonzero(mask)):
        assert layout.source[key] < max(layout.target[slot], 0)
    np.testing.assert_array_equal(mask, np.tril(np.ones((14 + entries, 14 + entries), bool)))


@pytest.mark.parametrize("entries", [1, 4])
def test_tokens_lie_where_the_raster_puts_them(entries):
    layout = LAYOUTS["raster"](SPECS["raster"], entries)
    np.testing.assert_array_equal(layout.position[:entries], -1)
    expected = [divmod(token, 5) for token in range(14)]
    np.testing.assert_array_equal(layout.position[entries:], expected)


def test_raster_feeds_the_condition_and_then_every_token_but_the_last():
    layout = LAYOUTS["raster"](SPECS["raster"], 1)
    np.testing.assert_array_equal(layout.source, np.arange(15) - 1)
    np.testing.assert_array_equal(layout.target, np.arange(15))
    assert layout.feed == "tokens"


def test_a_token_of_a_scale_sees_its_scale_and_those_before():
    layout = LAYOUTS["scales"](SPECS["scales"], 1)
    scale = np.repeat([0, 1, 2], [1, 6, 15])
    np.testing.assert_array_equal(layout.time, scale)
    np.testing.assert_array_equal(layout.visibility.as_array(), scale[None, :] <= scale[:, None])
    np.testing.assert_array_equal(layout.position[1:7], [divmod(cell, 3) for cell in range(6)])
    np.testing.assert_array_equal(layout.position[7:], [divmod(cell, 5) for cell in range(15)])
    assert layout.groups == [(0, 1), (1, 7), (7, 22)]
    assert SPECS["scales"].shape.bounds == ((0, 1), (1, 7), (7, 22))
    assert layout.feed == "features"


@pytest.mark.parametrize(
    ("name", "spec", "entries"), [("raster", "scales", 1), ("scales", "raster", 1), ("scales", "scales", 2)]
)
def test_tokens_that_do_not_fit_a_layout_are_refused(name, spec, entries):
    with pytest.raises(UserError, match=f"layout '{name}' is for tokens"):
        LAYOUTS[name](SPECS[spec], entries)
