"""The tokenizer: encoder, quantizer and decoder put together."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.convolution import convolution
from models.errors import UserError, unknown
from models.layers import DTYPES
from models.registry import build
from models.sharding import constrain
from models.tokens import Grid, Tokens, TokenSpec
from tokenizer.decoders import DECODERS
from tokenizer.encoders import ENCODERS
from tokenizer.quantizers import QUANTIZERS


class Tokenizer(nnx.Module):
    """Images (B, H, W, C) in [-1, 1] <-> tokens on a raster (VQGAN, arXiv:2012.09841).

    Args:
      resolution: side of the images in pixels.
      image_channels: 1 or 3.
      quantizer: config section of a quantizer.
      encoder: name of an encoder.
      decoder: name of a decoder.
      channels: of the first level.
      multipliers: of `channels` at each level; every level after the first halves the size.
      blocks: residual blocks a level.
      latent_channels: between the networks and the quantizer's projections.
      attention: at the lowest resolution.
      dtype: of the networks' arithmetic; the quantizer's is float32.
    """

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
        quantizer: Mapping[str, Any],
        encoder: str = "convolutional",
        decoder: str = "convolutional",
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 256,
        attention: bool = True,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        for kind, name, table in (
            ("encoder", encoder, ENCODERS),
            ("decoder", decoder, DECODERS),
            ("dtype", dtype, DTYPES),
        ):
            if name not in table:
                raise unknown(kind, name, table)
        stride = 2 ** (len(multipliers) - 1)
        if resolution % stride:
            raise UserError(f"data.resolution {resolution} is not divisible by the tokenizer's stride {stride}; "
                            f"take {resolution // stride * stride} or {(resolution // stride + 1) * stride}.")  # fmt: skip
        compute = DTYPES[dtype]
        shared = {
            "image_channels": image_channels, "latent_channels": latent_channels, "channels": channels,
            "multipliers": tuple(multipliers), "blocks": blocks, "attention": attention, "dtype": compute, "rngs": rngs,
        }  # fmt: skip
        self.encoder = ENCODERS[encoder](**shared)
        self.quantizer = build("quantizer", QUANTIZERS, quantizer, rngs=rngs)
        self.decoder = DECODERS[decoder](**shared)
        self.to_codes = convolution(latent_channels, self.quantizer.width, 1, dtype=compute, rngs=rngs)
        self.from_codes = convolution(self.quantizer.width, latent_channels, 1, dtype=compute, rngs=rngs)
        side = resolution // stride
        self.spec = TokenSpec(Grid(side, side), self.quantizer.spec_sizes)

    def latents(self, images: Float[Array, "B H W C"]) -> Float[Array, "B T D"]:
        """What the quantizer sees, in raster order."""
        latents = self.to_codes(self.encoder(constrain(images, ("batch", None, None, None))))
        return latents.reshape(len(images), -1, latents.shape[-1])

    def images(self, codes: Float[Array, "B T D"]) -> Float[Array, "B H W C"]:
        """Decode what the quantizer gives; not clipped to [-1, 1]."""
        grid = codes.reshape(len(codes), self.spec.shape.height, self.spec.shape.width, -1)
        return constrain(self.decoder(self.from_codes(grid)), ("batch", None, None, None))

    def encode(self, images: Float[Array, "B H W C"]) -> Tokens:
        """Images to tokens."""
        return Tokens(self.quantizer.quantize(self.latents(images))[1])

    def decode(self, tokens: Tokens) -> Float[Array, "B H W C"]:
        """Tokens to images in [-1, 1]."""
        return jnp.clip(self.images(self.quantizer.lookup(tokens.ids)), -1, 1)


TOKENIZERS = {"vqgan": Tokenizer}
