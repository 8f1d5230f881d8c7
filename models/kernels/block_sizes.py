"""Sizes of attention's blocks on TPUs: for every mask those whose visits take the fewest bundles of instructions.

What visits take is written in a table, for kinds of chips and widths of heads, as the chips' compiler scheduled them;
`python -m benchmarks.block_sizes` rebuilds it. Nobody has timed it on a chip.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models import sharding
from models.masks import FULL, PARTIAL, Visibility, block_kinds, of_kind

TABLE = Path(__file__).with_name("block_sizes.json")
LANES = 128


class Blocks(NamedTuple):
    """Sizes of a block."""

    queries: int
    keys: int


ANYWHERE = Blocks(256, 256)  # for chips, widths and dtypes that the table does not know


@functools.cache
def known() -> list[dict[str, Any]]:
    """The rows of the table.

    Of each the kind of device, as jax names it; the width of a head; the sizes of a block; and forward and backward the bundles
    of a visit to a block of which everybody sees everything, to another, and around each.
    """
    return json.loads(TABLE.read_text())


def best(q: Float[Array, "B H d T"], visibility: Visibility, *, backward: bool) -> Blocks:
    """The sizes for these queries under a mask; of one that is traced, every block counts as visited and compared."""
    kind, width = sharding.device().device_kind, q.shape[2]
    T, S = visibility.q_time.shape[-1], visibility.k_start.shape[-1]
    rows = [row for row in known() if row["device"] == kind and row["width"] >= width and q.dtype == jnp.bfloat16]
    nearest = min((row["width"] for row in rows), default=None)
    costs = {}
    for row in rows:
        blocks = Blocks(*row["blocks"])
        if row["width"] == nearest and blocks == fitting(blocks, T, S):
            costs[blocks] = cost(visibility, blocks, *row["backward" if backward else "forward"])
    return min(costs, key=lambda blocks: costs[blocks], default=ANYWHERE)


def cost(visibility: Visibility, blocks: Blocks, whole: int, compared: int, around: int) -> int:
    """Bundles that a head takes, of all samples that have a mask of their own."""
    if of_kind(*visibility) is np:
        kinds = np.asarray(block_kinds(visibility, *blocks))
    else:
        slots = visibility.q_time.shape[-1], visibility.k_start.shape[-1]
        kinds = np.full([rounded(count, size) // size for count, size in zip(slots, blocks)], PARTIAL)
    full, partial = (int((kinds == kind).sum()) for kind in (FULL, PARTIAL))
    return full * (whole + around) + partial * (compared + around)


def fitting(blocks: Blocks, T: int, S: int) -> Blocks:
    """Blocks no larger than what there is."""
    return Blocks(min(blocks.queries, rounded(T, LANES)), min(blocks.keys, rounded(S, LANES)))


def rounded(slots: int, size: int) -> int:
    """As many slots as fill whole blocks."""
    return -(-slots // size) * size
