"""What a kernel is told of a mask: the list of blocks in which somebody sees something, and its columns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from models.masks import FULL, INFINITY, NEVER, PARTIAL, SKIPPED, Visibility, block_kinds, of_kind

# What a visit is, in bits.
WHOLE = 1  # everybody sees everything: no entry is compared
OPENS, CLOSES = 2, 4  # the first, and the last, of its row of blocks
ENTERS, LEAVES = 8, 16  # the first, and the last, of its sample


class Visits(NamedTuple):
    """Blocks in the order in which they are visited, row by row; int32.

    Attributes:
      sample: of the mask, 0 where all samples share one.
      query: block of queries.
      key: block of keys.
      flags: of the bits above.
      length: how many there are; those behind are of no meaning. Known before the program runs where the mask is.
    """

    sample: Int[Array | np.ndarray, "N"]
    query: Int[Array | np.ndarray, "N"]
    key: Int[Array | np.ndarray, "N"]
    flags: Int[Array | np.ndarray, "N"]
    length: int | Int[Array, ""]


def visits(visibility: Visibility, queries: int, keys: int, *, by_keys: bool = False) -> Visits:
    """The blocks of so many queries by so many keys that are to be visited."""
    return listed(block_kinds(visibility, queries, keys), by_keys=by_keys)


def listed(kinds: Int[Array | np.ndarray, "*B m n"], *, by_keys: bool = False) -> Visits:
    """The blocks of these kinds that are to be visited.

    A row is all that falls to one block of queries, or of keys. One in which nobody sees anything is visited once: its zeros
    are to be written.

    Args:
      kinds: of `block_kinds`, of all samples or of each.
      by_keys: whether blocks of keys are the rows.
    """
    xp, kinds = of_kind(kinds), kinds if kinds.ndim == 3 else kinds[None]
    kinds = kinds.swapaxes(1, 2) if by_keys else kinds
    rows, columns = kinds.shape[1:]
    nothing = (kinds == SKIPPED).all(axis=-1, keepdims=True) & (np.arange(columns) == 0)
    kinds = xp.where(nothing, PARTIAL, kinds).reshape(-1)
    order = xp.argsort(kinds == SKIPPED, stable=True)  # those that are visited first, each in its place
    count = (kinds != SKIPPED).sum()
    if xp is np:
        order = order[: int(count)]
    row, index = order // columns, np.arange(len(order))
    before, after, last = xp.roll(order, 1), xp.roll(order, -1), index == count - 1

    def edges(size: int) -> tuple[Array | np.ndarray, Array | np.ndarray]:
        """Who is the first, and who the last, of so many consecutive blocks."""
        own = order // size
        return (index == 0) | (before // size != own), last | (after // size != own)

    bits = [kinds[order] == FULL, *edges(columns), *edges(rows * columns)]
    flags = xp.stack([bit * flag for bit, flag in zip(bits, (WHOLE, OPENS, CLOSES, ENTERS, LEAVES))]).sum(axis=0)
    parts = (row // rows, row % rows, order % columns)
    sample, query, key = (part.astype(np.int32) for part in (parts[0], *(parts[:0:-1] if by_keys else parts[1:])))
    return Visits(sample, query, key, flags.astype(np.int32), int(count) if xp is np else count)


def bounds(walk: Visits, rows: int) -> Int[Array | np.ndarray, "_"]:
    """Where in the list each of so many rows of blocks, of all samples, begins, and where the last one ends; int32."""
    xp, index = of_kind(walk.flags), np.arange(len(walk.flags))
    closes = (walk.flags & CLOSES != 0) & (index < walk.length)
    ends = xp.sort(xp.where(closes, index + 1, len(index) + 1))[:rows]
    return xp.concatenate([xp.zeros(1, np.int32), ends.astype(np.int32)])


def by_sample(visibility: Visibility) -> bool:
    """Whether every sample has a mask of its own."""
    return any(column.ndim == 2 for column in visibility)


def ends(visibility: Visibility) -> bool:
    """Whether some key ends being seen, or may."""
    return of_kind(visibility.k_end) is not np or bool((visibility.k_end != INFINITY).any())


def columns(visibility: Visibility, T: int, S: int, *, batch: int) -> Visibility:
    """The mask's columns (B, or 1 for all samples, slots) up to so many slots: nobody sees a key behind the last."""
    samples = batch if by_sample(visibility) else 1

    def column(x: Any, slots: int, beyond: int) -> jax.Array:
        rows = jnp.broadcast_to(x, (samples, x.shape[-1]))
        return jnp.pad(rows, ((0, 0), (0, slots - x.shape[-1])), constant_values=beyond)

    return Visibility(*(column(x, *of) for x, *of in zip(visibility, (T, S, S), (NEVER, INFINITY, NEVER))))
