"""Convolutional blocks of the VQGAN family (arXiv:2012.09841), channels last, with LlamaGen's exact paddings."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from models import masks
from models.attention import attention
from models.sharding import gathered

KERNEL = (None, None, "channels_in", "channels_out")


def convolve(x: jax.Array, kernel: jax.Array, *args: Any, **fields: Any) -> jax.Array:
    """The convolution, of a kernel that may lie on several devices."""
    return jax.lax.conv_general_dilated(x, gathered(kernel, KERNEL), *args, **fields)


def convolution(inputs: int, outputs: int, size: int, *, stride: int = 1, padding: int | None = None,
                bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:  # fmt: skip
    """A square convolution; `padding` pixels on every side, by default what keeps the size at stride 1."""
    pad = size // 2 if padding is None else padding
    return nnx.Conv(
        inputs, outputs, (size, size), strides=stride, padding=((pad, pad), (pad, pad)), use_bias=bias, dtype=dtype,
        kernel_metadata={"axes": KERNEL}, bias_metadata={"axes": ("norm",)}, conv_general_dilated=convolve, rngs=rngs,
    )  # fmt: skip


def group_norm(channels: int, groups: int = 0, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation, epsilon 1e-6, in float32; 0 groups are 4 channels each, but 32 at most."""
    metadata = {"axes": ("norm",)}
    return nnx.GroupNorm(channels, num_groups=groups or min(32, channels // 4), epsilon=1e-6, dtype=jnp.float32,
                         scale_metadata=metadata, bias_metadata=metadata, rngs=rngs)  # fmt: skip


class ResidualBlock(nnx.Module):
    """Norm, swish, convolution, twice, beside a shortcut (1x1 where the channels change)."""

    def __init__(self, inputs: int, outputs: int, *, groups: int = 0, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = group_norm(inputs, groups, rngs=rngs)
        self.conv1 = convolution(inputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.norm2 = group_norm(outputs, groups, rngs=rngs)
        self.conv2 = convolution(outputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.shortcut = convolution(inputs, outputs, 1, dtype=dtype, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w O"]:
        h = self.conv1(jax.nn.swish(self.norm1(x)))
        h = self.conv2(jax.nn.swish(self.norm2(h)))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class AttentionBlock(nnx.Module):
    """Single-head self-attention over all pixels, residual."""

    def __init__(self, channels: int, *, groups: int = 0, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = group_norm(channels, groups, rngs=rngs)
        self.q, self.k, self.v, self.out = (
            convolution(channels, channels, 1, dtype=dtype, rngs=rngs) for _ in range(4)
        )  # fmt: skip

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        B, h, w, C = x.shape
        normed = self.norm(x)
        q = self.q(normed).reshape(B, h * w, 1, C)
        k, v = self.k(normed).reshape(B, 1, h * w, C), self.v(normed).reshape(B, 1, h * w, C)
        return x + self.out(attention(q, k, v, masks.bidirectional(h * w)).reshape(B, h, w, C))


class Downsample(nnx.Module):
    """Halve the size: 3x3 convolution of stride 2 over an image padded by one at the right and at the bottom."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = convolution(channels, channels, 3, stride=2, padding=0, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
        return self.conv(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))


class Upsample(nnx.Module):
    """Double the size: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = convolution(channels, channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))
