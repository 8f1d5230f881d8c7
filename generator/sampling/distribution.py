"""The distribution that every sampler samples from, and the noise with which it does.

A token is argmax(log p + Gumbel noise) (Gumbel, 1954; Maddison et al., arXiv:1411.0030): p is `target_distribution` and the
noise belongs to (seed, image, position). So an image depends on its seed and index alone: not on the batch that it is
in, nor on the number of devices, nor on the sampler, as long as that is exact under common noise.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Filters:
    """What is done to the logits, in this order; the defaults do nothing.

    Each looks at one distribution alone, never at those of other positions or rows: so samplers that judge several positions a
    call still draw from the same distribution.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: only the k most probable codes (and ties of the last) stay; 0 keeps all.
      top_k_entropy: above 0, k follows the entropy H of what the temperature left, in nats: it is
        1 + (top_k - 1) * sigmoid(H - top_k_entropy), rounded, with all codes for a top_k of 0. PURE's (arXiv:2503.11073) are
        2000 and 5; it cuts H at 10, which fewer than e^10 codes never reach.
      top_p: of those, the most probable stay until their sum exceeds p (arXiv:1904.09751), of equals the first codes; 1 keeps
        all.
      min_p: of those, the ones stay that are at least min_p times as probable as the best (arXiv:2407.01082); 0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_k_entropy: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        values = dataclasses.asdict(self)
        if not (all(value >= 0 for value in values.values()) and self.top_p <= 1 and self.min_p <= 1):
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            raise UserError(f"sampler: {told}; none may be below 0, and neither top_p nor min_p above 1.")


def target_distribution(
    conditional: Float[Array, "*B V"],
    unconditional: Float[Array, "*B V"] | None,
    scale: Float[Array, "*#B"] | float,
    filters: Filters,
) -> Float[Array, "*B V"]:
    """log p of the next token after guidance and filters; removed codes have -inf.

    Args:
      conditional: logits given the condition.
      unconditional: logits given none; None where guidance is off.
      scale: guidance scale (see `generator.sampling.guidance`).
      filters: applied in the order of its fields, which is LlamaGen's.
    """
    logits = conditional if unconditional is None else guided(conditional, unconditional, scale)
    if filters.temperature == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
    logits = logits / filters.temperature
    if filters.top_k_entropy or 0 < filters.top_k < logits.shape[-1]:
        order, last = last_of_heaviest(logits, jnp.ones_like(logits), kept_by_top_k(logits, filters) - 1)
        logits = jnp.where(order >= last, logits, -jnp.inf)
    if filters.top_p < 1:
        share = jax.nn.softmax(logits, axis=-1)
        order, last = last_of_heaviest(logits, share, filters.top_p)
        more, equal = order > last, order == last
        before = jnp.where(more, share, 0).sum(axis=-1, keepdims=True) + share * (jnp.cumsum(equal, axis=-1) - 1)
        logits = jnp.where(more | (equal & (before <= filters.top_p)), logits, -jnp.inf)
    if filters.min_p:
        best = logits.max(axis=-1, keepdims=True)
        logits = jnp.where(logits - best >= math.log(filters.min_p), logits, -jnp.inf)
    return jax.nn.log_softmax(logits, axis=-1)


def kept_by_top_k(logits: Float[Array, "*B V"], filters: Filters) -> Float[Array, "*B 1"] | int:
    """k of top-k: one for all, or each distribution's own where its entropy decides."""
    most = filters.top_k or logits.shape[-1]
    if not filters.top_k_entropy:
        return most
    entropy = jax.scipy.special.entr(jax.nn.softmax(logits, axis=-1)).sum(axis=-1, keepdims=True)
    return jnp.round(1 + (most - 1) * jax.nn.sigmoid(entropy - filters.top_k_entropy))


def last_of_heaviest(
    logits: Float[Array, "*B V"], weights: Float[Array, "*B V"], bound: Float[Array, "*B 1"] | float | int
) -> tuple[UInt32[Array, "*B V"], UInt32[Array, "*B 1"]]:
    """Integers in the order of the logits, and the one at which, from the largest down, the weights sum to more than `bound`.

    It is found bit by bit, with a sum for each of its 32: a CPU sorts 20 times as long.
    """
    bits, sign = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32), jnp.uint32(1 << 31)
    order = jnp.where(bits >= sign, ~bits, bits | sign)

    def lower(bit: jax.Array, last: jax.Array) -> jax.Array:
        higher = last | (sign >> bit.astype(jnp.uint32))
        weight = jnp.where(order >= higher, weights, 0).sum(axis=-1, keepdims=True)
        return jnp.where(weight > bound, higher, last)

    return order, jax.lax.fori_loop(0, 32, lower, jnp.zeros((*logits.shape[:-1], 1), jnp.uint32))


def guided(
    conditional: Float[Array, "*B V"], unconditional: Float[Array, "*B V"], scale: Float[Array, "*#B"] | float
) -> Float[Array, "*B V"]:
    """Logits moved away from what no condition gives (arXiv:2207.12598); scale 1 leaves the conditional ones."""
    return unconditional + jnp.asarray(scale)[..., None] * (conditional - unconditional)


def draw(log_probs: Float[Array, "*B V"], noise: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """One sample of each distribution: argmax(log p + noise)."""
    return jnp.argmax(log_probs + noise, axis=-1).astype(jnp.int32)


def certain(ids: Int[Array, "*B"], size: int) -> Float[Array, "*B V"]:
    """log p of ids that are known."""
    return jnp.where(jnp.arange(size) == ids[..., None], 0.0, -jnp.inf)
