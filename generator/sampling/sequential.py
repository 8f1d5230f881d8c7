"""Sequential decoding: one call of the model for every time of the layout, with which every faster sampler is compared."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generator.generator import Condition
from generator.layouts import SequenceLayout
from generator.sampling.distribution import Filters, draw, target_distribution
from generator.sampling.guidance import paired, runs, unpaired
from generator.sampling.interface import Feed, Model, SampleOutput
from generator.sampling.noise import gumbel_noise
from models.tokens import Tokens
from models.transformer import grown

# Every loop over tokens is compiled on its own, and has a cache with room for its own slots alone.
MOST_LOOPS, SHORTEST_LOOP = 4, 128
Carry = tuple[jax.Array, jax.Array, Any, Any]  # ids (B, N, K), what feeds the slots, the feed's state, the cache


def sequential(
    generator: Model,
    condition: Condition,
    images: Int[Array, "B"],
    feed: Feed,
    *,
    seed: int,
    filters: Filters,
    scales: Float[np.ndarray, "S"],
    smooth: bool = False,
    revise: Callable[[Any, jax.Array, Any], jax.Array] | None = None,
) -> SampleOutput:
    """Sample time after time, in the layout's order; traced whole, so that a batch is one program.

    Guided times are computed with the conditional and the unconditional rows in one batch. Where the scale is 1 the
    unconditional rows are left out; should guidance come back later, their cache is filled with one call.

    Args:
      generator: with `scan_layers=False`.
      condition: of each image.
      images: index of each image in its run, which with the seed decides its noise.
      feed: what feeds the layout's slots.
      seed: of the run.
      filters: temperature, top-k and top-p.
      scales: guidance scale at each time (`guidance_scales`).
      smooth: feed the codes as a mixture in the shares of `mixture` (VAR's `more_smooth`): for pictures only, as what is drawn
        then follows no distribution of tokens.
      revise: (state, log p (B, n, V) at a time, the time) -> log p to go on with; for tokens that are known.
    """
    layout, batch = generator.layout, len(images)
    nothing = generator.condition.null(condition)
    asked = {True: paired(condition, nothing), False: condition}  # by "is guided"
    start = {guided: generator.start(rows) for guided, rows in asked.items()}
    contexts = {guided: generator.context(rows) for guided, rows in asked.items()}
    caches = {unconditional: generator.init_cache(batch, 0) for unconditional in (False, True)}
    behind = 0  # slots that the unconditional cache lacks start here

    def call(time: Any, carry: Carry, *, piece: Piece, guided: bool) -> Carry:
        ids, fed, state, cache = carry
        slots, position = piece.slots(time), piece.position(time)
        if isinstance(time, int) and time == 0:
            x = start[guided]
        else:
            first = jnp.maximum(slots[0] - layout.conditions, 0)
            x = generator.embed(jax.lax.dynamic_slice_in_dim(fed, first, len(slots), axis=1))
            x = jnp.repeat(x, 2, axis=0) if guided else x
            if len(slots) == layout.conditions:  # the condition may be what a loop begins with
                x = jnp.where(time == 0, start[guided], x)
        outputs, cache = generator.extend(cache, x, slots, contexts[guided])
        outputs = outputs[:, -piece.tokens :]
        conditional, unconditional = unpaired(outputs) if guided else (outputs, None)
        log_probs = target_distribution(conditional, unconditional, jnp.asarray(scales)[time], filters)
        positions = jnp.broadcast_to(position + jnp.arange(piece.tokens), (batch, piece.tokens))
        if revise is not None:
            log_probs = revise(state, log_probs, time)
        drawn = draw(log_probs, gumbel_noise(seed, images, positions, log_probs.shape[-1]))[..., None]
        ids = jax.lax.dynamic_update_slice_in_dim(ids, drawn, position, axis=1)
        codes = drawn
        if smooth:
            noise = gumbel_noise(seed, images, layout.slots + positions, log_probs.shape[-1])  # of no token
            codes = mixture(log_probs, noise, time / max(len(scales) - 1, 1))
        state, inputs = feed.next(state, codes, time)
        if inputs is not None and fed.shape[1]:
            fed = jax.lax.dynamic_update_slice_in_dim(fed, inputs, slots[-1] + 1 - layout.conditions, axis=1)
        return ids, fed, state, cache

    calls, state = 0, feed.start(batch)
    ids = jnp.zeros((batch, generator.spec.positions, len(generator.spec.sizes)), jnp.int32)
    fed = empty_inputs(generator, feed, state, ids)
    for begin, end, guided in runs(scales):
        reached = layout.groups[begin][0]
        if guided and reached > behind:
            known = jnp.concatenate([generator.start(nothing), generator.embed(fed)], axis=1)[:, behind:reached]
            slots = np.arange(behind, reached, dtype=np.int32)
            _, caches[True] = generator.extend(caches[True], known, slots, generator.context(nothing))
            calls += 1
        carry = (ids, fed, state, paired(caches[False], caches[True]) if guided else caches[False])
        for piece in pieces(layout, begin, end):
            step = partial(call, piece=piece, guided=guided)
            if piece.end - piece.begin == 1:
                carry = step(piece.begin, carry)
            else:
                carry = (*carry[:3], grown(carry[3], piece.read))
                carry = jax.lax.fori_loop(piece.begin, piece.end, step, carry)
        ids, fed, state, cache = carry
        caches[False] = cache
        if guided:
            (caches[False], caches[True]), behind = unpaired(cache), layout.groups[end - 1][1]
        calls += end - begin
    return SampleOutput(Tokens(ids), jnp.full((batch,), calls, jnp.int32), state)


class Piece(NamedTuple):
    """Times from `begin` to before `end` whose calls have one shape.

    Attributes:
      begin: the first time.
      end: the one after the last.
      first: slot of the first time.
      size: slots of each time.
      target: token of the first time.
      tokens: that each time predicts, from its last slots.
      read: slots that the last time sees.
    """

    begin: int
    end: int
    first: int
    size: int
    target: int
    tokens: int
    read: int

    def slots(self, time: Any) -> Any:
        """The slots of a time; numpy's where it is known."""
        if isinstance(time, int):
            return np.arange(self.size, dtype=np.int32) + self.first
        return jnp.arange(self.size, dtype=jnp.int32) + (self.first + (time - self.begin) * self.size)

    def position(self, time: Any) -> Any:
        """The first token that a time predicts."""
        return self.target + (time - self.begin) * self.tokens


def pieces(layout: SequenceLayout, begin: int, end: int) -> list[Piece]:
    """The times from `begin` to before `end`, those of one shape together, but only so many that they read little in vain."""
    found: list[Piece] = []
    longest = max(SHORTEST_LOOP, -(-len(layout.groups) // MOST_LOOPS))
    for time in range(begin, end):
        start, stop = layout.groups[time]
        targets = layout.target[start:stop]
        tokens = int((targets >= 0).sum())
        alike = found and (found[-1].size, found[-1].tokens) == (stop - start, tokens)
        if (
            layout.feed == "tokens" and alike and time - found[-1].begin < longest
        ):  # features are made otherwise each time
            found[-1] = found[-1]._replace(end=time + 1, read=stop)
        else:
            found.append(Piece(time, time + 1, start, stop - start, int(targets[-tokens]), tokens, stop))
    return found


def empty_inputs(generator: Model, feed: Feed, state: Any, ids: Int[Array, "B N K"]) -> jax.Array:
    """Room for what feeds every slot but the condition's."""
    layout = generator.layout
    first = pieces(layout, 0, 1)[0].tokens
    _, inputs = jax.eval_shape(lambda: feed.next(state, ids[:, :first], 0))
    if inputs is None:
        return jnp.zeros((len(ids), 0))
    return jnp.zeros((len(ids), layout.slots - layout.conditions, *inputs.shape[2:]), inputs.dtype)


def mixture(log_probs: Float[Array, "B n V"], noise: Float[Array, "B n V"], progress: Any) -> Float[Array, "B n V"]:
    """Shares of the codes by Gumbel softmax (arXiv:1611.01144), harder the later: what VAR's `more_smooth` mixes codes in."""
    temperature = jnp.maximum(0.27 * (1 - 0.95 * progress), 0.005)
    return jax.nn.softmax((log_probs * (1 + progress) + noise) / temperature, axis=-1)
