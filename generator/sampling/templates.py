"""Shapes of trees that are known before anything is drawn."""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Template(NamedTuple):
    """A tree whose nodes are drafts by their rank; node 0 is the root.

    Attributes:
      parent: int32 (M,), -1 at the root; parents come before their children, elder siblings before younger ones.
      rank: int32 (M,), which of its siblings a node is.
      depth: int32 (M,), 0 at the root.
    """

    parent: Int[np.ndarray, "M"]
    rank: Int[np.ndarray, "M"]
    depth: Int[np.ndarray, "M"]

    @property
    def levels(self) -> int:
        """Of nodes, the root's counted."""
        return int(self.depth.max()) + 1


def likely(nodes: int, shares: tuple[float, ...]) -> Template:
    """The tree of so many nodes that the longest path is expected of, when drafts stand independently by their rank.

    Args:
      nodes: M, the root counted.
      shares: chance that the best, the second best, ... draft of a position stands; one of them gives a chain.
    """
    parent, rank, depth = [-1], [0], [0]
    heap = [(-share, 0, number) for number, share in enumerate(shares[:1])]
    while len(parent) < nodes:
        value, above, number = heapq.heappop(heap)
        node = len(parent)
        parent.append(above)
        rank.append(number)
        depth.append(depth[above] + 1)
        heapq.heappush(heap, (value * shares[0], node, 0))
        if number + 1 < len(shares):
            heapq.heappush(heap, (value / shares[number] * shares[number + 1], above, number + 1))
    # By depth, so that siblings of one token go on together.
    order = np.argsort(depth, kind="stable")
    place = np.argsort(order)
    parents = np.array(parent)[order]
    return Template(
        np.where(parents < 0, -1, place[parents]).astype(np.int32), np.array(rank, np.int32)[order],
        np.array(depth, np.int32)[order],
    )  # fmt: skip
