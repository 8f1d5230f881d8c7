"""LANTERN (Jang et al., arXiv:2410.03355) and LANTERN++ (arXiv:2502.06352): their lossy rule, over coupled drafts.

A draft x stands with probability min(1, (p(x) + p(A)) / q(x)): the probability of codes A(x) counts as that of x. They are
the codes nearest to x in the tokenizer's codebook, as many of its k nearest as sum to at most a bound:

- delta q(x). In the papers drafts are certain, q(x) = 1; coupled ones have a distribution, under which each code would take up
  delta of its own, all of them together what they please. With q(x), a draft stands more often by at most delta.
- lambda p(x), LANTERN++'s.

What does not stand is replaced as if the rule were exact. So each token is drawn from a distribution that differs from p by
sum_x min(p(A(x)), max(q - p, 0)(x)) in total variation: at most delta, or lambda, and never more than that of drafts. The
public code leaves x's k neighbours out of what replaces it, which takes all their probability away, whatever the bound.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from generator.sampling.codebook import checked, nearest
from generator.sampling.distribution import draw
from generator.sampling.jacobi import ACCEPT, GUMBEL, REPLACE
from generator.sampling.noise import Noise
from generator.sampling.rules import likelihood, residual
from generator.sampling.speculative import Drafts, Method, Verdict


def lantern(codebook: Float[Array, "V C"] | None, *, relax: float, near: float) -> Method:
    """The lossy method for a tokenizer's codes.

    Args:
      codebook: the vector of each code.
      relax: the bound on p(A): delta if it is below 1, else lambda = relax - 1, as in the public code; 0 and 1 are exact.
      near: k as a share of the codes, rounded up; 0 is exact. The papers' 1000 of 16384 are 0.06.
    """
    # Ranked once, before the loop.
    table = nearest(checked("lantern", codebook, relax, near), near)

    def verify(log_p: jax.Array, drafts: Drafts, noise: Noise) -> Verdict:
        neighbours = table[drafts.tokens]
        ratio = relaxed_ratio(log_p, drafts.log_q, drafts.tokens, neighbours, relax)
        instead = draw(residual(log_p, drafts.log_q), noise.fresh(log_p.shape[-1], REPLACE))
        return Verdict(jnp.log(noise.uniform(ACCEPT)) < ratio, instead)

    return GUMBEL._replace(verify=verify)


def relaxed_ratio(
    log_p: Float[Array, "*B V"],
    log_q: Float[Array, "*B V"],
    tokens: Int[Array, "*B"],
    neighbours: Int[Array, "*B k"],
    relax: float,
) -> Float[Array, "*B"]:
    """log((p(x) + p(A)) / q(x)) of each token, given its neighbours, the nearest first."""
    own, drafted = likelihood(log_p, tokens), likelihood(log_q, tokens)
    bound = relax * jnp.exp(drafted) if relax < 1 else (relax - 1) * jnp.exp(own)
    sums = jnp.cumsum(jnp.exp(jnp.take_along_axis(log_p, neighbours, axis=-1)), axis=-1)
    moved = jnp.where(sums <= bound[..., None], sums, 0).max(axis=-1, initial=0)
    return jnp.logaddexp(own, jnp.log(moved)) - drafted
