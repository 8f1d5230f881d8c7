"""Sequence layouts: what is predicted when, and from what.

A layout has one row per slot of the transformer's sequence. Order, position and visibility are separate columns: an order
changes `source`, `target` and `time`, never `position`; rotary embeddings never see `time`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from models import masks
from models.errors import UserError
from models.tokens import Grid, Scales, TokenSpec

Column = Int[np.ndarray, "T"]


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceLayout:
    """Static columns over the T slots of a sequence.

    Attributes:
      feed: what feeds the slots beside the condition: "tokens", or "features" of the scales before.
      source: what feeds the slot: entry n of the feed as n >= 0, entry c of the condition as -1 - c.
      target: the token that is predicted from the slot, -1 for none; all tokens in order.
      position: (row, column) (T, 2) of what feeds the slot, -1 for the condition.
      time: slots of equal time are computed in the same call of the model; non-decreasing from 0. The slots that the
        condition feeds are those of time 0.
      visibility: who attends to whom.
      weight: the slot's share in the loss.
    """

    feed: str
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

    @property
    def predicting(self) -> Int[np.ndarray, "N"]:
        """The slots that predict tokens."""
        return np.flatnonzero(self.target >= 0).astype(np.int32)

    @property
    def conditions(self) -> int:
        """Number of slots that the condition feeds; they are the first."""
        return int((self.source < 0).sum())

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(start, stop) of the slots of every time."""
        cuts = np.flatnonzero(np.diff(self.time, prepend=-1)).tolist()
        return list(zip(cuts, [*cuts[1:], self.slots]))


def raster(spec: TokenSpec, entries: int) -> SequenceLayout:
    """Next-token prediction row by row: [condition, token 0, ..., token N - 2] predicts [token 0, ..., token N - 1].

    Tokens are predicted from the condition's last entry on; the entries before it are computed with it.
    """
    if not isinstance(spec.shape, Grid):
        raise UserError(
            "the layout 'raster' is for tokens on one grid; those of several scales need the layout 'scales'."
        )
    slots = np.arange(entries + spec.positions - 1, dtype=np.int32)
    target = slots - (entries - 1)
    fed = slots - entries
    row, column = np.divmod(fed, spec.shape.width)
    return SequenceLayout(
        feed="tokens",
        source=np.where(fed < 0, -1 - slots, fed),
        target=np.maximum(target, -1),
        position=np.where(fed[:, None] < 0, -1, np.stack([row, column], axis=-1)).astype(np.int32),
        time=np.maximum(target, 0),
        visibility=masks.causal(len(slots)),
        weight=np.ones(len(slots), np.float32),
    )


def scales(spec: TokenSpec, entries: int) -> SequenceLayout:
    """Next-scale prediction (VAR, arXiv:2404.02905): a grid a call, each from what the coarser ones have drawn so far.

    The first grid is fed by the condition alone; a token sees its own grid and those before.
    """
    if not isinstance(spec.shape, Scales) or entries != 1:
        raise UserError("the layout 'scales' is for tokens of several scales and a condition of one entry, such as a class; "
                        "other tokens and captions take the layout 'raster'.")  # fmt: skip
    grids, count = spec.shape.grids, spec.positions
    first = grids[0].positions
    slots = np.arange(count, dtype=np.int32)
    time = np.repeat(np.arange(len(grids), dtype=np.int32), [grid.positions for grid in grids])
    cells = [np.stack(np.divmod(np.arange(grid.positions), grid.width), axis=-1) for grid in grids]
    return SequenceLayout(
        feed="features",
        source=np.where(slots < first, -1, slots - first),
        target=slots,
        position=np.where(time[:, None] == 0, -1, np.concatenate(cells)).astype(np.int32),
        time=time,
        visibility=masks.groups(time),
        weight=np.ones(count, np.float32),
    )


LAYOUTS: dict[str, Callable[..., SequenceLayout]] = {"raster": raster, "scales": scales}
