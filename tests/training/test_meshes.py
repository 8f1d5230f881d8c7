"""One device against eight in every arrangement: the same losses, gradients and statistics, and a state that is split."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
MESHES = {
    "next_token": ("data=8", "data=2,fsdp=4", "data=4,fsdp=2", "fsdp=2,tensor=2,sequence=2"),
    "next_scale": ("fsdp=8", "data=2,fsdp=4", "data=4,fsdp=2", "fsdp=2,tensor=4"),
    "tokenizer": ("fsdp=8", "data=2,fsdp=4", "data=4,fsdp=2"),
}
STEPPED = "data=2,fsdp=4"
CASES = [(stage, mesh) for stage, meshes in MESHES.items() for mesh in meshes]
pytestmark = pytest.mark.slow


def sizes(mesh):
    return {name: int(size) for name, size in (part.split("=") for part in mesh.split(","))}


@functools.cache
def results(stage):
    """What each mesh computes, and one device."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HERE.parent.parent}:{HERE}"}
    command = [sys.executable, str(HERE / "mesh_runs.py"), stage, *MESHES[stage]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-3000:]}


@pytest.mark.parametrize("stage", MESHES)
def test_every_mesh_runs(stage):
    assert "error" not in results(stage), results(stage)["error"]


@pytest.mark.parametrize(("stage", "mesh"), CASES)
def test_losses_gradients_and_statistics_are_those_of_one_device(stage, mesh):
    for kind in ("value", "gradient"):  # the values hold losses, metrics and the codebook's statistics
        found = results(stage)[mesh][kind]
        assert len(found) >= 3
        assert max(found.values()) < 1e-5, sorted(found.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("stage", MESHES)
def test_steps_learn_what_one_device_learns_and_are_compiled_once(stage):
    one, many = results(stage)["one"], results(stage)[STEPPED]
    assert len({round(loss, 6) for loss in one["losses"]}) == len(one["losses"])  # something is learned
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
    assert many["compiled"] == one["compiled"] == 1


@pytest.mark.parametrize(("stage", "mesh"), CASES)
def test_parameters_average_and_optimizer_are_split_alike(stage, mesh):
    many = results(stage)[mesh]
    assert many["rows"] == 16 // (sizes(mesh).get("data", 1) * sizes(mesh).get("fsdp", 1))
    layout = many["layout"]
    assert layout["params"] == layout["ema"] == layout["mu"] == layout["nu"]
    for axis, count in sizes(mesh).items():
        split = [path for path, (axes, mine, size) in layout["params"].items() if axis in axes and count * mine <= size]
        assert len(split) >= (5 if axis in ("fsdp", "tensor") else 0), split


@pytest.mark.parametrize("stage", MESHES)
def test_fully_sharded_parameters_take_a_share_of_a_devices_memory(stage):
    layout = results(stage)[STEPPED]["layout"]["params"].values()
    assert sum(mine for _, mine, _ in layout) < 0.6 * sum(size for *_, size in layout)


@pytest.mark.parametrize(("stage", "mesh"), [(stage, mesh) for stage in MESHES for mesh in ("one", STEPPED)])
def test_fingerprint_is_the_same_however_a_tree_is_split(stage, mesh):
    sharded, whole = results(stage)[mesh]["checksums"]
    assert sharded == whole
