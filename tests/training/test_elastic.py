"""A run that goes on over another mesh sees the same batches, and begins with the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
# (devices, sizes): two steps each, one after the other.
MESHES = [(1, {}), (8, {"data": 2, "fsdp": 4}), (8, {"data": 4, "fsdp": 2}), (8, {"data": 8}), (1, {})]
SCRIPT = """
import json, sys
import jax, numpy as np
import training.loop
from runs import losses, tiny_run
from training.checkpoints import Checkpoints
from training.step import checksum

seen, restored = [], []

step = training.loop.Step.__call__

def watched(self, state, batch):
    with jax.transfer_guard("allow"):
        seen.append(np.asarray(batch["ids"])[:, 0, 0].tolist() + np.asarray(batch["label"]).tolist())
    return step(self, state, batch)

class Watched(Checkpoints):
    def restore(self, shapes, batches=None, **options):
        found = super().restore(shapes, batches, **options)
        if found is not None:
            trees = jax.device_get(found[1])
            spread = max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found[1]))
            restored.append({"step": found[0], "bits": checksum(trees), "devices": spread})
        return found

    def save(self, step, trees, *arguments, **options):
        saved.append(checksum(jax.device_get(trees)))
        super().save(step, trees, *arguments, **options)

saved = []
training.loop.Step.__call__, training.loop.Checkpoints = watched, Watched
directory, meshes = sys.argv[1], json.loads(sys.argv[2])
options = {"save_every": 2, "steps": 2 * len(meshes)}
tiny_run(directory + "/whole", devices=1, **options)
whole = list(seen)
seen.clear(), saved.clear()
for number, (devices, sizes) in enumerate(meshes):
    tiny_run(directory + "/parts", devices=devices, mesh=sizes, **{**options, "steps": 2 * (number + 1)})
from pathlib import Path
print(json.dumps({
    "whole": whole, "parts": seen, "saved": saved, "restored": restored,
    "losses": [list(losses(Path(directory) / name).values()) for name in ("whole", "parts")],
}))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    environment = {
        **os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{HERE.parent.parent}:{HERE}",
    }  # fmt: skip
    arguments = [str(tmp_path_factory.mktemp("elastic")), json.dumps(MESHES)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, env=environment,
                          timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_state_is_the_same_bits_right_after_it_was_restored(result):
    assert [found["step"] for found in result["restored"]] == [2, 4, 6, 8]
    assert [found["bits"] for found in result["restored"]] == result["saved"][:-1]
    assert len(set(result["saved"])) == 5
    assert [found["devices"] for found in result["restored"]] == [8, 8, 8, 1]


@pytest.mark.slow
def test_the_batches_that_follow_are_the_next_examples_of_the_undisturbed_run(result):
    assert len(result["whole"]) == len({json.dumps(batch) for batch in result["whole"]}) == 10
    assert result["parts"] == result["whole"]
    np.testing.assert_allclose(result["losses"][1], result["losses"][0], rtol=1e-5)
