"""ZipAR (He et al., arXiv:2412.04062): rows of the image are drawn side by side, each a window behind the one above. Lossy.

A row draws its column c once the row above has drawn `window` columns more, so that in a grid of h rows of w columns all is
drawn in w + (h - 1) window calls. What stands before c in raster order but is not drawn yet is not seen, and what a row's first
token is predicted from, the last one of the row above, is not there: the last one that the row above has drawn stands in
for it, and is overwritten as soon as the true one is known. So tokens are drawn from other distributions than the model
was trained for; with a window as wide as the grid they are the sequential sampler's, token for token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from generator.generator import Condition
from generator.layouts import raster
from generator.sampling.calls import Revise, caller
from generator.sampling.distribution import Filters, draw
from generator.sampling.interface import Model, SampleOutput
from generator.sampling.noise import gumbel_noise
from models.errors import UserError
from models.tokens import Grid, Tokens


class Calls(NamedTuple):
    """What every call of the model computes, in L lanes, one for each row of the image that is being drawn.

    Attributes:
      position: which token is predicted; its slot is fed with the token before.
      fed: with which token the slot is fed: the one before, or what stands in for it; -1 is the condition.
      draws: whether the token is drawn. Lanes that draw nothing mend what stood in, or do what another lane does.
    """

    position: Int[np.ndarray, "C L"]
    fed: Int[np.ndarray, "C L"]
    draws: Bool[np.ndarray, "C L"]


def plan(grid: Grid, window: int) -> Calls:
    """The calls of a grid."""
    height, width = grid.height, grid.width
    lag = min(window, width)  # calls between the first tokens of two rows
    first = lag * np.arange(height)
    column = np.arange(first[-1] + width)[:, None] - first  # (C, h)
    # Past its end, a row feeds the next one's first slot with its last token, unless that is what is fed anyway.
    mends = (column == width) & (lag < width) & (np.arange(height) < height - 1)
    busy = ((column >= 0) & (column < width)) | mends
    lanes = busy.sum(axis=1).max()
    # The busy rows of each call from the last one up: that one always draws, and idle lanes repeat it without drawing.
    rows = height - 1 - np.argsort(~busy[:, ::-1], axis=1, kind="stable")[:, :lanes]
    idle = ~np.take_along_axis(busy, rows, axis=1)
    rows = np.where(idle, rows[:, :1], rows)
    columns = np.take_along_axis(column, rows, axis=1)
    position = rows * width + columns
    stand_in = np.where(rows == 0, -1, (rows - 1) * width + lag - 1)
    fed = np.where(columns == 0, stand_in, position - 1)
    return Calls(position.astype(np.int32), fed.astype(np.int32), ~idle & (columns < width))


def zipar(
    generator: Model,
    condition: Condition,
    images: Int[Array, "B"],
    *,
    window: int,
    seed: int,
    filters: Filters,
    scales: Float[np.ndarray, "N"],
    revise: Revise | None = None,
) -> SampleOutput:
    """Draw all tokens, lossy unless the window is as wide as the grid; traced whole, so that a batch is one program.

    Args:
      generator: with `scan_layers=False`, of tokens in raster order.
      condition: of each image.
      images: index of each image in its run, which with the seed decides its noise.
      window: columns that a row is behind the one above.
      seed: of the run.
      filters: temperature, top-k and top-p.
      scales: guidance scale at each position.
      revise: (state, log p, positions) -> log p to go on with; for tokens that are known.
    """
    grid, batch, count = generator.spec.shape, len(images), generator.spec.positions
    assert isinstance(grid, Grid)
    ask = caller(generator, condition, scales=scales, filters=filters, revise=revise)
    calls = plan(grid, window)
    turns, lanes = np.arange(len(calls.fed)), calls.fed.shape[1]
    written = np.full(count, len(turns))  # the call that first feeds each token's slot
    np.minimum.at(written, calls.position, turns[:, None])
    written = np.append(np.full(ask.silent, -1), written)

    def call(carry: tuple[jax.Array, Any], now: tuple[jax.Array, Calls]) -> tuple[tuple[jax.Array, Any], None]:
        ids, cache = carry
        turn, (position, fed, draws) = now
        positions = jnp.broadcast_to(position, (batch, lanes))
        hidden, cache = ask(cache, ids[:, jnp.maximum(fed, 0)], positions, unwritten=jnp.asarray(written) > turn)
        log_p = ask.log_p(hidden, positions)
        drawn = draw(log_p, gumbel_noise(seed, images, positions, log_p.shape[-1]))
        return (ids.at[:, jnp.where(draws, position, count)].set(drawn, mode="drop"), cache), None

    carry = (jnp.zeros((batch, count), jnp.int32), ask.cache())
    (ids, _), _ = jax.lax.scan(call, carry, (jnp.asarray(turns), jax.tree.map(jnp.asarray, calls)))
    accepted = jnp.broadcast_to(jnp.asarray(calls.draws.sum(axis=1), jnp.int32), (batch, len(turns)))
    return SampleOutput(Tokens(ids[..., None]), jnp.full(batch, len(turns) + bool(ask.silent), jnp.int32), (), accepted)


def refuse(generator: Model, window: int) -> None:
    """Raise UserError for a model whose tokens are in no raster order, or a window of nothing."""
    layout, spec = generator.layout, generator.spec
    ordered = layout.feed == "tokens" and len(spec.sizes) == 1 and isinstance(spec.shape, Grid)
    if ordered:
        plain = raster(spec, layout.conditions)
        ordered = all(
            np.array_equal(getattr(layout, name), getattr(plain, name)) for name in ("source", "target", "time")
        )
    if not ordered:
        raise UserError("sampler.name=zipar draws the rows of one grid side by side, and is for the layout 'raster' alone; "
                        "take sampler.name=sequential.")  # fmt: skip
    if window < 1:
        raise UserError(f"sampler.window {window}: with zipar, a row is at least one token behind the one above.")
