"""Vector quantization with low-dimensional, l2-normalised codes (VQ-VAE, arXiv:1711.00937; ViT-VQGAN, LlamaGen)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from models.modules import Params
from models.tokens import Grid


def normalise(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x / ||x||, with a gradient at 0 as well."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def straight_through(z: Float[Array, "*B D"], z_q: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """z_q going forward, z going backward."""
    return z + jax.lax.stop_gradient(z_q - z)


def entropy_loss(distances: Float[Array, "*B V"], temperature: float = 0.01) -> Float[Array, ""]:
    """Mean entropy of the latents' soft choices minus that of their mean: low where each is clear and all codes are used.

    A choice is softmax(-distance / temperature), as in LlamaGen's tokenizer.
    """
    choices = jax.nn.log_softmax(-distances.reshape(-1, distances.shape[-1]) / temperature, axis=-1)
    shares = jnp.exp(choices)
    mean = shares.mean(axis=0)
    return -jnp.sum(shares * choices, axis=-1).mean() + jnp.sum(mean * jnp.log(mean + 1e-5))


class VectorQuantizer(nnx.Module):
    """The nearest of `codes` learned rows.

    The loss is ||z_q - sg(z)||^2 + commitment ||sg(z_q) - z||^2, means over all entries. A code whose share of the tokens
    falls below `revive_below` / codes is dead: it restarts at a latent of the present batch.

    Args:
      codes: size of the codebook, K.
      width: of a code, D.
      commitment: weight of the second term; 0.25 in every published system.
      l2_norm: compare and decode rows of unit length, as LlamaGen does.
      entropy: weight of `entropy_loss` at temperature 0.01; LlamaGen's `entropy_loss_ratio`.
      usage_decay: of the running share of each code.
      revive_below: in units of the uniform share 1 / K; 0 never revives.
    """

    def __init__(
        self,
        *,
        codes: int,
        width: int,
        commitment: float = 0.25,
        l2_norm: bool = True,
        entropy: float = 0.0,
        usage_decay: float = 0.99,
        revive_below: float = 0.03,
        rngs: nnx.Rngs,
    ):
        start = jax.random.uniform(rngs.params(), (codes, width), minval=-1 / codes, maxval=1 / codes)
        self.codebook = nnx.Param(normalise(start) if l2_norm else start, axes=("codes", None))
        self.commitment, self.l2_norm, self.entropy = commitment, l2_norm, entropy
        self.usage_decay, self.revive_below = usage_decay, revive_below
        self.spec_sizes, self.width = (codes,), width

    def rows(self) -> Float[Array, "V D"]:
        """The codebook as it is compared and decoded."""
        codebook = self.codebook[...].astype(jnp.float32)
        return normalise(codebook) if self.l2_norm else codebook

    def shape(self, grid: Grid) -> Grid:
        """How the tokens of a grid of latents lie: one a cell."""
        return grid

    def quantize(
        self, z: Float[Array, "*B D"], *, key: jax.Array | None = None
    ) -> tuple[Float[Array, "*B D"], Int[Array, "*B 1"], dict[str, Float[Array, ""]]]:
        """Nearest codes of latents, in float32: (z_q with a straight-through gradient, ids, losses); nothing is random."""
        distances = self.distances(z)
        ids = jnp.argmin(distances, axis=-1).astype(jnp.int32)
        z, z_q = self.compared(z), self.rows()[ids]
        losses = {
            "codebook_loss": jnp.mean((z_q - jax.lax.stop_gradient(z)) ** 2),
            "commitment_loss": self.commitment * jnp.mean((jax.lax.stop_gradient(z_q) - z) ** 2),
        }
        if self.entropy:
            losses["entropy_loss"] = self.entropy * entropy_loss(distances)
        return straight_through(z, z_q), ids[..., None], losses

    def compared(self, z: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Latents as they are compared with `rows`."""
        z = z.astype(jnp.float32)
        return normalise(z) if self.l2_norm else z

    def distances(self, z: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Squared distances to the codes, up to ||z||^2, which is the same for every code."""
        rows = self.rows()
        return jnp.sum(rows**2, axis=-1) - 2 * self.compared(z) @ rows.T

    def lookup(self, ids: Int[Array, "*B 1"]) -> Float[Array, "*B D"]:
        """The codes of ids."""
        return self.rows()[ids[..., 0]]

    def init_statistics(self) -> Params:
        """Running share of every code, and a latent for each to restart at."""
        codes = self.spec_sizes[0]
        return {"usage": jnp.full((codes,), 1 / codes, jnp.float32), "candidates": jnp.zeros((codes, self.width))}

    def update_statistics(
        self, statistics: Params, z: Float[Array, "*B D"], ids: Int[Array, "*B 1"], key: jax.Array
    ) -> Params:
        """Follow the codes' shares; draw a latent of the batch for each code, should it be dead."""
        codes, latents = self.spec_sizes[0], z.reshape(-1, self.width).astype(jnp.float32)
        share = jnp.zeros(codes).at[ids.reshape(-1)].add(1.0) / ids.size
        usage = self.usage_decay * statistics["usage"] + (1 - self.usage_decay) * share
        candidates = latents[jax.random.randint(key, (codes,), 0, len(latents))]
        return {"usage": usage, "candidates": normalise(candidates) if self.l2_norm else candidates}

    def dead(self, statistics: Params) -> Bool[Array, "V"]:
        """Which codes are used too little."""
        return statistics["usage"] < self.revive_below / self.spec_sizes[0]

    def revive(self, params: Params, statistics: Params) -> tuple[Params, Params]:
        """Parameters with dead codes restarted at their candidates, statistics with the share of an average code."""
        dead = self.dead(statistics)
        codebook = jnp.where(dead[:, None], statistics["candidates"], params["codebook"])
        usage = jnp.where(dead, 1 / self.spec_sizes[0], statistics["usage"])
        return {**params, "codebook": codebook}, {**statistics, "usage": usage}
