"""Multi-scale residual quantization (VAR, arXiv:2404.02905, algorithms 1 and 2) around any quantizer of single vectors.

Every scale quantizes what the scales before it left over, averaged to its own grid; its codes, brought back to the full grid
and through a convolution phi, are added to the reconstruction.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from models.convolution import convolution
from models.errors import UserError
from models.modules import Params
from models.tokens import Grid, Scales
from tokenizer.quantizers.vector import straight_through
from tokenizer.resize import area, bicubic

LATENT = "B h w D"


class MultiScaleQuantizer(nnx.Module):
    """Codes of several grids, the coarsest first, whose sum approximates a grid of latents.

    The loss is the mean over the scales of ||f_s - sg(z)||^2 + commitment ||sg(f_s) - z||^2, means over all entries, with f_s
    the reconstruction after scale s; through f_s it trains codebook and phi.

    Args:
      inner: quantizer of single vectors; its codebook serves all scales.
      scales: sides of the grids, the last one that of the latents.
      phi: number of convolutions that the scales share; 0 is none.
      phi_share: of the convolution in phi(h) = (1 - share) h + share conv(h).
      commitment: weight of the second term.
      scale_dropout: share of the training images of which only the first scales are summed, a uniform number of them
        (ImageFolder, arXiv:2410.01756).
      least_scales: of them, at least so many.
    """

    def __init__(
        self,
        *,
        inner: Any,
        scales: Sequence[int],
        phi: int = 4,
        phi_share: float = 0.5,
        commitment: float = 0.25,
        scale_dropout: float = 0.0,
        least_scales: int = 3,
        rngs: nnx.Rngs,
    ):
        if not scales or min(scales) < 1 or list(scales) != sorted(scales):
            raise UserError(
                f"quantizer scales {tuple(scales)} must be sides of 1 or more, none smaller than the one before."
            )
        self.inner = inner
        self.grids = tuple(Grid(side, side) for side in scales)
        self.convolutions = nnx.List(
            convolution(inner.width, inner.width, 3, dtype=jnp.float32, rngs=rngs) for _ in range(phi)
        )
        self.phi_share, self.commitment = phi_share, commitment
        self.scale_dropout, self.least_scales = scale_dropout, min(least_scales, len(scales))
        self.spec_sizes, self.width, self.revive_below = inner.spec_sizes, inner.width, inner.revive_below

    def shape(self, grid: Grid) -> Scales:
        """How the tokens of a grid of latents lie."""
        if self.grids[-1] != grid:
            raise UserError(f"the last of the quantizer's scales is {self.grids[-1].height}; the latents have {grid.height} "
                            "rows: end the scales with that, or change the levels of the tokenizer.")  # fmt: skip
        return Scales(self.grids)

    # ---- the sum over the scales

    def contribution(self, codes: Float[Array, "B p p D"], scale: int) -> Float[Array, LATENT]:
        """What a scale's codes add to the reconstruction."""
        h = bicubic(codes, self.grids[-1])
        if not self.convolutions:
            return h
        phi = self.convolutions[int(phi_table(len(self.grids), len(self.convolutions))[scale])]
        return (1 - self.phi_share) * h + self.phi_share * phi(h)

    def split(self, ids: Int[Array, "B T K"]) -> list[Int[Array, "B p p K"]]:
        """The ids of each scale."""
        return [
            ids[:, start:stop].reshape(len(ids), grid.height, grid.width, -1)
            for (start, stop), grid in zip(Scales(self.grids).bounds, self.grids)
        ]

    def sums(self, ids: Int[Array, "B T K"]) -> Iterator[Float[Array, LATENT]]:
        """The reconstruction after each scale."""
        total = self.start(len(ids))
        for scale, of_scale in enumerate(self.split(ids)):
            total += self.contribution(self.inner.lookup(of_scale), scale)
            yield total

    def residual(self, z: Float[Array, LATENT], total: Float[Array, LATENT], scale: int) -> Float[Array, "B p p D"]:
        """What a scale quantizes."""
        return area(z - total, self.grids[scale])

    # ---- the contract of quantizers

    def quantize(
        self, z: Float[Array, LATENT], *, key: jax.Array | None = None
    ) -> tuple[Float[Array, LATENT], Int[Array, "B T K"], dict[str, Float[Array, ""]]]:
        """Codes of latents, in float32: (z_q with a straight-through gradient, ids, losses); `key` turns dropout on."""
        z = z.astype(jnp.float32)
        fixed, total, ids = jax.lax.stop_gradient(z), self.start(len(z)), []
        used = self.used_scales(len(z), key)
        codebook_loss, commitment_loss = jnp.zeros(len(z)), jnp.zeros(len(z))
        for scale in range(len(self.grids)):
            residual = jax.lax.stop_gradient(self.residual(fixed, total, scale))
            ids.append(self.inner.quantize(residual)[1])
            counted = used[:, scale].astype(jnp.float32)
            total += counted[:, None, None, None] * self.contribution(self.inner.lookup(ids[-1]), scale)
            share = counted / used.sum(axis=1)
            codebook_loss += share * jnp.mean((total - fixed) ** 2, axis=(1, 2, 3))
            commitment_loss += share * jnp.mean((jax.lax.stop_gradient(total) - z) ** 2, axis=(1, 2, 3))
        losses = {"codebook_loss": codebook_loss.mean(), "commitment_loss": self.commitment * commitment_loss.mean()}
        joined = jnp.concatenate([of_scale.reshape(len(z), -1, of_scale.shape[-1]) for of_scale in ids], axis=1)
        return straight_through(z, total), joined, losses

    def used_scales(self, batch: int, key: jax.Array | None) -> Bool[Array, "B S"]:
        """Which scales of each image are summed: all, or, for a share of them in training, the first few."""
        count = len(self.grids)
        if key is None or not self.scale_dropout:
            return jnp.ones((batch, count), bool)
        chosen, number = jax.random.split(key)
        fewer = jax.random.randint(number, (batch,), self.least_scales, count + 1)
        kept = jnp.where(jax.random.bernoulli(chosen, self.scale_dropout, (batch,)), fewer, count)
        return jnp.arange(count) < kept[:, None]

    def lookup(self, ids: Int[Array, "B T K"]) -> Float[Array, LATENT]:
        """The reconstruction that ids stand for."""
        *_, total = self.sums(ids)
        return total

    def init_statistics(self) -> Params:
        """Those of the inner quantizer, over all scales together."""
        return self.inner.init_statistics()

    def update_statistics(
        self, statistics: Params, z: Float[Array, LATENT], ids: Int[Array, "B T K"], key: jax.Array
    ) -> Params:
        """Follow the codes' shares; dead ones restart at what was left over at some scale."""
        totals = [self.start(len(z)), *self.sums(ids)]
        left = [
            self.residual(z, total, scale).reshape(len(z), -1, self.width) for scale, total in enumerate(totals[:-1])
        ]
        return self.inner.update_statistics(statistics, jnp.concatenate(left, axis=1), ids, key)

    def revive(self, params: Params, statistics: Params) -> tuple[Params, Params]:
        """Restart the inner quantizer's dead codes."""
        inner, statistics = self.inner.revive(params["inner"], statistics)
        return {**params, "inner": inner}, statistics

    # ---- what feeds a next-scale generator

    def start(self, batch: int) -> Float[Array, LATENT]:
        """The empty reconstruction, from which `next_scale` goes on."""
        grid = self.grids[-1]
        return jnp.zeros((batch, grid.height, grid.width, self.width))

    def scale_inputs(self, ids: Int[Array, "B T K"]) -> Float[Array, "B n D"]:
        """What feeds every scale but the first under teacher forcing: the sum of those before, averaged to its grid."""
        before = [area(total, grid) for total, grid in zip(self.sums(ids), self.grids[1:])]
        return jnp.concatenate([x.reshape(len(ids), -1, self.width) for x in before], axis=1)

    def next_scale(
        self, total: Float[Array, LATENT], codes: Float[Array, "B n D"], scale: int
    ) -> tuple[Float[Array, LATENT], Float[Array, "B m D"] | None]:
        """Add a scale's codes to the reconstruction; what feeds the scale after it, None after the last."""
        grid = self.grids[scale]
        total += self.contribution(codes.reshape(len(codes), grid.height, grid.width, -1), scale)
        if scale + 1 == len(self.grids):
            return total, None
        return total, area(total, self.grids[scale + 1]).reshape(len(codes), -1, self.width)


def phi_table(scales: int, count: int) -> Int[np.ndarray, "S"]:
    """Which of `count` convolutions each scale uses: the one whose tick is nearest, the first of equals.

    In float64, as in VAR's code: with 10 scales two distances are equal but for rounding. Its ticks leave a margin of 1/12
    where there are 4 convolutions, and of half a distance otherwise (`phi_ticks`).
    """
    places = np.arange(scales) / max(scales - 1, 1)
    return np.abs(phi_ticks(count) - places[:, None]).argmin(axis=1)


def phi_ticks(count: int) -> Float[np.ndarray, "K"]:
    """Where on the way from the first scale to the last each of `count` convolutions stands."""
    margin = 1 / (3 * count) if count == 4 else 1 / (2 * count)
    return np.linspace(margin, 1 - margin, count)
