"""Speculative decoding: a window of drafts of every row is judged in one call of the model; propose -> verify -> carry.

A call at a window of W drafts gives p of all W, each given the drafts before it, so that those which stand are drawn
together (Leviathan et al., arXiv:2211.17192). The drafts come from the row itself: what a call says of positions that were
not reached is what the next one starts from (speculative Jacobi decoding, arXiv:2410.01699).

Rows advance on their own: each has its place in the sequence and in the cache, which never rolls back, since a query sees
no later slots and drafts are fed anew. What a row draws does not depend on the other rows of its batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from generator.generator import Condition
from generator.sampling.calls import Caller, Revise, caller
from generator.sampling.distribution import Filters, draw
from generator.sampling.interface import Model, SampleOutput
from generator.sampling.noise import Noise
from models.errors import UserError
from models.tokens import Grid, Tokens


class Drafts(NamedTuple):
    """What the window of every row holds.

    Attributes:
      tokens: int32 (B, W).
      log_q: float32 (B, W, V), the distributions that they were drawn from, given all that was drawn before them; None for
        methods that do not ask.
    """

    tokens: Int[Array, "B W"]
    log_q: Any


class Verdict(NamedTuple):
    """What the model says of drafts.

    Attributes:
      stands: a draft is drawn, provided that all before it are.
      instead: what is drawn in the place of one that does not stand.
    """

    stands: Bool[Array, "B W"]
    instead: Int[Array, "B W"]


class Past(NamedTuple):
    """What first drafts may follow.

    Attributes:
      ids: int32 (B, N), drawn or drafted, of positions before `end`.
      end: int32 (B,), the first position without a draft.
      last: the draft before it, where there is one: a window of one.
      width: of a row of the image, in tokens.
    """

    ids: Int[Array, "B N"]
    end: Int[Array, "B"]
    last: Drafts
    width: int


class Method(NamedTuple):
    """A speculative sampler: what stands, and what the next drafts of positions that were not reached are."""

    verify: Callable[[jax.Array, Drafts, Noise], Verdict]  # of log p (B, W, V)
    carry: Callable[[jax.Array, Drafts, Verdict, Noise], Drafts]
    proposals: bool  # whether it asks for the distributions of drafts


class Seen(NamedTuple):
    """What the last call of the model saw, and what it gave.

    Attributes:
      first: int32 (B,), the first of its W positions.
      ids: int32 (B, N), the tokens as they were then.
      hidden: (R, W, D), what the head was asked with.
    """

    first: Int[Array, "B"]
    ids: Int[Array, "B N"]
    hidden: Float[Array, "R W D"]


class FirstDrafts(NamedTuple):
    """How positions that no call has seen are drafted.

    Attributes:
      draw: (past, noise of the positions, codes) -> drafts, those of which are taken that no call has seen.
      proposals: whether `draw` asks for the distributions of the drafts before.
      refine: (log q of a position (B, V), what the last call saw, ids as they are now, position (B,)) -> log q. With it the
        whole window is drawn anew from left to right, so that every draft follows what is before it now.
    """

    draw: Callable[[Past, Noise, int], Drafts]
    proposals: bool = False
    refine: Callable[[jax.Array, Seen, jax.Array, jax.Array], jax.Array] | None = None


class State(NamedTuple):
    """Between two calls of the model: `done` tokens of each row are drawn, and a window from there on is drafted."""

    turn: Int[Array, ""]
    ids: Int[Array, "B N"]
    done: Int[Array, "B"]
    drafts: Drafts
    cache: Any
    accepted: Int[Array, "B N"]


def speculative(
    generator: Model,
    condition: Condition,
    images: Int[Array, "B"],
    *,
    method: Method,
    first_drafts: Callable[[Caller], FirstDrafts],
    window: int,
    seed: int,
    filters: Filters,
    scales: Float[np.ndarray, "N"],
    revise: Revise | None = None,
) -> SampleOutput:
    """Draw all tokens of every row, as many a call as stand; traced whole, so that a batch is one program.

    Args:
      generator: with `scan_layers=False`, of tokens one after the other.
      condition: of each image.
      images: index of each image in its run, which with the seed decides its noise.
      method: what stands, and what is drafted next.
      first_drafts: what is drafted first, of how the model is asked.
      window: W, drafts a call.
      seed: of the run.
      filters: of every distribution.
      scales: guidance scale at each position.
      revise: (state, log p, positions) -> log p to go on with; for tokens that are known.
    """
    ask = caller(generator, condition, scales=scales, filters=filters, revise=revise)
    propose = first_drafts(ask)
    shape, batch = generator.spec.shape, len(images)
    count, codes = generator.spec.positions, generator.spec.sizes[0]
    assert isinstance(shape, Grid)
    proposals = method.proposals or propose.proposals or bool(propose.refine)
    index, row = jnp.arange(window), jnp.arange(batch)[:, None]

    def drafted(state: State, shift: jax.Array, carried: Drafts, seen: Seen | None = None) -> Drafts:
        """The window moved to where the rows are now, with first drafts for what it newly reaches."""
        first = jnp.minimum(state.done, count - window)
        noise = Noise(seed, images, first[:, None] + index, state.turn)
        last = jax.tree.map(lambda x: x[:, -1:], carried)
        past = Past(state.ids, first + window - shift, last, shape.width)
        proposed = propose.draw(past, noise, codes)
        drafts = moved(carried, proposed if proposals else proposed._replace(log_q=None), shift)
        if propose.refine is None or seen is None:
            return drafts
        return refined(drafts.log_q, propose.refine, seen, state.ids, state.done, noise)

    def call(state: State) -> State:
        # At the sequence's end the window stays within it, and some of it is drawn already.
        first = jnp.minimum(state.done, count - window)
        positions = first[:, None] + index
        noise = Noise(seed, images, positions, state.turn)
        before = jnp.take_along_axis(state.ids, jnp.maximum(positions[:, :1] - 1, 0), axis=1)
        fed = jnp.concatenate([before, state.drafts.tokens[:, :-1]], axis=1)
        hidden, cache = ask(state.cache, fed, positions)
        log_p = ask.log_p(hidden, positions)
        verdict = method.verify(log_p, state.drafts, noise)
        stands = verdict.stands | (positions < state.done[:, None])
        reached = jnp.cumprod(stands, axis=1).sum(axis=1)[:, None]
        carried = method.carry(log_p, state.drafts, verdict, noise)
        carried = carried if proposals else carried._replace(log_q=None)
        tokens = jnp.where(index == reached, verdict.instead, carried.tokens)
        tokens = jnp.where(index < reached, state.drafts.tokens, tokens)
        done = first + jnp.minimum(reached[:, 0] + 1, window)
        seen = Seen(first, state.ids.at[row, positions].set(state.drafts.tokens), hidden)
        state = State(
            state.turn + 1, state.ids.at[row, positions].set(tokens), done, state.drafts, cache,
            state.accepted.at[:, state.turn].set(done - state.done),
        )  # fmt: skip
        shift = jnp.minimum(done, count - window) - first
        return state._replace(drafts=drafted(state, shift, carried._replace(tokens=tokens), seen))

    ids = jnp.zeros((batch, count), jnp.int32)
    nothing = Drafts(ids[:, :window], jnp.zeros((batch, window, codes)) if proposals else None)
    state = State(jnp.int32(0), ids, jnp.zeros(batch, jnp.int32), nothing, ask.cache(), ids)
    state = state._replace(drafts=drafted(state, jnp.full(batch, window), nothing))
    state = jax.lax.while_loop(lambda state: (state.done < count).any(), call, state)
    calls = (state.accepted > 0).sum(axis=1)
    return SampleOutput(Tokens(state.ids[..., None]), calls + bool(ask.silent), (), state.accepted)


def refined(
    log_q: Float[Array, "B W V"],
    refine: Callable[[jax.Array, Seen, jax.Array, jax.Array], jax.Array],
    seen: Seen,
    ids: Int[Array, "B N"],
    done: Int[Array, "B"],
    noise: Noise,
) -> Drafts:
    """Drafts drawn from left to right with the noise that positions keep, each from what `refine` makes of its log q."""
    kept, row = noise.kept(log_q.shape[-1]), jnp.arange(len(done))

    def step(index: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        ids, log_q = carry
        position = noise.positions[:, index]
        better = refine(log_q[:, index], seen, ids, position)
        token = jnp.where(position < done, ids[row, position], draw(better, kept[:, index]))
        return ids.at[row, position].set(token), log_q.at[:, index].set(better)

    ids, log_q = jax.lax.fori_loop(0, kept.shape[1], step, (ids, log_q))
    return Drafts(jnp.take_along_axis(ids, noise.positions, axis=1), log_q)


def moved(window: Any, beyond: Any, shift: Int[Array, "B"]) -> Any:
    """Arrays (B, W, ...) from `shift` on, filled up with what is beyond at their ends."""

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        where = jnp.arange(new.shape[1]) + shift[:, None]
        where = where.reshape(*where.shape, *(1,) * (old.ndim - 2))
        kept = jnp.take_along_axis(old, jnp.minimum(where, old.shape[1] - 1), axis=1)
        return jnp.where(where < old.shape[1], kept, new)

    return jax.tree.map(one, window, beyond)


def refuse(generator: Model, window: int) -> None:
    """Raise UserError for a model, or a window, that there is nothing to speculate on with."""
    if generator.layout.feed != "tokens" or len(generator.spec.sizes) != 1:
        raise UserError(
            "speculative samplers are for tokens that are drawn one after the other; take sampler.name=sequential."
        )
    if not 1 <= window <= generator.spec.positions:
        raise UserError(
            f"sampler.window {window} is not within 1 and the {generator.spec.positions} tokens of an image."
        )
