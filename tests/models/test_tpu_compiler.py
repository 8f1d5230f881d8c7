"""The compiler of TPUs takes the kernels of attention, for every kind of chip and without one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import MASKS
from jax.sharding import AxisType, Mesh, NamedSharding

from benchmarks.masks import SLOTS
from jobs.topologies import open_topology
from models import masks
from models.attention import attention
from models.masks import Visibility
from models.sharding import MESH_AXES, partition_spec


@pytest.fixture(scope="module", params=["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def mesh(request):
    """Two devices share the samples, and two the heads."""
    pytest.importorskip("libtpu")
    devices = np.array(open_topology(request.param).devices[:4]).reshape(2, 1, 2, 1)
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def compiled(
    mesh, visibility, *, traced=False, batch=4, heads=4, key_heads=4, width=64, dtype=jnp.bfloat16, name="pallas_tpu"
):
    """Both passes, as the compiler writes them."""

    def shape(*sizes, axes, dtype=dtype):
        return jax.ShapeDtypeStruct(
            sizes, dtype, sharding=NamedSharding(mesh, partition_spec(sizes, axes, dict(mesh.shape)))
        )

    T, S = visibility.q_time.shape[-1], visibility.k_start.shape[-1]
    q = shape(batch, T, heads, width, axes=("batch", None, "heads", None))
    k = shape(batch, key_heads, S, width, axes=("batch", "heads", None, None))

    def both(q, k, v, visibility):
        out, back = jax.vjp(lambda *qkv: attention(*qkv, visibility, implementation=name), q, k, v)
        return out, back(out)

    columns = [shape(*column.shape, axes=(None,) * column.ndim, dtype=jnp.int32) for column in visibility]
    with jax.set_mesh(mesh):
        if traced:
            lowered = jax.jit(both).trace(q, k, k, Visibility(*columns)).lower(lowering_platforms=("tpu",))
        else:
            lowered = jax.jit(lambda *qkv: both(*qkv, visibility)).trace(q, k, k).lower(lowering_platforms=("tpu",))
        return lowered.compile().as_text()


@pytest.mark.parametrize("name", MASKS)
def test_both_passes_compile(mesh, name):
    text = compiled(mesh, MASKS[name])
    assert text.count("attention_forward") >= 1
    assert text.count("attention_backward") >= 1
    T, S = MASKS[name].as_array().shape[-2:]
    assert not re.search(rf"f32\[[\d,]*{T},{S}\]", text)  # no matrix of scores
    assert "all-gather" not in text
    assert "all-reduce" not in text


@pytest.mark.parametrize(
    "case",
    [
        {"traced": True},
        {"width": 128, "dtype": jnp.float32},
        {"width": 32, "key_heads": 2},
        {"width": 256, "heads": 6, "key_heads": 2},
        {"batch": 3},  # which two devices cannot share
    ],
    ids=str,
)
def test_other_calls_compile(mesh, case):
    for name in ("ten scales, 680", "packed 8 x 512"):
        assert "attention_backward" in compiled(mesh, MASKS[name], **case)


def test_few_queries_are_left_to_the_compiler(mesh):
    time = np.array([1000], np.int32)
    text = compiled(mesh, Visibility(time, SLOTS, masks.forever(SLOTS)), name=None)
    assert "attention_forward" not in text
