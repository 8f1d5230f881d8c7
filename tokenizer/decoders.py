"""Decoders: a grid of latents -> images. A new one is a class here or a file beside, and a line in the table."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from models.convolution import AttentionBlock, ResidualBlock, Upsample, convolution, group_norm
from tokenizer.encoders import middle


class ConvolutionalDecoder(nnx.Module):
    """VQGAN's decoder: the encoder mirrored, with one block more a level."""

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
        width = channels * multipliers[-1]
        self.first = convolution(latent_channels, width, 3, **options)
        layers = middle(width, attention, **blocked)
        for level in reversed(range(len(multipliers))):
            for _ in range(blocks + 1):
                layers.append(ResidualBlock(width, channels * multipliers[level], **blocked))
                width = channels * multipliers[level]
                if level == len(multipliers) - 1 and attention:
                    layers.append(AttentionBlock(width, **blocked))
            if level > 0:
                layers.append(Upsample(width, **options))
        self.layers = nnx.List(layers)
        self.norm = group_norm(width, groups, rngs=rngs)
        self.last = convolution(width, image_channels, 3, **options)

    def __call__(self, latents: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        x = self.first(latents)
        for layer in self.layers:
            x = layer(x)
        return self.last(jax.nn.swish(self.norm(x))).astype(jnp.float32)


DECODERS = {"convolutional": ConvolutionalDecoder}
