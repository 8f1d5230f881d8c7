"""The mask language: query t attends to key s iff k_start[s] <= q_time[t] < k_end[s].

Causal, grouped, bidirectional, prefix, packed, windowed, tree-shaped and random-order attention are all of this form
(a mask is iff, for some order of the queries, every key is seen by a contiguous run of them). Masks are data: they may be
traced, and differ from sample to sample, with no recompilation. What is known before the program runs is numpy's, and the
constructors that take arrays give back the kind that they are given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from models.errors import UserError

INFINITY = int(np.iinfo(np.int32).max)
NEVER = int(np.iinfo(np.int32).min)
SKIPPED, PARTIAL, FULL = 0, 1, 2  # of a block: nobody sees anything, some see something, all see everything

Column = Int[Array | np.ndarray, "*B T"]


class Visibility(NamedTuple):
    """Visibility intervals: int32, each with or without a leading batch axis."""

    q_time: Int[Array | np.ndarray, "*B T"]
    k_start: Int[Array | np.ndarray, "*B S"]
    k_end: Int[Array | np.ndarray, "*B S"]

    def as_array(self) -> Bool[Array | np.ndarray, "*B T S"]:
        """The mask that the intervals stand for, True where query t sees key s."""
        time = self.q_time[..., :, None]
        return (self.k_start[..., None, :] <= time) & (time < self.k_end[..., None, :])


def causal(length: int) -> Visibility:
    """Every query sees itself and what is before it."""
    return groups(np.arange(length, dtype=np.int32))


def groups(group: Column) -> Visibility:
    """Every query sees its own group and those before: scales, cells, diagonals."""
    return Visibility(q_time=group, k_start=group, k_end=forever(group))


def bidirectional(length: int) -> Visibility:
    """Every query sees every key."""
    return groups(np.zeros(length, np.int32))


def random_order(rank: Column, *, strict: bool = False) -> Visibility:
    """Every query sees itself and what comes before it in an order, which may be each sample's own.

    Args:
      rank: of every slot in the order.
      strict: whether it sees what is before it only (two-stream attention, arXiv:1906.08237).
    """
    return Visibility(q_time=rank, k_start=rank + np.int32(strict), k_end=forever(rank))


def prefix(length: int, seen: int | Int[Array | np.ndarray, "B"]) -> Visibility:
    """The first `seen` slots are seen by all, the others by themselves and what is after them."""
    visible, most = causal(length), seen if isinstance(seen, int) else seen[..., None]
    return visible._replace(k_start=(visible.k_start * (visible.k_start >= most)).astype(np.int32))


def packed(document: Column, *, both_ways: bool = False) -> Visibility:
    """Several documents in one sequence, none of which sees another.

    Args:
      document: of every slot, its number; those of one are consecutive. Negative: padding, which nobody sees.
      both_ways: whether a query sees its whole document, and not only what is before it.
    """
    xp, length = of_kind(document), document.shape[-1]
    time = xp.broadcast_to(np.arange(length, dtype=np.int32), document.shape)
    opens = xp.concatenate([xp.ones_like(document[..., :1]), xp.diff(document, axis=-1)], axis=-1) != 0
    number = xp.cumsum(opens, axis=-1)
    edges = xp.sort(xp.where(opens, time, length), axis=-1).astype(np.int32)  # where each opens, and then the end
    edges = xp.concatenate([edges, xp.full_like(edges[..., :1], length)], axis=-1)
    first, end = (xp.take_along_axis(edges, number - opened, axis=-1) for opened in (1, 0))
    return among(Visibility(q_time=time, k_start=first if both_ways else time, k_end=end), document >= 0)


def window(length: int, size: int) -> Visibility:
    """Every query sees itself and the `size` - 1 slots before it."""
    visible = causal(length)
    return visible._replace(k_end=visible.k_start + np.int32(size))


def clean_and_noisy(block: Int[np.ndarray, "T"]) -> Visibility:
    """A clean copy of a sequence and then a noisy one (block diffusion, arXiv:2503.09573; teacher-forced flow).

    A noisy block sees itself and the clean blocks before it, a clean block itself and the clean blocks before it.

    Args:
      block: of every slot of one copy.
    """
    noisy, clean = (2 * block).astype(np.int32), (2 * block + 1).astype(np.int32)
    time = np.concatenate([clean, noisy])
    return Visibility(q_time=time, k_start=time, k_end=np.concatenate([forever(clean), clean]))


def cache(
    time: Int[Array | np.ndarray, "*#B T"],
    position: Int[Array | np.ndarray, "*#B S"],
    written: Bool[Array | np.ndarray, "*#B S"],
) -> Visibility:
    """Queries that see what is written in the rows of a cache, up to their own place in the sequence.

    Args:
      time: where the queries stand in the sequence.
      position: where the cache's rows stand in it.
      written: whether there is anything in them.
    """
    return among(Visibility(q_time=time, k_start=position, k_end=forever(position)), written)


def among(visibility: Visibility, present: Bool[Array | np.ndarray, "*B S"]) -> Visibility:
    """The same without the keys that are not present: padding, rows of a cache that are not written."""
    start = of_kind(visibility.k_start, present).where(present, visibility.k_start, INFINITY)
    return visibility._replace(k_start=start.astype(np.int32))


def forever(column: Column) -> Column:
    """Ends of a column's keys that never come."""
    return of_kind(column).full_like(column, INFINITY)


