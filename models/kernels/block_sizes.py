"""Sizes of attention's blocks on TPUs: for every mask those whose visits take the fewest bundles of instructions.

What visits take is written in a table, for kinds of chips and widths of heads, as the chips' compiler scheduled them;
`python -m benchmarks.block_sizes` rebuilds it. Nobody has timed it on a chip.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from models.masks import FULL, PARTIAL, Visibility, block_kinds

TABLE = Path(__file__).with_name("block_sizes.json")
LANES = 128


class Blocks(NamedTuple):
    """Sizes of a block, multiples of 128."""

    queries: int
    keys: int


ANYWHERE = Blocks(256, 256)  # for chips and widths that the table does not know


@functools.cache
def known() -> Any:
    """The table: device kind, width, sizes, pass, and then bundles of a whole block, of a compared one, and around each."""
    return json.loads(TABLE.read_text())


def best(visibility: Visibility, width: int, *, backward: bool) -> Blocks:
    """The sizes for a mask and heads of this width; of a mask that is traced, every block counts as visited and compared."""
    mesh = jax.sharding.get_abstract_mesh()
    kind = jax.devices()[0].device_kind if mesh.abstract_device is None else mesh.abstract_device.device_kind
    rows = known().get(kind, {})
    of_width = rows.get(min((w for w in rows if int(w) >= width), key=int, default=None), {})
    T, S = visibility.q_time.shape[-1], visibility.k_start.shape[-1]
    costs = {}
    for name, passes in of_width.items():
        blocks = Blocks(*map(int, name.split("x")))
        if blocks == fitting(blocks, T, S):
            costs[blocks] = cost(visibility, blocks, *passes["backward" if backward else "forward"])
    return min(costs, key=lambda blocks: costs[blocks], default=ANYWHERE)


def cost(visibility: Visibility, blocks: Blocks, whole: int, compared: int, around: int) -> float:
    """Bundles that a head takes, of all samples that have a mask of their own."""
    if all(isinstance(column, np.ndarray) for column in visibility):
        kinds = np.asarray(block_kinds(visibility, *blocks))
    else:
        slots = visibility.q_time.shape[-1], visibility.k_start.shape[-1]
        kinds = np.full([-(-count // size) for count, size in zip(slots, blocks)], PARTIAL)
    full, partial = ((kinds == kind).sum() for kind in (FULL, PARTIAL))
    return full * (whole + around) + partial * (compared + around)


def fitting(blocks: Blocks, T: int, S: int) -> Blocks:
    """Blocks no larger than what there is."""
    return Blocks(min(blocks.queries, rounded(T, LANES)), min(blocks.keys, rounded(S, LANES)))


def rounded(slots: int, size: int) -> int:
    """As many slots as fill whole blocks."""
    return -(-slots // size) * size
