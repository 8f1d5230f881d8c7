import numpy as np
import pytest

from generator.sampling.guidance import SCHEDULES, guidance_scales, runs
from models.errors import UserError


def scales(schedule="constant", *, positions=9, scale=3.0, interval=(0.0, 1.0)):
    return guidance_scales(positions, scale=scale, schedule=schedule, interval=interval)


def test_schedules_go_from_their_start_to_the_scale():
    np.testing.assert_allclose(scales("constant"), np.full(9, 3.0))
    np.testing.assert_allclose(scales("linear"), 1 + np.arange(9) / 4)
    cosine = scales("cosine")
    np.testing.assert_allclose(cosine[[0, 2, 4, 8]], [1, 1 + (1 - np.cos(np.pi / 4)), 2, 3], rtol=1e-6)
    assert (np.diff(cosine) > 0).all()


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
