"""The mask language: query t attends to key s iff k_start[s] <= q_time[t] < k_end[s].

Causal, grouped, bidirectional, prefix, packed, windowed, tree-shaped and random-order attention are all of this form
(a mask is iff, for some order of the queries, every key is seen by a contiguous run of them). Masks are data: they may be
traced, and differ from sample to sample, with no recompilation.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

INFINITY = int(np.iinfo(np.int32).max)


class Visibility(NamedTuple):
    """Visibility intervals: int32, each with or without a leading batch axis."""

    q_time: Int[Array | np.ndarray, "*B T"]
    k_start: Int[Array | np.ndarray, "*B S"]
    k_end: Int[Array | np.ndarray, "*B S"]


def causal(length: int) -> Visibility:
    """Every query sees itself and what is before it."""
    time = np.arange(length, dtype=np.int32)
    return Visibility(q_time=time, k_start=time, k_end=np.full_like(time, INFINITY))


def grouped(group: Int[np.ndarray, "T"]) -> Visibility:
    """Every query sees its own group and those before."""
    return Visibility(q_time=group, k_start=group, k_end=np.full_like(group, INFINITY))


def bidirectional(length: int) -> Visibility:
    """Every query sees every key."""
    zero = np.zeros(length, np.int32)
    return Visibility(q_time=zero, k_start=zero, k_end=np.full_like(zero, INFINITY))


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


def visible(visibility: Visibility) -> Bool[Array | np.ndarray, "*B T S"]:
    """The mask that the intervals stand for, True where query t sees key s."""
    time = visibility.q_time[..., :, None]
    return (visibility.k_start[..., None, :] <= time) & (time < visibility.k_end[..., None, :])
