"""One device against eight: the same losses, and a state that really is split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
SCRIPT = """
import json, sys
import jax, numpy as np
from conftest import image_batch, make_generator_learner, make_tokenizer_learner, tiny_config, token_examples
from models import sharding
from training.loop import compile_step
from training.step import fingerprint, make_init, place_batch, state_shardings

def axes_of(leaf):
    return [axis for entry in leaf.sharding.spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]

MAKE = {"tokenizer": make_tokenizer_learner, "generator": make_generator_learner}
result = {}
for name, sizes, stages in json.loads(sys.argv[1]):
    mesh = sharding.make_mesh(sizes)
    for stage in stages:
        config = tiny_config()
        section = {**config.training[stage].to_dict(), "accumulate": 1, "steps": 20}
        learner = MAKE[stage](config)
        batch = image_batch(16) if stage == "tokenizer" else {k: v[:16] for k, v in token_examples().items()}
        init = make_init(learner, section)
        places = state_shardings(learner, section, jax.eval_shape(init, jax.random.key(0)), mesh)
        with jax.set_mesh(mesh):
            state = jax.jit(init, out_shardings=places)(jax.random.key(0))
        whole = jax.device_put(jax.device_get(state), jax.devices()[0])
        checksums = [np.asarray(jax.jit(fingerprint)(tree)).tolist() for tree in (state, whole)]
        step, losses = compile_step(learner, section, places, mesh, 0), []
        for _ in range(5):
            state, metrics = step(state, place_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
        player = next(iter(learner.players))
        adam = state["optimizer"][player][1][0]
        trees = {"params": state["params"][player], "ema": state["ema"], "mu": adam.mu, "nu": adam.nu}
        layout = {
            kind: {jax.tree_util.keystr(path): [axes_of(leaf), leaf.addressable_shards[0].data.size, leaf.size]
                   for path, leaf in jax.tree.leaves_with_path(tree)}
            for kind, tree in trees.items()
        }
        placed = [len(leaf.sharding.device_set) for leaf in place_batch(batch, mesh).values()]
        rows = [leaf.addressable_shards[0].data.shape[0] for leaf in place_batch(batch, mesh).values()]
        result[f"{name} {stage}"] = {"losses": losses, "layout": layout, "checksums": checksums, "devices": placed,
                                     "rows": rows}
print(json.dumps(result))
"""


def start(devices, meshes):
    environment = {
        **os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{HERE.parent.parent}:{HERE}",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(meshes)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results():
    stages = ["tokenizer", "generator"]
    one = [["one", {"data": 1, "fsdp": 1}, stages]]
    # The batch is split over both axes: for the tokenizer, `data` alone is the second mesh without the split parameters.
    eight = [["data", {"data": 8, "fsdp": 1}, ["generator"]], ["fsdp", {"data": 2, "fsdp": 4}, stages]]
    found = {}
    for process in [start(1, one), start(8, eight)]:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err[-3000:]
        found |= json.loads(out.splitlines()[-1])
    return found


CASES = [("fsdp", "tokenizer"), ("fsdp", "generator"), ("data", "generator")]


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "stage"), CASES)
def test_eight_devices_learn_what_one_learns(results, mesh, stage):
    one, many = results[f"one {stage}"], results[f"{mesh} {stage}"]
    assert len({round(loss, 6) for loss in one["losses"]}) == 5  # something is learned
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
    assert many["devices"] == [8, 8]
    assert many["rows"] == [2, 2]  # each device holds its two of sixteen examples


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_parameters_average_and_optimizer_are_split_alike_over_fsdp(results, stage):
    layout = results[f"fsdp {stage}"]["layout"]
    assert layout["params"] == layout["ema"] == layout["mu"] == layout["nu"]
    split = [path for path, (axes, mine, size) in layout["params"].items() if axes == ["fsdp"] and 4 * mine == size]
    assert len(split) >= 5, layout["params"]
    whole = sum(size for _, _, size in layout["params"].values())
    assert sum(mine for _, mine, _ in layout["params"].values()) < 0.6 * whole


@pytest.mark.slow
def test_parameters_are_whole_where_the_batch_alone_is_split(results):
    layout = results["data generator"]["layout"]
    assert layout["params"] == layout["ema"] == layout["mu"] == layout["nu"]
    assert all(mine == size for _, mine, size in layout["params"].values())


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "stage"), [("one", "tokenizer"), ("one", "generator"), *CASES])
def test_fingerprint_is_the_same_however_a_tree_is_split(results, mesh, stage):
    sharded, whole = results[f"{mesh} {stage}"]["checksums"]
    assert sharded == whole
