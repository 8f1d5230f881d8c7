import jax.numpy as jnp
import numpy as np
import pytest

from models.rotary import BASE, rotary_table, rotate

GRID = np.stack(np.divmod(np.arange(12), 4), axis=-1).astype(np.int32)  # 3 rows of 4
WIDTH = 16


def vectors(seed, slots=12):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, slots, 3, WIDTH)), jnp.float32)


def complex_rotation(x, positions):
    """Adjacent pairs as complex numbers: the first half turns with the row, the second with the column."""
    x = np.asarray(x, np.float64)
    pairs = x[..., ::2] + 1j * x[..., 1::2]  # (B, T, H, WIDTH / 2)
    for slot, (row, column) in enumerate(positions):
        for j in range(WIDTH // 4):
            frequency = BASE ** (-2 * j / (WIDTH / 2))
            pairs[:, slot, :, j] *= np.exp(1j * row * frequency)
            pairs[:, slot, :, WIDTH // 4 + j] *= np.exp(1j * column * frequency)
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


def test_adjacent_pairs_turn_as_complex_numbers():
    x = vectors(0)
    turned = rotate(x, rotary_table(GRID, WIDTH, 0.0))
    np.testing.assert_allclose(turned, complex_rotation(x, GRID), atol=1e-5)


def test_positions_may_differ_by_sample():
    x = vectors(0)
    positions = np.stack([GRID, GRID[::-1]])
    turned = np.asarray(rotate(x, rotary_table(positions, WIDTH, 0.0)))
    for sample in range(2):
        expected = complex_rotation(x[sample : sample + 1], positions[sample])
        np.testing.assert_allclose(turned[sample : sample + 1], expected, atol=1e-5)


def test_scores_depend_on_differences_of_rows_and_columns_only():
    q, k = vectors(1)[:1, :1], vectors(2)[:1, :1]

    def score(q_at, k_at):
        turn = lambda x, at: np.asarray(rotate(x, rotary_table(np.array([at], np.int32), WIDTH, 0.0)))  # noqa: E731
        return (turn(q, q_at) * turn(k, k_at)).sum(-1)

    for difference in [(0, 0), (1, 0), (0, 1), (-2, 3), (3, -2)]:
        here = score((3 + difference[0], 3 + difference[1]), (3, 3))
        there = score((8 + difference[0], 5 + difference[1]), (8, 5))
        np.testing.assert_allclose(here, there, atol=2e-5)
    row, column, both = score((4, 3), (3, 3)), score((3, 4), (3, 3)), score((4, 4), (3, 3))
    for one, other in [(row, column), (row, both), (column, both), (row, score((2, 3), (3, 3)))]:
        assert np.abs(one - other).min() > 1e-3


@pytest.mark.parametrize(("nowhere", "kept"), [(0.0, 0.0), (1.0, 1.0)])
def test_slots_that_lie_nowhere_vanish_or_stay(nowhere, kept):
    positions = np.concatenate([np.full((1, 2), -1, np.int32), GRID[:11]])
    x = vectors(3)
    turned = np.asarray(rotate(x, rotary_table(positions, WIDTH, nowhere)))
    np.testing.assert_array_equal(turned[:, 0], x[:, 0] * kept)
    np.testing.assert_array_equal(turned[:, 1], x[:, 1])  # (0, 0) is a place: no turn, and never 0
    assert np.abs(turned[:, 2] - x[:, 2]).max() > 0.1
