"""First drafts of positions that no call has seen: where a window begins its iteration.

Each is drawn from the distribution that is stored with it, whatever that is, so all are lossless; they differ in how many
stand.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from generator.sampling.calls import Caller
from generator.sampling.distribution import certain, draw
from generator.sampling.interface import Aids
from generator.sampling.noise import Noise
from generator.sampling.speculative import Drafts, FirstDrafts, Past


def any_code(past: Past, noise: Noise, size: int) -> Drafts:
    """Uniform over the codes."""
    return drawn(jnp.full((*noise.positions.shape, size), -jnp.log(size)), noise)


def frequency(frequencies: Float[Array, "B N V"] | None) -> FirstDrafts:
    """As often as codes stand at the position in training images of the class."""
    assert frequencies is not None

    def draw_often(past: Past, noise: Noise, size: int) -> Drafts:
        return drawn(jnp.take_along_axis(frequencies, noise.positions[..., None], axis=1), noise)

    return FirstDrafts(draw_often)


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


class Way(NamedTuple):
    """A way to draft: of aids and how the model is asked; and which aids it asks for."""

    of: Callable[[Aids, Caller], FirstDrafts]
    asks: frozenset[str] = frozenset()


FIRST_DRAFTS: dict[str, Way] = {
    "uniform": Way(lambda aids, ask: FirstDrafts(any_code)),
    "frequency": Way(lambda aids, ask: frequency(aids.frequencies), frozenset({"frequencies"})),
    "repeat_left": Way(lambda aids, ask: FirstDrafts(repeat_left)),
    "sample_left": Way(lambda aids, ask: FirstDrafts(sample_left, proposals=True)),
    "above": Way(lambda aids, ask: FirstDrafts(above)),
}
