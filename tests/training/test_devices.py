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

result = {}
for name, sizes in json.loads(sys.argv[1]).items():
    mesh = sharding.make_mesh(sizes)
    for stage, make in (("tokenizer", make_tokenizer_learner), ("generator", make_generator_learner)):
        config = tiny_config()
        section = {**config.training[stage].to_dict(), "accumulate": 1, "steps": 20}
        learner = make(config)
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


def run(devices, meshes):
    environment = {
        **os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{HERE.parent.parent}:{HERE}",
    }  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(meshes)], capture_output=True, text=True, env=environment, timeout=500
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results():
    one = run(1, {"one": {"data": 1, "fsdp": 1}})
    return one | run(8, {"data": {"data": 8, "fsdp": 1}, "fsdp": {"data": 2, "fsdp": 4}})


stages = pytest.mark.parametrize("stage", ["tokenizer", "generator"])


@pytest.mark.slow
@stages
@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_eight_devices_learn_what_one_learns(results, stage, mesh):
    one, many = results[f"one {stage}"], results[f"{mesh} {stage}"]
    assert len({round(loss, 6) for loss in one["losses"]}) == 5  # something is learned
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
    assert many["devices"] == [8, 8]
    assert many["rows"] == [2, 2]  # each device holds its two of sixteen examples


@pytest.mark.slow
@stages
def test_parameters_average_and_optimizer_are_split_alike_over_fsdp(results, stage):
    layout = results[f"fsdp {stage}"]["layout"]
    assert layout["params"] == layout["ema"] == layout["mu"] == layout["nu"]
    split = [path for path, (axes, mine, size) in layout["params"].items() if axes == ["fsdp"] and 4 * mine == size]
    assert len(split) >= 5, layout["params"]
    whole = sum(size for _, _, size in layout["params"].values())
    assert sum(mine for _, mine, _ in layout["params"].values()) < 0.6 * whole
    data = results[f"data {stage}"]["layout"]["params"]
    assert all(mine == size for _, mine, size in data.values())


@pytest.mark.slow
@stages
def test_fingerprint_is_the_same_however_a_tree_is_split(results, stage):
    found = [results[f"{mesh} {stage}"]["checksums"] for mesh in ("one", "data", "fsdp")]
    for sharded, whole in found:
        assert sharded == whole
