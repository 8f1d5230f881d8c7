"""Attention's kernels for Hopper GPUs are lowered everywhere, and compiled where the compiler of CUDA is installed."""

import importlib.util
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import MASKS
from jax.sharding import AxisType, Mesh, NamedSharding

from jobs.topologies import open_topology
from models.attention import attention, recomputed
from models.kernels import pallas_gpu
from models.masks import Visibility
from models.sharding import MESH_AXES, partition_spec

RUN = recomputed(pallas_gpu.forward, pallas_gpu.backward)
# Bytes. Heads of 256 spill 44 and 68 where one warpgroup does all of the backward pass, with the 255 registers that there are.
MOST_SPILLED = {256: 96}
KERNELS = ("attention_forward", "attention_backward_queries", "attention_backward_keys")


def lowered(run, visibility, mesh=None, *, traced=False, batch=4, heads=4, key_heads=4, width=64):
    """Both passes."""

    def shape(*sizes, axes, dtype=jnp.bfloat16):
        spec = partition_spec(sizes, axes, dict(mesh.shape)) if mesh else None
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec) if mesh else None)

    T, S = visibility.q_time.shape[-1], visibility.k_start.shape[-1]
    q = shape(batch, T, heads, width, axes=("batch", None, "heads", None))
    k = shape(batch, key_heads, S, width, axes=("batch", "heads", None, None))
    columns = [shape(*column.shape, axes=(None,) * column.ndim, dtype=jnp.int32) for column in visibility]

    def both(q, k, v, *columns):
        out, back = jax.vjp(lambda *qkv: run(*qkv, Visibility(*columns) if columns else visibility), q, k, v)
        return out, back(out)

    return jax.jit(both).trace(q, k, k, *(columns if traced else ())).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", MASKS)
def test_both_passes_are_lowered(name, width):
    text = lowered(lambda *arguments: RUN(*arguments, scale=0.125), MASKS[name], width=width).as_text()
    assert all(text.count(kernel) for kernel in KERNELS)


@pytest.mark.parametrize(
    "case", [{"traced": True}, {"width": 32, "key_heads": 2}, {"width": 256, "heads": 6, "key_heads": 2}], ids=str
)
def test_other_calls_are_lowered(case):
    text = lowered(lambda *arguments: RUN(*arguments, scale=0.125), MASKS["a mask for each sample"], **case).as_text()
    assert all(text.count(kernel) for kernel in KERNELS)


@pytest.fixture(scope="module")
def mesh():
    """Two devices share the samples, and two the heads."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        pytest.skip("the compiler of CUDA is not installed")
    devices = np.array(open_topology("h100x4").devices).reshape(2, 1, 2, 1)
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.mark.cuda_compiler
@pytest.mark.parametrize("width", [32, 64, 128, 256])
@pytest.mark.parametrize("name", ["causal 1024", "ten scales, 680", "packed 8 x 512", "a mask for each sample"])
def test_both_passes_compile_and_spill_no_registers(mesh, name, width, monkeypatch, capfd):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    with jax.set_mesh(mesh):
        program = lowered(lambda *qkv: attention(*qkv, implementation="pallas_gpu"), MASKS[name], mesh, width=width)
        text = program.compile().as_text()
    said = "".join(capfd.readouterr())
    assert all(kernel in text and f"{kernel}_mosaic_gpu_kernel" in said for kernel in KERNELS)
    assert "all-gather" not in text
    assert "all-reduce" not in text
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill", said)]
    assert spilled
    assert max(spilled) <= MOST_SPILLED.get(width, 0)
    assert "serialized" not in said  # products that wait for each other
    print(*re.findall(r"'\w+' for|Used \d+ registers|\d+ bytes spill \w+", said), sep="\n")


def test_who_does_not_ask_for_the_kernels_does_not_import_them():
    script = "import sys, models.attention; print('jax.experimental.pallas.mosaic_gpu' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).split() == ["False"]
