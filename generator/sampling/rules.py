"""What stands of a draft, and what is drawn in its place, at one position; every function works on any leading axes.

Rejection (Leviathan et al., arXiv:2211.17192): x drawn from q stands with probability min(1, p(x) / q(x)); what is drawn
from max(p - q, 0), normalised, in its place makes the result a draw from p, and no rule lets more drafts stand.
"""

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
