"""The mask language: query t attends to key s iff k_start[s] <= q_time[t] < k_end[s].

Causal, grouped, bidirectional, prefix, packed, windowed, tree-shaped and random-order attention are all of this form
(a mask is iff, for some order of the queries, every key is seen by a contiguous run of them). Masks are data: they may be
traced, and differ from sample to sample, with no recompilation.
"""

from typing import NamedTuple

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


def visible(visibility: Visibility) -> Bool[Array | np.ndarray, "*B T S"]:
    """The mask that the intervals stand for, True where query t sees key s."""
    time = visibility.q_time[..., :, None]
    return (visibility.k_start[..., None, :] <= time) & (time < visibility.k_end[..., None, :])
