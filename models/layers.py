"""Dense layers, normalisation, dropout."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from models.sharding import gathered, splits

Initializer = Callable[..., jax.Array]
LEVELS = 2**16  # of the shares that dropout knows
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # what arithmetic runs in; parameters are float32


class Linear(nnx.Module):
    """x @ kernel (+ bias) over the last axis; float32 parameters, computed in `dtype`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        axes: tuple[str | None, str | None],
        *,
        bias: bool = False,
        init: Initializer,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs)), axes=axes)
        self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[1:]) if bias else None
        self.axes, self.dtype = axes, dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return self.product(x, self.kernel[...], None if self.bias is None else self.bias[...])

    def parts(self, x: Float[Array, "*B I"], widths: Sequence[int]) -> list[Float[Array, "*B _"]]:
        """The product as several, one beside the other, of these widths.

        Devices that share the columns share them of each part: cut out of the whole product, a part would lie on some of them.
        """
        ends = np.cumsum(widths)[:-1]
        if self.axes[1] is None or not splits(self.axes[1]):
            return jnp.split(self(x), ends, axis=-1)
        kernels = jnp.split(self.kernel[...], ends, axis=1)
        biases = [None] * len(kernels) if self.bias is None else jnp.split(self.bias[...], ends)
        return [self.product(x, kernel, bias) for kernel, bias in zip(kernels, biases, strict=True)]

    def product(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """x @ kernel + bias, for the whole or some of its columns."""
        x, kernel = x.astype(self.dtype), gathered(kernel.astype(self.dtype), self.axes)
        if splits("sequence"):
            y = x @ kernel
        else:
            # Two-dimensional, because XLA's CPU back end leaves its fast path for products that contract several axes,
            # as the kernel's gradient would.
            y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias.astype(self.dtype)


class Embedding(nnx.Module):
    """A table of `entries` rows; ids (*B) -> (*B, D)."""

    def __init__(self, entries: int, width: int, *, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs):
        self.table = nnx.Param(init(rngs.params(), (entries, width)), axes=("vocab", "embed"))
        self.dtype = dtype

    def __call__(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return gathered(self.table[...].astype(self.dtype), ("vocab", "embed"))[ids]


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis (arXiv:1910.07467), statistics in float32."""

    def __init__(self, width: int, *, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(width), axes=("norm",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / sqrt(var(x) + epsilon) over the last axis, without scale or shift (VAR), statistics in float32."""

    def __init__(self, width: int, *, epsilon: float = 1e-6):
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)).astype(x.dtype)


def dropout(x: Float[Array, "*B"], rate: float, key: jax.Array | None) -> Float[Array, "*B"]:
    """Zero a share `rate` of the entries and scale the others so that the mean stays; no key, no dropout.

    An entry takes 16 random bits, so that the share is a multiple of 2^-16, as the scale is told.
    """
    threshold = max(round((1 - rate) * LEVELS), 1)
    if key is None or threshold == LEVELS:
        return x
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    draws = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return kept(x, draws < threshold, threshold / LEVELS)


def drop_path(x: Float[Array, "B *D"], rate: Float[Array, ""] | float, key: jax.Array | None) -> Float[Array, "B *D"]:
    """Zero a residual branch of a share `rate` of the samples (stochastic depth, arXiv:1603.09382); no key, no dropping."""
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x
    return kept(x, jax.random.bernoulli(key, 1 - rate, (len(x),) + (1,) * (x.ndim - 1)), 1 - rate)


def kept(x: Float[Array, "*B"], mask: Bool[Array, "..."], share: Float[Array, ""] | float) -> Float[Array, "*B"]:
    """x / share where the mask says so, else 0; the backward pass finds the mask under the name "dropout"."""
    wide = x.astype(jnp.float32) / share  # of bfloat16, the share itself would be rounded
    return jnp.where(checkpoint_name(mask, "dropout"), wide, 0).astype(x.dtype)
