"""What reference outputs hold of tokenizers: LlamaGen's and VAR's."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from input_pipeline.transforms import to_float
from jobs.parity.reference import Entry
from jobs.parity.subjects import Subject, channels_first
from jobs.sample import to_uint8
from models.modules import Description, Params
from models.tokens import Tokens
from tokenizer.quantizers.multi_scale import MultiScaleQuantizer, phi_table
from tokenizer.quantizers.vector import VectorQuantizer, entropy_loss
from tokenizer.tokenizer import Tokenizer, describe_tokenizer

Outputs = dict[str, Any]  # arrays by the names that references give them


class TokenizerSubject(Subject):
    """A tokenizer, and what it makes of the reference's images."""

    kind = "tokenizer"
    clipped: bool  # whether the reference's pictures are kept within [-1, 1]

    @functools.cached_property
    def description(self) -> Description[Tokenizer]:
        """Ours, without its arrays."""
        return describe_tokenizer(self.loaded.config)

    @functools.cached_property
    def images(self) -> Float[Array, "B H W C"]:
        """The reference's, as our pipeline hands them on."""
        return jnp.asarray(to_float(self.given("images_u8")))

    @functools.cached_property
    def outputs(self) -> Outputs:
        """Everything that the reference may hold, of one program."""
        program = jax.jit(lambda params, images: self.recompute(self.description.merge(params), images))
        return jax.device_get(program(self.loaded.params, self.images))

    def recompute(self, tokenizer: Tokenizer, images: Float[Array, "B H W C"]) -> Outputs:
        """Arrays by name."""
        raise NotImplementedError

    @functools.cached_property
    def decode(self) -> Callable[[Int[Array, "B T K"]], Float[Array, "B H W C"]]:
        """ids -> images."""

        @jax.jit
        def program(params: Params, ids: jax.Array) -> jax.Array:
            tokenizer = self.description.merge(params)
            return tokenizer.decode(Tokens(ids)) if self.clipped else tokenizer.images(tokenizer.codes(Tokens(ids)))

        return lambda ids: program(self.loaded.params, ids)


class LlamaGenTokenizer(TokenizerSubject):
    """VQ-16 and its like: one grid, unit vectors."""

    source, clipped = "llamagen", False

    def overrides(self) -> dict[str, Any]:
        """The images' size, which the weights do not show."""
        return {"data.resolution": self.side}

    @functools.cached_property
    def side(self) -> int:
        """Of the images; without images, as many pixels as the levels halve to one."""
        return self.shape("images_u8")[1] if self.has("images_u8") else stride(self.entry)

    def recompute(self, tokenizer: Tokenizer, images: Float[Array, "B H W C"]) -> Outputs:
        """Arrays by name."""
        quantizer: VectorQuantizer = tokenizer.quantizer
        latents = tokenizer.latents(images)
        codes, ids, losses = quantizer.quantize(latents)
        tokens = tokenizer.tokens(ids)
        decoded = tokenizer.images(tokenizer.codes(tokens))
        distances = quantizer.distances(latents).reshape(len(images), tokenizer.spec.positions, -1)
        of_quantizer = [losses["codebook_loss"], losses["commitment_loss"], entropy_loss(distances)]
        return {
            "input": channels_first(images),
            "encoder_out": channels_first(tokenizer.encoder(images)),
            "latent": channels_first(latents),
            "indices": tokens.ids[..., 0],
            "quant": channels_first(codes),
            "codebook_entries": channels_first(tokenizer.codes(tokens)),
            "index_margin": margin(-distances),
            "recon": channels_first(decoded),
            "recon_u8": to_uint8(decoded),
            "train_losses": jnp.stack(of_quantizer),
        }


class VARTokenizer(TokenizerSubject):
    """VAR's autoencoder: the residuals of several grids."""

    source, clipped = "var", True

    def overrides(self) -> dict[str, Any]:
        """The scales, which the weights do not show."""
        return {"tokenizer.quantizer.scales": tuple(self.entry.field("patch_nums"))}

    def recompute(self, tokenizer: Tokenizer, images: Float[Array, "B H W C"]) -> Outputs:
        """Arrays by name."""
        quantizer: MultiScaleQuantizer = tokenizer.quantizer
        latents = tokenizer.latents(images)
        codes, ids, losses = quantizer.quantize(latents)
        tokens = tokenizer.tokens(ids)
        sums = list(quantizer.sums(ids))
        before = [quantizer.start(len(images)), *sums[:-1]]
        distances = [quantizer.inner.distances(quantizer.residual(latents, total, s)) for s, total in enumerate(before)]
        return {
            "input": channels_first(images),
            "encoder_out": channels_first(tokenizer.encoder(images)),
            "latent": channels_first(latents),
            "indices": tokens.ids[..., 0],
            "index_margin": jnp.concatenate([margin(-d).reshape(len(images), -1) for d in distances], axis=1),
            "fhat_per_scale": jnp.stack([channels_first(total) for total in sums], axis=1),
            "var_input": quantizer.scale_inputs(ids),
            "recon": channels_first(jnp.clip(tokenizer.images(codes), -1, 1)),
            "recon_from_indices": channels_first(tokenizer.decode(tokens)),
            "phi_index": phi_table(len(quantizer.grids), len(quantizer.convolutions)),
            "train_vq_loss": jnp.stack([losses["codebook_loss"] + losses["commitment_loss"]]),
        }

    def some_sums(self, name: re.Match[str]) -> Float[np.ndarray, "B n z h w"]:
        """The reconstruction after some of the scales."""
        return self.outputs["fhat_per_scale"][:, self.given("fhat_scales")]


def stride(entry: Entry) -> int:
    """Pixels a token's side stands for; the originals' five levels where the manifest does not tell."""
    return 2 ** (len(entry.config.get("ch_mult", (1, 1, 2, 2, 4))) - 1)


@jax.jit
def margin(scores: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """By how much the largest is larger than the second."""
    first, second = jnp.split(jax.lax.top_k(scores, 2)[0], 2, axis=-1)
    return (first - second)[..., 0]
