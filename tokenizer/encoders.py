"""Encoders: images -> a grid of latents. A new one is a class here or a file beside, and a line in the table."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from models.convolution import AttentionBlock, Downsample, ResidualBlock, convolution, group_norm


class ConvolutionalEncoder(nnx.Module):
    """VQGAN's encoder (arXiv:2012.09841) with LlamaGen's details.

    One level a multiplier, halving the size between levels; attention after every block of the last level; then
    block, attention, block.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        latent_channels: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: bool,
        groups: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        blocked = {"groups": groups, **options}
        self.stride = 2 ** (len(multipliers) - 1)
        self.first = convolution(image_channels, channels, 3, **options)
        layers: list[nnx.Module] = []
        width = channels
        for level, multiplier in enumerate(multipliers):
            last = level == len(multipliers) - 1
            for _ in range(blocks):
                layers.append(ResidualBlock(width, channels * multiplier, **blocked))
                width = channels * multiplier
                if last and attention:
                    layers.append(AttentionBlock(width, **blocked))
            if not last:
                layers.append(Downsample(width, **options))
        layers += middle(width, attention, **blocked)
        self.layers = nnx.List(layers)
        self.norm = group_norm(width, groups, rngs=rngs)
        self.last = convolution(width, latent_channels, 3, **options)

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w Z"]:
        x = self.first(images)
        for layer in self.layers:
            x = layer(x)
        return self.last(jax.nn.swish(self.norm(x)))


def middle(width: int, attention: bool, *, groups: int, dtype: DTypeLike, rngs: nnx.Rngs) -> list[nnx.Module]:
    """What encoder and decoder have at the lowest resolution: block, attention, block."""
    options: dict[str, Any] = {"groups": groups, "dtype": dtype, "rngs": rngs}
    between = [AttentionBlock(width, **options)] if attention else []
    return [ResidualBlock(width, width, **options), *between, ResidualBlock(width, width, **options)]


ENCODERS = {"convolutional": ConvolutionalEncoder}
