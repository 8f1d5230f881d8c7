import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.layers import Embedding, LayerNorm, Linear, RMSNorm, drop_path, dropout

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)
NORMAL = nnx.initializers.normal(0.5)


def test_rms_norm_divides_by_the_root_of_the_mean_square_plus_epsilon():
    norm = RMSNorm(16, epsilon=0.1)
    norm.scale[...] = jnp.arange(16.0)
    wide = np.asarray(X, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.1) * np.arange(16)
    np.testing.assert_allclose(norm(X), expected, atol=1e-5)


def test_rms_norm_of_bfloat16_has_statistics_in_float32():
    # In bfloat16 the mean of 256 squares of 1 + 2 ** -5 would be off by 2 ** -8.
    x = jnp.full((1, 256), 1 + 2**-5, jnp.bfloat16).at[0, 0].set(300)
    out = RMSNorm(256)(x)
    assert out.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean() + 1e-5)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_an_einsum_over_the_last_axis(bias):
    layer = Linear(16, 5, ("embed", "mlp"), bias=bias, init=NORMAL, dtype=jnp.float32, rngs=nnx.Rngs(0))
    if bias:
        layer.bias[...] = jnp.arange(5.0)
    expected = np.einsum("bti,io->bto", np.asarray(X, np.float64), np.asarray(layer.kernel[...], np.float64))
    expected += np.arange(5) * bias
    np.testing.assert_allclose(layer(X), expected, atol=1e-5)
    np.testing.assert_allclose(layer(X[0, 0]), expected[0, 0], atol=1e-5)


def test_linear_keeps_float32_parameters_and_computes_in_its_dtype():
    layer = Linear(16, 5, ("embed", "mlp"), init=NORMAL, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer.kernel[...].dtype == jnp.float32
    assert layer(X).dtype == jnp.bfloat16


def test_embedding_looks_rows_up():
    table = Embedding(7, 4, init=NORMAL, dtype=jnp.float32, rngs=nnx.Rngs(0))
    ids = jnp.array([[6, 0], [3, 3]])
    np.testing.assert_array_equal(table(ids), np.asarray(table.table[...])[ids])


@pytest.mark.parametrize(("rate", "columns"), [(0.2, 500), (0.1, 501), (0.75, 2), (0.5, 1)])
def test_dropout_zeroes_a_share_and_keeps_the_mean(rate, columns):
    x = jnp.ones((100_000 // columns, columns))
    out = np.asarray(dropout(x, rate, jax.random.key(0)))
    share = round((1 - rate) * 2**16) / 2**16
    np.testing.assert_allclose(np.unique(out), [0, 1 / share], rtol=1e-7)
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs((out == 0).mean() - rate) < 4 * deviation
    assert abs(out.mean() - 1) < 4 * deviation / (1 - rate)


def test_neighbours_drop_out_independently():
    """Two entries share a random word: all four cases of a pair must be as common as chance has it."""
    out = np.asarray(dropout(jnp.ones((200, 500)), 0.3, jax.random.key(1))) > 0
    for first, second in [(out[:, ::2], out[:, 1::2]), (out[:, 1:-1:2], out[:, 2::2]), (out[::2], out[1::2])]:
        for a, b, expected in [(True, True, 0.49), (True, False, 0.21), (False, True, 0.21), (False, False, 0.09)]:
            found = ((first == a) & (second == b)).mean()
            assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / first.size)


def test_dropout_is_off_without_a_key_or_a_rate():
    np.testing.assert_array_equal(dropout(X, 0.5, None), X)
    np.testing.assert_array_equal(dropout(X, 0.0, jax.random.key(0)), X)
    np.testing.assert_array_equal(dropout(X, 1e-6, jax.random.key(0)), X)  # less than one of 2^16


def test_dropout_of_bfloat16_is_scaled_as_exactly_as_bfloat16_allows():
    x = jax.random.normal(jax.random.key(0), (2000, 500), jnp.bfloat16)
    out, wide = (np.asarray(values, np.float64) for values in (dropout(x, 0.1, jax.random.key(1)), x))
    kept = out != 0
    slope = (out * wide)[kept].sum() / (wide**2)[kept].sum()
    np.testing.assert_allclose(slope, 2**16 / round(0.9 * 2**16), rtol=2e-4)  # the rounded share is 2e-3 off


def test_layer_norm_has_mean_0_and_variance_1_but_for_epsilon():
    wide = np.asarray(X, np.float64) * 3 + 5
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(LayerNorm(16, epsilon=0.1)(X * 3 + 5), expected, atol=1e-5)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((20_000, 2, 3))
    dropped = np.asarray(drop_path(x, jnp.float32(0.2), jax.random.key(0)))
    assert ((dropped == 0) | np.isclose(dropped, 1.25)).all()
    gone = (dropped == 0).all(axis=(1, 2))
    np.testing.assert_array_equal((dropped == 0).any(axis=(1, 2)), gone)
    assert abs(gone.mean() - 0.2) < 4 * np.sqrt(0.16 / 20_000)


def test_drop_path_is_off_without_a_key_or_a_rate():
    assert drop_path(X, 0.5, None) is X
    assert drop_path(X, 0.0, jax.random.key(0)) is X
