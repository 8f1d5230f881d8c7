import numpy as np
import pytest

from generator.layouts import LAYOUTS
from models import masks
from models.tokens import Grid, TokenSpec

SPEC = TokenSpec(Grid(3, 5), (7,))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_token_is_predicted_once_and_never_from_itself_or_what_comes_later(name):
    layout = LAYOUTS[name](SPEC)
    assert sorted(layout.target[layout.target >= 0]) == list(range(15))
    assert (np.diff(layout.time) >= 0).all()
    mask = np.asarray(masks.visible(layout.visibility))
    time_of = {layout.target[slot]: layout.time[slot] for slot in range(layout.slots) if layout.target[slot] >= 0}
    for slot in range(layout.slots):
        for key in np.flatnonzero(mask[slot]):
            if layout.source[key] >= 0:
                assert time_of[layout.source[key]] < layout.time[slot]


@pytest.mark.parametrize("name", LAYOUTS)
def test_tokens_lie_where_the_raster_puts_them(name):
    layout = LAYOUTS[name](SPEC)
    for slot in range(layout.slots):
        token = layout.source[slot]
        expected = (-1, -1) if token < 0 else (token // 5, token % 5)
        assert tuple(layout.position[slot]) == expected


def test_raster_feeds_the_condition_and_then_every_token_but_the_last():
    layout = LAYOUTS["raster"](SPEC)
    np.testing.assert_array_equal(layout.source, np.arange(15) - 1)
    np.testing.assert_array_equal(layout.target, np.arange(15))
    np.testing.assert_array_equal(masks.visible(layout.visibility), np.tril(np.ones((15, 15), bool)))
