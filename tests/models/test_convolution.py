import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.convolution import AttentionBlock, Downsample, ResidualBlock, Upsample, group_norm


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_halving_pads_at_the_right_and_at_the_bottom_only():
    layer = Downsample(1, dtype=jnp.float32, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.conv.kernel[...])[:, :, 0, 0]
    impulses = jnp.eye(64).reshape(64, 8, 8, 1)
    out = np.asarray(layer(impulses))[..., 0].reshape(8, 8, 4, 4)
    expected = np.zeros((8, 8, 4, 4))
    for i, j, row, column in np.ndindex(8, 8, 4, 4):  # output (row, column) reads pixels 2 row .. 2 row + 2
        if 0 <= i - 2 * row < 3 and 0 <= j - 2 * column < 3:
            expected[i, j, row, column] = kernel[i - 2 * row, j - 2 * column]
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_doubling_repeats_pixels_before_the_convolution():
    layer = Upsample(4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.conv.kernel[...] = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
    x = images(2, 3, 5, 4)
    np.testing.assert_allclose(layer(x), np.kron(x, np.ones((1, 2, 2, 1))), atol=1e-6)


def test_group_norm_has_32_groups_of_neighbouring_channels():
    x = images(2, 3, 3, 128) * (1 + jnp.arange(128.0) / 8)
    wide = np.asarray(x, np.float64).reshape(2, 9, 32, 4)
    expected = (wide - wide.mean((1, 3), keepdims=True)) / np.sqrt(wide.var((1, 3), keepdims=True) + 1e-6)
    np.testing.assert_allclose(group_norm(128, rngs=nnx.Rngs(0))(x), expected.reshape(x.shape), atol=1e-4)


def test_residual_blocks_are_the_shortcut_where_the_branch_is_zero():
    x = images(1, 4, 4, 8)
    same, wider = (ResidualBlock(8, width, dtype=jnp.float32, rngs=nnx.Rngs(0)) for width in (8, 16))
    same.conv2.kernel[...] *= 0
    wider.conv2.kernel[...] *= 0
    np.testing.assert_array_equal(same(x), x)
    expected = np.einsum("bhwi,io->bhwo", x, np.asarray(wider.shortcut.kernel[...])[0, 0])
    np.testing.assert_allclose(wider(x), expected, atol=1e-5)


def test_pixel_attention_is_a_residual_softmax_over_all_pixels():
    block = AttentionBlock(8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = images(2, 3, 2, 8)
    normed = np.asarray(block.norm(x), np.float64).reshape(2, 6, 8)
    q, k, v, out = (np.asarray(layer.kernel[...], np.float64)[0, 0] for layer in (block.q, block.k, block.v, block.out))
    scores = (normed @ q) @ (normed @ k).transpose(0, 2, 1) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = x + (weights @ (normed @ v) @ out).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(block.__call__)(x), expected, atol=1e-5)
