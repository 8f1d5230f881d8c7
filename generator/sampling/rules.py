"""What stands of a draft, and what is drawn in its place, at one position; every function works on any leading axes.

Rejection (Leviathan et al., arXiv:2211.17192): x drawn from q stands with probability min(1, p(x) / q(x)); what is drawn
from max(p - q, 0), normalised, in its place makes the result a draw from p, and no rule lets more drafts stand.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def likelihood(log_p: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """log p of tokens."""
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


def stands(
    log_p: Float[Array, "*B V"], log_q: Float[Array, "*B V"], tokens: Int[Array, "*B"], uniform: Float[Array, "*B"]
) -> Bool[Array, "*B"]:
    """u < p(x) / q(x)."""
    return jnp.log(uniform) < likelihood(log_p, tokens) - likelihood(log_q, tokens)


def residual(log_p: Float[Array, "*B V"], log_q: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    """log of max(p - q, 0), not normalised; p itself where rounding leaves nothing of it."""
    left = jnp.maximum(jnp.exp(log_p) - jnp.exp(log_q), 0)
    return jnp.where(left.max(axis=-1, keepdims=True) > 0, jnp.log(left), log_p)


class KSeq(NamedTuple):
    """How k drafts of one q share p out (SpecTr, arXiv:2310.15141): k-SEQ for one token.

    Attributes:
      ratio: log of p / (rho q), by which a draft stands.
      rest: log of what is drawn if none does, not normalised.
    """

    ratio: Float[Array, "*B V"]
    rest: Float[Array, "*B V"]

    def stands(self, tokens: Int[Array, "*B"], uniform: Float[Array, "*B"]) -> Bool[Array, "*B"]:
        """u < p(x) / (rho q(x))."""
        return jnp.log(uniform) < likelihood(self.ratio, tokens)


def k_seq_of(log_p: Float[Array, "*B V"], log_q: Float[Array, "*B V"], drafts: Int[Array, "*B"]) -> KSeq:
    """k-SEQ of p and q with the rho in [1, k] that solves 1 - (1 - beta)^k = rho beta, beta = sum_x min(p / rho, q).

    Args:
      log_p: what is to be drawn.
      log_q: what each draft was drawn from, independently of the others.
      drafts: k; 0 leaves p to be drawn.
    """
    p, q, k = jnp.exp(log_p), jnp.exp(log_q), jnp.maximum(drafts, 1)[..., None]

    def shared(rho: jax.Array) -> tuple[jax.Array, jax.Array]:
        beta = jnp.minimum(p / rho, q).sum(axis=-1, keepdims=True)
        return beta, 1 - (1 - beta) ** k

    def halved(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        beta, some = shared(middle)
        return jnp.where(some > middle * beta, middle, low), jnp.where(some > middle * beta, high, middle)

    _, rho = jax.lax.fori_loop(0, 30, halved, (jnp.ones_like(p[..., :1]), k.astype(p.dtype)))
    beta, some = shared(rho)
    left = p - jnp.minimum(p / rho, q) * some / jnp.maximum(beta, 1e-30)
    left = jnp.where(left.max(axis=-1, keepdims=True) > 0, jnp.maximum(left, 0), p)
    return KSeq(log_p - log_q - jnp.log(rho), jnp.log(jnp.where(drafts[..., None] > 0, left, p)))
