import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generator import cross_entropy as module
from generator.cross_entropy import cross_entropy, part_count

B, T, D, V = 2, 12, 8, 50


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        3 * jax.random.normal(keys[0], (B, T, D)),
        jax.random.normal(keys[1], (D, V)),
        jax.random.randint(keys[2], (B, T), 0, V),
    )


def reference(hidden, kernel, targets):
    """In float64, by the definition."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    p = exponentials / exponentials.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, np.asarray(targets)[..., None], -1)[..., 0]
    mass = (p - np.eye(V)[np.asarray(targets)]) / (B * T)  # of the mean's gradient
    return -np.log(chosen), p.argmax(-1) == targets, np.einsum("btd,btv->dv", np.asarray(hidden, np.float64), mass)


@pytest.mark.parametrize("most", [2**27, 4 * B * V, 1])
def test_losses_hits_and_gradients_are_those_of_the_definition(case, most, monkeypatch):
    hidden, kernel, targets = case
    monkeypatch.setattr(module, "MOST_LOGITS", most)
    losses, hits, gradient = reference(*case)

    def mean(kernel):
        found = cross_entropy(lambda x: x @ kernel, hidden, targets, V)
        return found[0].mean(), found

    (_, found), by_kernel = jax.jit(jax.value_and_grad(mean, has_aux=True))(kernel)
    np.testing.assert_allclose(found[0], losses, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(found[1], hits)
    np.testing.assert_allclose(by_kernel, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("most", "count"), [(2**27, 1), (B * T * V, 1), (B * T * V - 1, 2), (5 * B * V, 3), (1, T)])
def test_as_many_parts_as_are_needed_and_no_more(most, count, monkeypatch):
    monkeypatch.setattr(module, "MOST_LOGITS", most)
    assert part_count(B, T, V) == count


def test_the_backward_pass_of_parts_holds_no_more_logits_than_one(case, monkeypatch):
    hidden, kernel, targets = (jnp.tile(case[0], (1, 8, 1)), jnp.tile(case[1], (1, 64)), jnp.tile(case[2], (1, 8)))
    memory = []
    for most in (2**27, B * V * 64):
        monkeypatch.setattr(module, "MOST_LOGITS", most)
        loss = lambda k: cross_entropy(lambda x: x @ k, hidden, targets, 64 * V)[0].mean()  # noqa: E731
        memory.append(jax.jit(jax.grad(loss)).lower(kernel).compile().memory_analysis().temp_size_in_bytes)
    assert memory[1] < 0.2 * memory[0]


def test_equal_logits_are_won_by_the_first(case):
    zeros = jnp.zeros_like(case[1])
    hits = cross_entropy(lambda x: x @ zeros, case[0], jnp.zeros((B, T), jnp.int32).at[0, 3].set(1), V)[1]
    assert hits.sum() == B * T - 1
    assert not hits[0, 3]


SPLIT = """
import re
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from generator.cross_entropy import cross_entropy
from models import sharding

B, T, D, V = 4, 16, 8, 4096
mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 4, "sequence": 1})
place = lambda shape, dtype, *spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
arguments = (
    place((D, V), jnp.float32, None, "tensor"), place((B, T, D), jnp.float32, "data"), place((B, T), jnp.int32, "data")
)
mean = lambda kernel, hidden, targets: cross_entropy(lambda x: x @ kernel, hidden, targets, V)[0].mean()
with jax.set_mesh(mesh):
    compiled = jax.jit(jax.value_and_grad(mean, argnums=(0, 1))).lower(*arguments).compile()
for shapes in re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)[\\w-]*\\(", compiled.as_text()):
    for shape in re.findall(r"\\[([\\d,]*)\\]", shapes):
        print(eval("*".join(shape.split(",") + ["1"]) if shape else "1"))
"""


@pytest.mark.slow
def test_devices_that_share_the_vocabulary_exchange_sums_and_no_logits():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SPLIT], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    exchanged = [int(line) for line in done.stdout.split()]
    assert exchanged  # sums over the vocabulary, of a device's 2 x 16 slots, and the gradients
    assert max(exchanged) <= 8 * 4096 / 4  # the kernel's gradient; its slots' logits would be 2 * 16 * 4096
