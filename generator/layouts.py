"""Sequence layouts: what is predicted when, and from what.

A layout has one row per slot of the transformer's sequence. Order, position and visibility are separate columns: an order
changes `source`, `target` and `time`, never `position`; rotary embeddings never see `time`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from models import masks
from models.tokens import TokenSpec

Column = Int[np.ndarray, "T"]


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceLayout:
    """Static columns over the T slots of a sequence.

    Attributes:
      source: what feeds the slot: token n as n >= 0, entry c of the condition as -1 - c.
      target: the token that is predicted from the slot, -1 for none.
      position: (row, column) (T, 2) of what feeds the slot, -1 for the condition.
      time: slots of equal time are computed in the same call of the model; non-decreasing.
      visibility: who attends to whom.
      weight: the slot's share in the loss.
    """

    source: Column
    target: Column
    position: Int[np.ndarray, "T 2"]
    time: Column
    visibility: masks.Visibility
    weight: np.ndarray

    @property
    def slots(self) -> int:
        """T, the length of the sequence."""
        return len(self.source)


def raster(spec: TokenSpec) -> SequenceLayout:
    """Next-token prediction row by row: [condition, token 0, ..., token N - 2] predicts [token 0, ..., token N - 1]."""
    count = spec.positions
    order = np.arange(count, dtype=np.int32)
    previous = order - 1
    row, column = np.divmod(previous, spec.shape.width)
    position = np.where(previous[:, None] < 0, -1, np.stack([row, column], axis=-1))
    return SequenceLayout(
        source=previous, target=order, position=position.astype(np.int32), time=order, visibility=masks.causal(count),
        weight=np.ones(count, np.float32),
    )  # fmt: skip


LAYOUTS: dict[str, Callable[..., SequenceLayout]] = {"raster": raster}
