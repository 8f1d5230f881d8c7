"""Sizes of attention's blocks on TPUs, chosen by mask from what their compiler scheduled."""

import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.block_sizes import SIZES, TOPOLOGIES, WIDTHS
from models import masks, sharding
from models.kernels.block_sizes import ANYWHERE, Blocks, best, cost, known

MASKS = {
    "causal": masks.causal(1024),
    "packed": masks.packed(np.repeat(np.arange(8, dtype=np.int32), 512)),
    "window": masks.window(4096, 128),
    "680": masks.causal(680),
    "short": masks.causal(100),
}


def queries(width, dtype=jnp.bfloat16):
    return jnp.zeros((1, 2, width, 256), dtype)


@pytest.fixture(autouse=True)
def v6e(monkeypatch):
    monkeypatch.setattr(sharding, "device", lambda: SimpleNamespace(device_kind="TPU v6 lite"))


def test_the_table_knows_every_kind_of_chip():
    rows = {(row["topology"], row["width"], *row["blocks"]) for row in known()}
    assert rows == {(name, width, *sizes) for name, width, sizes in itertools.product(TOPOLOGIES, WIDTHS, SIZES)}
    for row in known():
        for kind in ("forward", "backward"):
            assert all(isinstance(bundles, int) and bundles > 50 for bundles in row[kind])


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_no_other_sizes_take_fewer_bundles(name, backward):
    chosen, slots = best(queries(64), MASKS[name], backward=backward), len(MASKS[name].q_time)
    costs = {}
    for row in known():
        if (row["device"], row["width"]) == ("TPU v6 lite", 64) and max(row["blocks"]) < slots + 128:
            bundles = row["backward" if backward else "forward"]
            costs[Blocks(*row["blocks"])] = cost(MASKS[name], Blocks(*row["blocks"]), *bundles)
    assert costs[chosen] == min(costs.values())


def test_the_mask_decides():
    for backward in (False, True):
        dense, packed = (best(queries(64), MASKS[name], backward=backward) for name in ("causal", "packed"))
        assert max(packed) <= 512 <= max(dense)  # a block of 1,024 would reach over two documents
        assert best(queries(64), MASKS["short"], backward=backward) == (128, 128)


def test_a_visit_costs_what_the_table_says():
    # Of 4 x 4 blocks the 6 below the diagonal are whole, the 4 on it compared, and 6 are not visited.
    assert cost(masks.causal(512), Blocks(128, 128), 100, 110, 10) == 6 * 110 + 4 * 120
    traced = masks.Visibility(*map(jnp.asarray, masks.causal(512)))
    assert cost(traced, Blocks(128, 256), 100, 110, 10) == 4 * 2 * 120


def test_what_the_table_does_not_know_gets_the_sizes_that_serve_anywhere(monkeypatch):
    assert best(queries(256), MASKS["causal"], backward=False) == ANYWHERE
    assert best(queries(64, jnp.float32), MASKS["causal"], backward=False) == ANYWHERE
    monkeypatch.setattr(sharding, "device", lambda: SimpleNamespace(device_kind="TPU v4"))
    assert best(queries(64), MASKS["causal"], backward=False) == ANYWHERE
