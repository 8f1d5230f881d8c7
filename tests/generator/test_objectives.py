import jax.numpy as jnp
import numpy as np
import pytest

from generator.layouts import LAYOUTS
from generator.objectives import progressive
from models.errors import UserError
from models.tokens import Grid, Scales, TokenSpec

GRIDS = tuple(Grid(side, side) for side in (1, 2, 3, 4))
LAYOUT = LAYOUTS["scales"](TokenSpec(Scales(GRIDS), (7,), 4), 1)
OPTIONS = {"steps": 1000, "warmup": 100, "until": 0.7, "first": 1, "ramp": 0.05}


def by_scale(step):
    """The weight of each scale's tokens, which is one for all of them."""
    weight = np.asarray(progressive(LAYOUT, **OPTIONS)(jnp.asarray(step)))
    parts = np.split(weight, np.cumsum([grid.positions for grid in GRIDS])[:-1])
    assert all((part == part[0]).all() for part in parts)
    return [float(part[0]) for part in parts]


def test_later_scales_count_later_and_a_new_one_little_at_first():
    assert by_scale(0) == by_scale(100) == [1, 1, 0, 0]
    # Two scales are added over 600 steps: the first where the rounded share reaches 1 / 2 of them, the last at 3 / 2.
    assert by_scale(249) == [1, 1, 0, 0]
    first = next(step for step in range(250, 260) if by_scale(step)[2] > 0)
    assert first in (250, 251)  # the half is rounded to the even number
    np.testing.assert_allclose(by_scale(first), [1, 1, 0.02, 0])
    np.testing.assert_allclose(by_scale(first + 24), [1, 1, 0.5, 0])
    assert by_scale(first + 49) == by_scale(549) == [1, 1, 1, 0]
    assert by_scale(551) == by_scale(999) == by_scale(5000) == [1, 1, 1, 1]


def test_without_it_nothing_is_weighted():
    assert progressive(LAYOUT, **(OPTIONS | {"until": 0.0})) is None


@pytest.mark.parametrize("options", [{"first": 3}, {"first": -1}, {"until": 0.1}])
def test_stages_that_do_not_fit_are_refused(options):
    with pytest.raises(UserError, match="progressive training from time"):
        progressive(LAYOUT, **(OPTIONS | options))
