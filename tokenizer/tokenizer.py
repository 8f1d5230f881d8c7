"""The tokenizer: encoder, quantizer and decoder put together."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from models.convolution import convolution
from models.errors import UserError, unknown
from models.layers import DTYPES
from models.modules import Description, describe
from models.registry import build
from models.sharding import constrain
from models.tokens import Grid, Tokens, TokenSpec
from tokenizer.decoders import DECODERS
from tokenizer.encoders import ENCODERS
from tokenizer.quantizers import build_quantizer


class Tokenizer(nnx.Module):
    """Images (B, H, W, C) in [-1, 1] <-> tokens (VQGAN, arXiv:2012.09841).

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
      groups: of the group norms; 0: 4 channels a group, 32 groups at most.
      projection: side of the convolutions between the networks and the codes.
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
        groups: int = 0,
        projection: int = 1,
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
            "multipliers": tuple(multipliers), "blocks": blocks, "attention": attention, "groups": groups, "dtype": compute,
            "rngs": rngs,
        }  # fmt: skip
        self.encoder = ENCODERS[encoder](**shared)
        self.quantizer = build_quantizer(quantizer, rngs)
        self.decoder = DECODERS[decoder](**shared)
        width = self.quantizer.width
        self.to_codes = convolution(latent_channels, width, projection, dtype=compute, rngs=rngs)
        self.from_codes = convolution(width, latent_channels, projection, dtype=compute, rngs=rngs)
        self.grid = Grid(resolution // stride, resolution // stride)
        self.spec = TokenSpec(self.quantizer.shape(self.grid), self.quantizer.spec_sizes, width)

    def latents(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """What the quantizer sees."""
        return self.to_codes(self.encoder(constrain(images, ("batch", None, None, None))))

    def images(self, codes: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
        """Decode what the quantizer gives; not clipped to [-1, 1]."""
        return constrain(self.decoder(self.from_codes(codes)), ("batch", None, None, None))

    def encode(self, images: Float[Array, "B H W C"]) -> Tokens:
        """Images to tokens."""
        return self.tokens(self.quantizer.quantize(self.latents(images))[1])

    def tokens(self, ids: Int[Array, "B *T K"]) -> Tokens:
        """The quantizer's ids in one row."""
        return Tokens(ids.reshape(len(ids), self.spec.positions, -1))

    def codes(self, tokens: Tokens) -> Float[Array, "B h w D"]:
        """What the quantizer gave for tokens."""
        return self.quantizer.lookup(tokens.ids).reshape(-1, self.grid.height, self.grid.width, self.spec.width)

    def decode(self, tokens: Tokens) -> Float[Array, "B H W C"]:
        """Tokens to images in [-1, 1]."""
        return jnp.clip(self.images(self.codes(tokens)), -1, 1)


TOKENIZERS = {"vqgan": Tokenizer}


def describe_tokenizer(config: ConfigDict) -> Description[Tokenizer]:
    """A whole config's tokenizer, without its arrays."""
    return describe(
        lambda rngs: build(
            "tokenizer", TOKENIZERS, config.tokenizer.to_dict(), resolution=config.data.resolution,
            image_channels=config.data.channels, rngs=rngs,
        )
    )  # fmt: skip


def token_spec(tokenizer: Description[Tokenizer]) -> TokenSpec:
    """What its tokens look like."""
    return tokenizer.merge(tokenizer.shapes).spec
