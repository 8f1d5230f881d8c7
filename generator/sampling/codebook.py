"""Which codes of the tokenizer lie near one another, for the lossy samplers that take one for another.

What "near" is depends on the scale and the number of a codebook's codes, so it is given as a share of them.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.errors import UserError

SOME = 64  # codes from which distances are measured, where all would be more than is needed
TOGETHER = 8  # codes whose distances to all others are held at a time


def checked(sampler: str, codebook: Float[Array, "V C"] | None, relax: float, near: float) -> Float[Array, "V C"]:
    """The codebook, where there is one and the two settings are within their bounds; UserError otherwise."""
    if codebook is None:
        raise UserError(f"sampler.name={sampler} compares codes of the tokenizer, and was given none.")
    if relax < 0 or not 0 <= near <= 1:
        raise UserError(f"sampler.relax {relax} must be 0 or more, and sampler.near {near} within [0, 1].")
    return codebook


def distances(codebook: Float[Array, "V C"], code: Int[Array, ""]) -> Float[Array, "V"]:
    """Squared distances of all codes from one, which itself is infinitely far away."""
    apart = jnp.sum((codebook - codebook[code]) ** 2, axis=-1)
    return apart.at[code].set(jnp.inf)


def nearest(codebook: Float[Array, "V C"], share: float) -> Int[Array, "V k"]:
    """The others in the order of their distance from each code, so many that they are a share of the codebook."""
    codes = len(codebook)
    count = min(math.ceil(share * codes), codes - 1)

    def ranked(code: jax.Array) -> jax.Array:
        return jax.lax.top_k(-distances(codebook, code), max(count, 1))[1]

    return jax.lax.map(ranked, jnp.arange(codes), batch_size=TOGETHER)[:, :count]


def near_distance(codebook: Float[Array, "V C"], share: float) -> Float[Array, ""]:
    """The squared distance below which a share of the others lies from a code, on the average over some codes."""
    codes = len(codebook)
    some = jnp.arange(0, codes, -(-codes // SOME))
    apart = jax.lax.map(lambda code: distances(codebook, code), some, batch_size=TOGETHER)
    return jnp.sort(apart.reshape(-1))[round(share * len(some) * (codes - 1))]
