"""One device against eight in every arrangement: the same losses, gradients and statistics, and a state that is split."""

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
CASES = [(stage, mesh) for stage, meshes in MESHES.items() for mesh in meshes]
pytestmark = pytest.mark.slow


def sizes(mesh):
    return {name: int(size) for name, size in (part.split("=") for part in mesh.split(","))}


@pytest.fixture(scope="module")
def results():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HERE.parent.parent}:{HERE}"}
    found = {}
    for stage, meshes in MESHES.items():
        command = [sys.executable, str(HERE / "mesh_runs.py"), stage, *meshes]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        found[stage] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("stage", "mesh"), CASES)
def test_losses_gradients_and_statistics_are_those_of_one_device(results, stage, mesh):
    one, many = results[stage]["one"], results[stage][mesh]
    assert len({round(loss, 6) for loss in one["losses"]}) == len(one["losses"])  # something is learned
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
    for kind in ("value", "gradient"):  # the values hold the statistics and all metrics
        assert len(many[kind]) >= 3
        assert max(many[kind].values()) < 1e-5, sorted(many[kind].items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize(("stage", "mesh"), CASES)
def test_every_device_holds_its_part_and_nothing_is_compiled_twice(results, stage, mesh):
    many = results[stage][mesh]
    assert many["rows"] == 16 // (sizes(mesh).get("data", 1) * sizes(mesh).get("fsdp", 1))
    assert many["compiled"] == 1
    layout = many["layout"]
    assert layout["params"] == layout["ema"] == layout["mu"] == layout["nu"]
    for axis in ("fsdp", "tensor"):
        count = sizes(mesh).get(axis, 1)
        split = [path for path, (axes, mine, size) in layout["params"].items() if axis in axes and count * mine <= size]
        assert len(split) >= 5 if count > 1 else not any(axis in axes for axes, *_ in layout["params"].values()), split


def test_fully_sharded_parameters_take_a_devices_share_of_memory(results):
    for stage in MESHES:
        layout = results[stage]["data=2,fsdp=4"]["layout"]["params"].values()
        assert sum(mine for _, mine, _ in layout) < 0.6 * sum(size for *_, size in layout)


@pytest.mark.parametrize(("stage", "mesh"), [(stage, mesh) for stage in MESHES for mesh in ("one", MESHES[stage][1])])
def test_fingerprint_is_the_same_however_a_tree_is_split(results, stage, mesh):
    sharded, whole = results[stage][mesh]["checksums"]
    assert sharded == whole
