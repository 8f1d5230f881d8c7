"""First drafts of positions that no call has seen: where a window begins its iteration.

Each is drawn from the distribution that is stored with it, whatever that is, so all are lossless; they differ in how many
stand.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from generator.sampling.distribution import certain, draw
from generator.sampling.noise import Noise
from generator.sampling.speculative import Drafts, FirstDrafts, Past
from models.errors import UserError


def any_code(past: Past, noise: Noise, size: int) -> Drafts:
    """Uniform over the codes."""
    return drawn(jnp.full((*noise.positions.shape, size), -jnp.log(size)), noise)


def frequency(past: Past, noise: Noise, size: int) -> Drafts:
    """As often as codes stand at the position in training images of the class."""
    if past.frequencies is None:
        raise UserError(
            "sampler.first_drafts=frequency needs the frequencies that --job=extract counts; run it, or take another."
        )
    return drawn(jnp.take_along_axis(past.frequencies, noise.positions[..., None], axis=1), noise)


def repeat_left(past: Past, noise: Noise, size: int) -> Drafts:
    """The draft to the left; any code at the beginning of a row."""
    return of_the_left(past, noise, Drafts(past.last.tokens, certain(past.last.tokens, size)))


def sample_left(past: Past, noise: Noise, size: int) -> Drafts:
    """Drawn anew from the distribution of the draft to the left; any code at the beginning of a row."""
    return of_the_left(past, noise, drawn(past.last.log_q, noise))


def above(past: Past, noise: Noise, size: int) -> Drafts:
    """The token of the row above; any code in the first row."""
    beyond = noise.positions - past.width
    tokens = jnp.take_along_axis(past.ids, jnp.maximum(beyond, 0), axis=1)
    return where(beyond >= 0, Drafts(tokens, certain(tokens, size)), any_code(past, noise, size))


def drawn(log_q: Float[Array, "B _W V"], noise: Noise) -> Drafts:
    """Drafts from their distributions, with the noise that the positions keep."""
    kept = noise.kept(log_q.shape[-1])
    log_q = jnp.broadcast_to(log_q, kept.shape)
    return Drafts(draw(log_q, kept), log_q)


def of_the_left(past: Past, noise: Noise, drafts: Drafts) -> Drafts:
    """Drafts where there is a draft to the left in the same row of the image, elsewhere any code."""
    before = past.end[:, None] - 1
    alike = (before >= 0) & (before // past.width == noise.positions // past.width)
    return where(alike, drafts, any_code(past, noise, drafts.log_q.shape[-1]))


def where(which: Bool[Array, "B W"], drafts: Drafts, others: Drafts) -> Drafts:
    """Some of the one, the rest of the other."""
    return Drafts(
        jnp.where(which, drafts.tokens, others.tokens), jnp.where(which[..., None], drafts.log_q, others.log_q)
    )


# by name: how they are drawn, and whether the distributions of the drafts before them are asked for
FIRST_DRAFTS: dict[str, FirstDrafts] = {
    "uniform": FirstDrafts(any_code),
    "frequency": FirstDrafts(frequency),
    "repeat_left": FirstDrafts(repeat_left),
    "sample_left": FirstDrafts(sample_left, proposals=True),
    "above": FirstDrafts(above),
}
