"""Grouped speculative decoding (So et al., arXiv:2508.07747): a lossy rule, here over coupled drafts.

A draft x stands with probability min(1, P(C) / Q(C)), the masses under p and q of a cluster C of codes that may stand for
it: x, and of the seven codes that rank below it in p and the six above, those of like probability and near code. x itself is
kept, and what does not stand is replaced as if the rule were exact. So x has another share than p(x), and nothing bounds how
far what is drawn is from the model's distribution. As a cluster may weigh less than its draft, some drafts stand less often
than by the exact rule; with narrow bounds that can be so on the whole.

The paper's bounds are of one model. Here that of the probabilities is `relax` (there 0.15), and that of the squared distance
is the one within which a share `near` of all codes lies, by the tokenizer's codebook (there 0.5, by the generator's inputs).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from generator.sampling.codebook import checked, near_distance
from generator.sampling.distribution import draw
from generator.sampling.jacobi import ACCEPT, GUMBEL, REPLACE
from generator.sampling.noise import Noise
from generator.sampling.rules import likelihood, residual
from generator.sampling.speculative import Drafts, Method, Verdict

BELOW, ABOVE = 7, 6  # ranks


def gsd(codebook: Float[Array, "V C"] | None, *, relax: float, near: float) -> Method:
    """The lossy method for a tokenizer's codes.

    Args:
      codebook: the vector of each code.
      relax: codes of a cluster differ from the draft by less in p; 0 is exact.
      near: share of the codes that lie as near to one another as those of a cluster; 0 is exact.
    """
    codes = checked("gsd", codebook, relax, near)
    distance = near_distance(codes, near)

    def verify(log_p: jax.Array, drafts: Drafts, noise: Noise) -> Verdict:
        ratio = cluster_ratio(log_p, drafts.log_q, drafts.tokens, codes, relax, distance)
        instead = draw(residual(log_p, drafts.log_q), noise.fresh(log_p.shape[-1], REPLACE))
        return Verdict(jnp.log(noise.uniform(ACCEPT)) < ratio, instead)

    return GUMBEL._replace(verify=verify)


def cluster_ratio(
    log_p: Float[Array, "*B V"],
    log_q: Float[Array, "*B V"],
    tokens: Int[Array, "*B"],
    codebook: Float[Array, "V C"],
    relax: float,
    distance: Float[Array, ""] | float,
) -> Float[Array, "*B"]:
    """log P(C) - log Q(C) of each token's cluster; -inf for tokens that p excludes, which are in no cluster."""
    codes, x, own = log_p.shape[-1], tokens[..., None], likelihood(log_p, tokens)[..., None]
    index = jnp.arange(codes)
    above = (log_p > own) | ((log_p == own) & (index < x))
    below = ~above & (index != x)

    def first(which: jax.Array, order: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """The first codes of some, and whether there are so many."""
        found = jax.lax.top_k(jnp.where(which, order, -jnp.inf), min(count, codes - 1))[1]
        return found, jnp.take_along_axis(which, found, axis=-1)

    (lower, are_lower), (higher, are_higher) = first(below, log_p, BELOW), first(above, -log_p, ABOVE)
    others = jnp.concatenate([lower, higher], axis=-1)
    likely = jnp.take_along_axis(log_p, others, axis=-1)
    member = jnp.concatenate([are_lower, are_higher], axis=-1) & (likely > -jnp.inf)
    member &= jnp.abs(jnp.exp(likely) - jnp.exp(own)) < relax
    member &= jnp.sum((codebook[others] - codebook[x]) ** 2, axis=-1) < distance

    def mass(log: jax.Array) -> jax.Array:
        both = jnp.concatenate([x, others], axis=-1)
        counted = jnp.concatenate([jnp.ones_like(x, dtype=bool), member], axis=-1)
        return jax.nn.logsumexp(jnp.where(counted, jnp.take_along_axis(log, both, axis=-1), -jnp.inf), axis=-1)

    return jnp.where(own[..., 0] > -jnp.inf, mass(log_p) - mass(log_q), -jnp.inf)
