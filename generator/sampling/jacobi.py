"""Speculative Jacobi decoding (Teng et al., arXiv:2410.01699), and with coupled drafts (So et al., arXiv:2510.24211).

A draft stands with probability min(1, p / q), q being the distribution of the call before, from which it was drawn. The three
differ in how positions that were not reached draw anew from p:

- `FRESH`: independently of the draft before;
- `GUMBEL`: with the noise that the position keeps, so that the draft changes little where p changes little;
- `MAXIMAL`: by the rule that judges drafts, which changes as few of them as any rule can.

In each a draft's law is the p that is stored with it, given all that was drawn before it: also where it stands (the public
code keeps the old q there, which is biased).
"""

import jax
import jax.numpy as jnp

from generator.sampling.distribution import draw
from generator.sampling.noise import Noise
from generator.sampling.rules import residual, stands
from generator.sampling.speculative import Drafts, Method, Verdict

ACCEPT, REPLACE, REDRAW = range(3)  # streams of noise


def verify(log_p: jax.Array, drafts: Drafts, noise: Noise) -> Verdict:
    """By the ratio of p and q."""
    size = log_p.shape[-1]
    kept = stands(log_p, drafts.log_q, drafts.tokens, noise.uniform(ACCEPT))
    return Verdict(kept, draw(residual(log_p, drafts.log_q), noise.fresh(size, REPLACE)))


def fresh(log_p: jax.Array, drafts: Drafts, verdict: Verdict, noise: Noise) -> Drafts:
    """Drawn from p."""
    return Drafts(draw(log_p, noise.fresh(log_p.shape[-1], REDRAW)), log_p)


def gumbel(log_p: jax.Array, drafts: Drafts, verdict: Verdict, noise: Noise) -> Drafts:
    """Drawn from p with the noise that stays."""
    return Drafts(draw(log_p, noise.kept(log_p.shape[-1])), log_p)


def maximal(log_p: jax.Array, drafts: Drafts, verdict: Verdict, noise: Noise) -> Drafts:
    """Those that stand, though what is before them does not, and what is drawn instead of the others."""
    return Drafts(jnp.where(verdict.stands, drafts.tokens, verdict.instead), log_p)


FRESH, GUMBEL, MAXIMAL = (Method(verify, carry, proposals=True) for carry in (fresh, gumbel, maximal))
