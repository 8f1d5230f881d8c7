"""Dense layers, normalisation, dropout."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Initializer = Callable[..., jax.Array]
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
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        # Two-dimensional, because XLA's CPU back end leaves its fast path for products that contract several axes,
        # as the kernel's gradient would.
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        if self.bias is not None:
            rows += self.bias[...].astype(self.dtype)
        return rows.reshape(*x.shape[:-1], -1)


class Embedding(nnx.Module):
    """A table of `entries` rows; ids (*B) -> (*B, D)."""

    def __init__(self, entries: int, width: int, *, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs):
        self.table = nnx.Param(init(rngs.params(), (entries, width)), axes=("vocab", "embed"))
        self.dtype = dtype

    def __call__(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return self.table[...].astype(self.dtype)[ids]


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
    """Zero a share `rate` of the entries and scale the others by 1 / (1 - rate); no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def drop_path(x: Float[Array, "B *D"], rate: Float[Array, ""] | float, key: jax.Array | None) -> Float[Array, "B *D"]:
    """Zero a residual branch of a share `rate` of the samples (stochastic depth, arXiv:1603.09382); no key, no dropping."""
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x
    kept = jax.random.bernoulli(key, 1 - rate, (len(x),) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
