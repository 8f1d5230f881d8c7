"""PatchGAN, the discriminator that reconstructions are trained against, and its hinge losses."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from models.errors import UserError

SMALL = nnx.initializers.normal(0.02)


class BatchNorm(nnx.Module):
    """Batch normalisation (arXiv:1502.03167) in float32, epsilon 1e-5, always with the batch's own statistics.

    A discriminator is never run outside training, so nothing would read running statistics. Where the batch is sharded,
    they are still those of the whole batch.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(1 + SMALL(rngs.params(), (channels,)), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros(channels), axes=("norm",))

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Each channel with mean 0 and variance 1 over batch and space, then scaled and shifted."""
        x = x.astype(jnp.float32)
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * self.scale[...] + self.bias[...]


class PatchDiscriminator(nnx.Module):
    """A real-or-fake logit for every patch of an image (PatchGAN, arXiv:1611.07004).

    A convolution of stride 2, then `layers` normalised ones, of stride 2 but for the last, which has 1; a leaky ReLU
    after each; then a convolution of stride 1 to the logits. With 3 layers a logit sees 70x70 pixels, with 2 34x34.

    Args:
      image_channels: 1 or 3.
      channels: after the first convolution; they double with every layer, up to 8 times as many.
      layers: 1 or more; an image needs at least 3 * 2^layers pixels a side.
      dtype: of the convolutions' arithmetic.
    """

    def __init__(
        self, *, image_channels: int, channels: int = 64, layers: int = 3, dtype: DTypeLike, rngs: nnx.Rngs
    ):  # fmt: skip
        if layers < 1:
            raise UserError(f"discriminator_layers is {layers}; a PatchGAN has at least 1.")
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        widths = [channels * min(2**layer, 8) for layer in range(layers + 1)]
        strides = [2] * (layers - 1) + [1]
        self.first = four_by_four(image_channels, channels, stride=2, bias=True, **options)
        self.convolutions = nnx.List(
            four_by_four(inputs, outputs, stride=stride, bias=False, **options)
            for inputs, outputs, stride in zip(widths[:-1], widths[1:], strides)
        )
        self.norms = nnx.List(BatchNorm(width, rngs=rngs) for width in widths[1:])
        self.last = four_by_four(widths[-1], 1, stride=1, bias=True, **options)

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w 1"]:
        """Logits, float32, of images in [-1, 1]; h = H // 2^layers - 2. Raises UserError where that is none."""
        height, width, layers = *images.shape[1:3], len(self.norms)
        if min(height, width) < 3 * 2**layers:
            raise UserError(
                f"images of {height}x{width} pixels shrink to nothing in a discriminator whose discriminator_layers is "
                f"{layers}; lower discriminator_layers (n of them need 3 * 2^n pixels, here {3 * 2**layers})."
            )
        x = leaky_relu(self.first(images))
        for convolution, norm in zip(self.convolutions, self.norms):
            x = leaky_relu(norm(convolution(x)))
        return self.last(x).astype(jnp.float32)


def leaky_relu(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """max(x, 0.2 x)."""
    return jax.nn.leaky_relu(x, negative_slope=0.2)


def four_by_four(
    inputs: int, outputs: int, *, stride: int, bias: bool, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:  # fmt: skip
    """A 4x4 convolution with one pixel of padding: stride 2 halves the size, stride 1 takes one pixel off."""
    return nnx.Conv(
        inputs, outputs, (4, 4), strides=stride, padding=((1, 1), (1, 1)), use_bias=bias, dtype=dtype,
        kernel_init=SMALL, kernel_metadata={"axes": (None, None, "channels_in", "channels_out")},
        bias_metadata={"axes": ("norm",)}, rngs=rngs,
    )  # fmt: skip


def hinge_discriminator_loss(real: Float[Array, "B h w 1"], fake: Float[Array, "B h w 1"]) -> Float[Array, ""]:
    """(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2, of logits (arXiv:1705.02894)."""
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def hinge_generator_loss(fake: Float[Array, "B h w 1"]) -> Float[Array, ""]:
    """-mean fake: what makes the discriminator's logits of the reconstructions rise."""
    return -fake.mean()
