"""Fixed-noise decoding (Wiggers and Hoogeboom, arXiv:2002.09928): the sequential sampler's image, token for token.

Every position keeps its Gumbel noise, so a token is a function of those before it, and a window of drafts is iterated to the
fixed point of argmax(log p + noise). A draft that equals what the function gives for it stands.
"""

import jax

from generator.sampling.distribution import draw
from generator.sampling.noise import Noise
from generator.sampling.speculative import Drafts, Method, Verdict


def verify(log_p: jax.Array, drafts: Drafts, noise: Noise) -> Verdict:
    """Equal to what the noise draws."""
    drawn = draw(log_p, noise.kept(log_p.shape[-1]))
    return Verdict(drawn == drafts.tokens, drawn)


def carry(log_p: jax.Array, drafts: Drafts, verdict: Verdict, noise: Noise) -> Drafts:
    """What the noise draws from p as it is now."""
    return Drafts(verdict.instead, log_p)


FIXED_NOISE = Method(verify, carry, proposals=False)