def of_kind(*arrays: Any) -> Any:
    """numpy where all arrays are its own, so that they stay known before the program runs; jax.numpy elsewhere."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def both(a: Visibility, b: Visibility) -> Visibility:
    """A query sees what it sees by the one mask and by the other.

    Raises:
      UserError: no intervals say that, or the masks are known only when the program runs and do not share their times.
    """
    if a.q_time is b.q_time:
        xp = of_kind(*a, *b)
        return Visibility(a.q_time, xp.maximum(a.k_start, b.k_start), xp.minimum(a.k_end, b.k_end))
    return composed(np.logical_and, a, b)


def either(a: Visibility, b: Visibility) -> Visibility:
    """A query sees what it sees by the one mask or by the other; raises as `both` does."""
    return composed(np.logical_or, a, b)


def composed(operation: Callable[..., np.ndarray], a: Visibility, b: Visibility) -> Visibility:
    """Two masks joined entry by entry, in the order of the one's times and, where they are equal, of the other's."""
    if of_kind(*a, *b) is jnp:
        raise UserError("masks that are known only when the program runs are composed where they share their times; "
                        "give both the same array as q_time.")  # fmt: skip
    mask = operation(a.as_array(), b.as_array())
    times = [np.broadcast_to(visible.q_time, mask.shape[:-1]) for visible in (a, b)]
    for minor, major in (times, times[::-1]):
        order = np.lexsort([minor, major], axis=-1)
        sees = np.take_along_axis(mask, order[..., None], axis=-2)
        first, count = sees.argmax(axis=-2), sees.sum(axis=-2)
        end = mask.shape[-2] - sees[..., ::-1, :].argmax(axis=-2)
        if ((count == 0) | (count == end - first)).all():
            rank = np.argsort(order, axis=-1).astype(np.int32)
            start, end = np.where(count, first, INFINITY), np.where(end == mask.shape[-2], INFINITY, end)
            return Visibility(rank, start.astype(np.int32), end.astype(np.int32))
    raise UserError("the composed mask is not one of intervals: in no order of the queries that either mask's times give is "
                    "every key seen by consecutive queries.")  # fmt: skip


def block_kinds(visibility: Visibility, queries: int, keys: int) -> Int[Array | np.ndarray, "*B m n"]:
    """What is known of a block of so many queries by so many keys from its least and greatest times alone.

    `SKIPPED` and `FULL` are certain; of a block that is `PARTIAL`, single entries decide. The last blocks may reach beyond the
    sequence: a query there is as its last, and a key there is seen by nobody.
    """
    time = in_blocks(visibility.q_time, queries, None)
    start, end = in_blocks(visibility.k_start, keys, INFINITY), in_blocks(visibility.k_end, keys, NEVER)
    earliest, latest = time.min(axis=-1)[..., :, None], time.max(axis=-1)[..., :, None]
    somebody = (start.min(axis=-1)[..., None, :] <= latest) & (earliest < end.max(axis=-1)[..., None, :])
    everybody = (start.max(axis=-1)[..., None, :] <= earliest) & (latest < end.min(axis=-1)[..., None, :])
    return somebody.astype(np.int32) + everybody


def in_blocks(column: Column, size: int, beyond: int | None) -> Int[Array | np.ndarray, "*B n size"]:
    """A column in blocks; beyond its end stands a value, or the last entry again."""
    xp, missing = of_kind(column), -column.shape[-1] % size
    last = column[..., -1:] if beyond is None else xp.full_like(column[..., -1:], beyond)
    whole = xp.concatenate([column, xp.repeat(last, missing, axis=-1)], axis=-1)
    return whole.reshape(*column.shape[:-1], -1, size)


class Branches(NamedTuple):
    """A tree of drafts behind the first slots of a cache, where some of its nodes are fed.

    Attributes:
      slot: int32, where the root stands in the sequence.
      parent: int32, of every node; negative at roots. Parents come before their children.
      nodes: int32, those that are fed, one after the other.
    """

    slot: Int[Array, "B"]
    parent: Int[Array, "B M"]
    nodes: Int[Array | np.ndarray, "n"]


def ancestors(parent: Int[Array, "B M"]) -> Bool[Array, "B M M"]:
    """[b, i, j]: node i is node j, or above it."""
    index = jnp.arange(parent.shape[1])
    above = (index[:, None] == index) | (index[:, None] == parent[:, None, :])
    for _ in range(int(np.ceil(np.log2(max(len(index), 2))))):  # so far, twice as far, ...
        above = jnp.einsum("bik,bkj->bij", above.astype(jnp.float32), above.astype(jnp.float32)) > 0
    return above


def tree(parent: Int[Array, "B M"]) -> Visibility:
    """Every node sees itself and what is above it: numbered depth first, whom a node is seen by are a run of its own length."""
    above = ancestors(parent)
    size = above.sum(axis=2)
    index = jnp.arange(parent.shape[1])
    elder = (parent[:, :, None] == parent[:, None, :]) & (index < index[:, None])
    before = 1 + (elder * size[:, None, :]).sum(axis=2)  # a node and its elder siblings' families
    number = (above * before[:, :, None]).sum(axis=1).astype(jnp.int32) - 1
    return Visibility(q_time=number, k_start=number, k_end=number + size.astype(jnp.int32))


def behind(visibility: Visibility, branches: Branches) -> Visibility:
    """Nodes that see what comes before their root, themselves and those above them; nobody sees a slot from the root's on.

    Args:
      visibility: of the slots; what ends being seen ends by a node's time, which says little of its distance.
      branches: which of them are fed.
    """
    nodes, count, slot = tree(branches.parent), visibility.k_start.shape[-1], branches.slot[:, None]
    time = jnp.take_along_axis(jnp.broadcast_to(jnp.asarray(visibility.q_time), (len(slot), count)), slot, axis=1)
    start = jnp.where(jnp.arange(count) < slot, visibility.k_start, INFINITY)
    end = jnp.broadcast_to(jnp.asarray(visibility.k_end), start.shape)
    return Visibility(
        q_time=time + nodes.q_time[:, branches.nodes],
        k_start=jnp.concatenate([start, time + nodes.k_start], axis=1),
        k_end=jnp.concatenate([end, time + nodes.k_end], axis=1),
    )
