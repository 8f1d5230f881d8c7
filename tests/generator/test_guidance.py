import jax.numpy as jnp
import numpy as np
import pytest

from generator.sampling.distribution import guided
from generator.sampling.guidance import SCHEDULES, guidance_scales, runs
from models.errors import UserError


def scales(schedule="constant", *, positions=9, scale=3.0, interval=(0.0, 1.0), power=1.0):
    return guidance_scales(positions, scale=scale, schedule=schedule, interval=interval, power=power)


BY_HAND = {  # at progress 0, 1/4, 1/2, 3/4 and 1, of a scale of 3
    "constant": [3, 3, 3, 3, 3],
    "linear": [1, 1.5, 2, 2.5, 3],
    "half_linear": [1, 2, 3, 3, 3],
    "cosine": [1, 1.2928932, 2, 2.7071068, 3],
    "sine": [1, 1.7653669, 2.4142136, 2.8477591, 3],
    "log": [1, 1.7147480, 2.2402290, 2.6559779, 3],
    "triangular": [1, 2, 3, 2, 1],
    "reversed_linear": [3, 2.5, 2, 1.5, 1],
    "reversed_cosine": [3, 2.7071068, 2, 1.2928932, 1],
    "flipped_cosine": [2, 1.7071068, 1, 0.2928932, 0],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_have_the_values_that_their_formulas_give_by_hand(schedule):
    np.testing.assert_allclose(scales(schedule, positions=5), BY_HAND[schedule], atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_where_a_schedule_is_off_it_is_so_exactly(schedule):
    np.testing.assert_array_equal(scales(schedule, positions=5) == 1, np.array(BY_HAND[schedule]) == 1)


@pytest.mark.parametrize(
    ("schedule", "power", "expected"),
    [
        ("linear", 2.0, [1, 1.125, 1.5, 2.125, 3]),  # ELM's square
        ("linear", 0.5, [1, 2, 2.4142136, 2.7320508, 3]),  # ELM's square root
        ("cosine", 2.0, [1, 1.0192147, 1.2928932, 2.1950903, 3]),  # RAR's power-cosine
        ("cosine", 0.0, [3, 3, 3, 3, 3]),
        ("reversed_linear", 2.0, [3, 2.875, 2.5, 1.875, 1]),
    ],
)
def test_a_power_of_progress_delays_or_hastens_a_schedule(schedule, power, expected):
    np.testing.assert_allclose(scales(schedule, positions=5, power=power), expected, atol=1e-6)


def test_the_interval_is_of_progress_without_its_power():
    np.testing.assert_allclose(scales("linear", positions=5, power=2.0, interval=(0.5, 1.0)), [1, 1, 1.5, 2.125, 3])


@pytest.mark.parametrize("power", [-1.0, float("nan")])
def test_an_impossible_power_is_the_users_mistake(power):
    with pytest.raises(UserError, match="guidance_power"):
        scales("linear", power=power)


def test_a_step_is_constant_within_an_interval_that_lasts_to_the_end():
    np.testing.assert_allclose(scales(scale=3.75, interval=(0.25, 1.0)), [1, 1] + [3.75] * 7)


def test_scales_of_the_other_conventions_are_one_more():
    c, u = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32) * 3
    for other in (-0.5, 0.0, 0.5, 1.5, 7.0):
        found = guided(jnp.asarray(c), jnp.asarray(u), 1 + other)
        np.testing.assert_allclose(found, (1 + other) * c - other * u, atol=2e-5)  # VAR's t
        np.testing.assert_allclose(found, c + other * (c - u), atol=2e-5)  # MaskGIT's w
    # VAR's own schedule, t k / (K - 1), is the linear one.
    t = 1.5 * np.arange(5)[:, None] / 4
    found = guided(jnp.asarray(c), jnp.asarray(u), jnp.asarray(scales("linear", positions=5, scale=2.5)))
    np.testing.assert_allclose(found, (1 + t) * c - t * u, atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_scale_of_one_is_off_everywhere(schedule):
    np.testing.assert_array_equal(scales(schedule, scale=1.0), np.ones(9, np.float32))


def test_outside_its_interval_guidance_is_off():
    np.testing.assert_allclose(scales(interval=(0.25, 0.5)), [1, 1, 3, 3, 3, 1, 1, 1, 1])
    np.testing.assert_allclose(scales("linear", interval=(0.5, 1.0)), [1, 1, 1, 1, 2, 2.25, 2.5, 2.75, 3])


def test_a_single_position_has_a_scale():
    assert scales(positions=1).tolist() == [3.0]


def test_an_unknown_schedule_offers_the_nearest():
    with pytest.raises(UserError, match="unknown guidance schedule 'cosin'; did you mean 'cosine'"):
        scales("cosin")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2, 2, 2], [(0, 3, True)]),
        ([1, 1], [(0, 2, False)]),
        ([1, 1, 3, 1, 1, 0], [(0, 2, False), (2, 3, True), (3, 5, False), (5, 6, True)]),
        ([1, 2, 2, 1, 3, 1], [(0, 5, True), (5, 6, False)]),  # a single one before guidance is computed as if guided
        ([5], [(0, 1, True)]),
    ],
)
def test_runs_cut_where_guidance_is_switched(values, expected):
    assert runs(np.array(values, np.float32)) == expected
