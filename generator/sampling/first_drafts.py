"""First drafts of positions that no call has seen: where a window begins its iteration.

Each is drawn from the distribution that is stored with it, whatever that is, so all are lossless; they differ in how many
stand.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from generator.forecast import Forecast, forecast_hidden
from generator.sampling.calls import Caller
from generator.sampling.distribution import certain, draw
from generator.sampling.interface import Aids
from generator.sampling.noise import Noise
from generator.sampling.speculative import Drafts, FirstDrafts, Past, Seen
from models.tokens import Grid


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


class Pairs(NamedTuple):
    """log of how many times as often as anywhere a code stands beside a neighbour: [neighbour, code]."""

    left: Float[Array, "V V"]
    above: Float[Array, "V V"]


def neighbours(frequencies: Float[Array, "B N V"] | None, pairs: Pairs | None, width: int) -> FirstDrafts:
    """By frequency; and where a neighbour is no longer what the last call saw, as the pairs with both of them differ.

    A position that no call has seen had no neighbours yet.
    """
    assert pairs is not None
    left, above = pairs

    def refine(log_q: jax.Array, seen: Seen, ids: jax.Array, position: jax.Array) -> jax.Array:
        row, end = jnp.arange(len(position)), seen.first + seen.hidden.shape[1]

        def changed(table: jax.Array, distance: int, beside: jax.Array) -> jax.Array:
            at = jnp.maximum(position - distance, 0)
            known = (position < end)[:, None]
            more = table[ids[row, at]] - jnp.where(known, table[seen.ids[row, at]], 0)
            return jnp.where(beside[:, None], more, 0)

        return log_q + changed(left, 1, position % width > 0) + changed(above, width, position >= width)

    return frequency(frequencies)._replace(refine=refine)


def by_forecast(frequencies: Float[Array, "B N V"] | None, forecast: Forecast, ask: Caller) -> FirstDrafts:
    """From what the model would say, by the forecast, of the tokens as they are now; by frequency before the first call."""

    def refine(log_q: jax.Array, seen: Seen, ids: jax.Array, position: jax.Array) -> jax.Array:
        hidden = forecast_hidden(forecast, ask, seen, ids, position[:, None])
        return ask.log_p(hidden, position[:, None])[:, 0]

    return frequency(frequencies)._replace(refine=refine)


def width_of(ask: Caller) -> int:
    """Of a row of the model's image, in tokens."""
    shape = ask.model.spec.shape
    assert isinstance(shape, Grid)
    return shape.width


class Way(NamedTuple):
    """A way to draft: of aids and how the model is asked; and which aids it asks for."""

    of: Callable[[Aids, Caller], FirstDrafts]
    asks: frozenset[str] = frozenset()


FIRST_DRAFTS: dict[str, Way] = {
    "uniform": Way(lambda aids, ask: FirstDrafts(any_code)),
    "frequency": Way(lambda aids, ask: frequency(aids.frequencies), frozenset({"frequencies"})),
    "neighbours": Way(
        lambda aids, ask: neighbours(aids.frequencies, aids.pairs, width_of(ask)), frozenset({"frequencies", "pairs"})
    ),
    "forecast": Way(
        lambda aids, ask: by_forecast(aids.frequencies, aids.forecast, ask), frozenset({"frequencies", "forecast"})
    ),
    "repeat_left": Way(lambda aids, ask: FirstDrafts(repeat_left)),
    "sample_left": Way(lambda aids, ask: FirstDrafts(sample_left, proposals=True)),
    "above": Way(lambda aids, ask: FirstDrafts(above)),
}
