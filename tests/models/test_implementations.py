"""Every implementation of attention, on one table of cases, against a dense softmax in float64."""

import itertools
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, Case, drawn, passes, samples, worst
from gpu_interpreter import INTERPRET, WATCHED, races_found
from hypothesis import given, settings
from hypothesis import strategies as st

from models import attention as module
from models import masks
from models.errors import UserError
from models.kernels import pallas_gpu, pallas_tpu, visits, xla
from models.kernels.reference import reference
from models.masks import INFINITY, Visibility

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BLOCKS = pallas_tpu.Blocks(128, 128)
INTERPRETED = [partial(each, interpret=True, blocks=BLOCKS) for each in (pallas_tpu.forward, pallas_tpu.backward)]
OF_GPUS = [partial(each, interpret=INTERPRET) for each in (pallas_gpu.forward, pallas_gpu.backward)]
IMPLEMENTATIONS = {
    "xla": module.IMPLEMENTATIONS["xla"],
    "xla_chunked": module.IMPLEMENTATIONS["xla_chunked"],
    "pallas_tpu": module.by_device(module.recomputed(*INTERPRETED)),
    "pallas_gpu": module.by_device(module.recomputed(*OF_GPUS)),
}
EXACT = [name for name in IMPLEMENTATIONS if name != "pallas_gpu"]  # which serve float32
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 1e-2}  # of the greatest entry, or of 1 if that is more


# Every block of threads that is interpreted takes 0.1 s: of masks that are alike one is tried there, and of heads.
ALIKE = {"prefix", "next neighbour", "clean and noisy", "one slot", "an order for each sample"}
TRIED = [
    (name, case, dtype)
    for name, case, dtype in itertools.product(IMPLEMENTATIONS, CASES, TOLERANCE)
    if name in EXACT or (dtype == jnp.bfloat16 and case not in ALIKE)
]


@pytest.mark.parametrize(("name", "case", "dtype"), TRIED)
def test_outputs_and_gradients_are_those_of_a_dense_softmax(name, case, dtype):
    case = CASES[case]
    if name == "pallas_gpu" and case.heads == case.key_heads:
        case = case._replace(heads=1, key_heads=1)
    arrays = drawn(case, dtype)
    found = jax.jit(lambda *arrays: passes(IMPLEMENTATIONS[name], arrays, case.visibility))(*arrays)
    assert all(x.dtype == dtype for x in found)
    assert worst(found, arrays, case) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_masks_that_are_traced_and_runs_that_are_repeated_change_nothing(name):
    exact = ("another mask for each sample", "some see nothing")
    for case in exact if name in EXACT else ("a window of queries over a cache",):
        case = CASES[case]._replace(heads=1, key_heads=1)
        dtype = jnp.float32 if name in EXACT else jnp.bfloat16
        arrays = drawn(case, dtype)
        run = jax.jit(lambda visibility, *arrays: passes(IMPLEMENTATIONS[name], arrays, visibility))
        found = run(case.visibility, *arrays)
        assert worst(found, arrays, case) < TOLERANCE[dtype]
        for first, second in zip(found, run(case.visibility, *arrays)):
            np.testing.assert_array_equal(first, second)


def test_warpgroups_wait_for_each_other():
    case = Case(masks.bidirectional(400), heads=1, key_heads=1, width=128)  # more visits than stages
    q, k, v, gradient = drawn(case, jnp.bfloat16)
    rest = {"scale": 128**-0.5, "interpret": WATCHED}
    out, sums = pallas_gpu.forward(q, k, v, case.visibility, **rest)
    assert not races_found()
    gradients = pallas_gpu.backward(q, k, v, case.visibility, out, sums, gradient, **rest)
    assert worst((out, *gradients), (q, k, v, gradient), case) < TOLERANCE[jnp.bfloat16]
    assert not races_found()


@st.composite
def intervals(draw):
    """Any intervals at all, each sample's own."""
    numbers = lambda shape: np.array(  # noqa: E731
        draw(st.lists(st.integers(-3, 12), min_size=math.prod(shape), max_size=math.prod(shape))), np.int32
    ).reshape(shape)
    start = numbers((2, 150))
    return Visibility(
        numbers((2, 140)), start, np.where(start % 5 == 0, INFINITY, start + numbers((2, 150))).astype(np.int32)
    )


RANDOM = Case(
    samples(*[masks.causal(150)._replace(q_time=np.zeros(140, np.int32))] * 2), batch=2, heads=1, key_heads=1, width=8
)
COMPILED = {
    name: jax.jit(lambda visibility, *arrays, run=run: passes(run, arrays, visibility))
    for name, run in IMPLEMENTATIONS.items()
}


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(visibility=intervals())
def test_any_intervals_are_served(name, visibility):
    arrays = drawn(RANDOM, jnp.float32)
    assert worst(COMPILED[name](visibility, *arrays), arrays, RANDOM._replace(visibility=visibility)) < 2e-6


@pytest.mark.parametrize("by_keys", [False, True])
@pytest.mark.parametrize("case", ["another mask for each sample", "window", "nobody sees anything"])
def test_every_row_of_blocks_knows_its_part_of_the_list(case, by_keys):
    visibility = CASES[case].visibility
    known = visits.visits(visibility, 64, 128, by_keys=by_keys)
    traced = jax.jit(lambda visibility: visits.visits(visibility, 64, 128, by_keys=by_keys))(visibility)
    T, S = visibility.as_array().shape[-2:]
    rows = -(-S // 128) if by_keys else -(-T // 64)
    lines = known.sample * rows + (known.key if by_keys else known.query)
    count = rows * (lines.max() // rows + 1)
    expected = np.searchsorted(lines, np.arange(count + 1))
    for walk in (known, traced):
        np.testing.assert_array_equal(visits.bounds(walk, int(count)), expected)


WRONG = [((1, 1), masks.FULL), ((1, 0), masks.SKIPPED), ((1, 1), masks.SKIPPED), ((0, 1), masks.FULL)]


@pytest.mark.parametrize(
    ("kernels", "dtype", "block", "kind"),
    [(INTERPRETED, jnp.float32, *wrong) for wrong in WRONG] + [(OF_GPUS, jnp.bfloat16, *wrong) for wrong in WRONG[:2]],
)
def test_a_wrong_summary_of_one_block_is_noticed(kernels, dtype, block, kind, monkeypatch):
    """What the table above asserts is lost where one block is taken for full, or left out."""

    def wrong(*arguments):
        kinds = masks.block_kinds(*arguments).copy()
        assert kinds[block] != kind
        kinds[block] = kind
        return kinds

    case = CASES["causal, a prime"]._replace(batch=1, heads=1, key_heads=1)
    arrays = drawn(case, dtype)
    monkeypatch.setattr(visits, "block_kinds", wrong)
    found = passes(module.recomputed(*(partial(each, blocks=BLOCKS) for each in kernels)), arrays, case.visibility)
    for a, b in zip(found, reference(*arrays, case.visibility)):
        assert np.abs(np.asarray(a, np.float64) - b).max() > 10 * TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["xla_chunked", "pallas_tpu", "pallas_gpu"])
def test_no_array_is_as_large_as_all_scores(name):
    case = Case(masks.causal(4096), heads=1, key_heads=1)
    arrays = drawn(case, jnp.bfloat16)
    program = lambda run, mask: str(jax.make_jaxpr(lambda *arrays: passes(run, arrays, mask))(*arrays))  # noqa: E731
    assert "4096,4096" not in program(IMPLEMENTATIONS[name], case.visibility)
    assert "4096,4096" in program(xla.dense, jax.tree.map(jnp.asarray, case.visibility))


def test_devices_that_share_a_call_give_what_one_gives():
    """Samples, heads and queries are split over eight virtual devices; what does not divide stays whole."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": f"{ROOT}:{HERE}",
    }
    script = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from attention_cases import CASES, drawn, passes, worst
from models.sharding import MESH_AXES
from test_implementations import IMPLEMENTATIONS

for sizes in [(2, 2, 1, 1), (1, 2, 2, 1), (2, 1, 1, 4)]:
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    mesh = jax.sharding.Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    for name, by in (
        ("causal, a prime", "pallas_tpu"), ("another mask for each sample", "pallas_tpu"),
        ("packed documents", "xla_chunked"), ("window", "pallas_tpu"), ("another mask for each sample", "xla_chunked"),
    ):
        case = CASES[name]
        arrays = drawn(case, jnp.float32)
        with jax.set_mesh(mesh):
            run = jax.jit(lambda *arrays: passes(IMPLEMENTATIONS[by], arrays, case.visibility))
            print(sizes, name, worst(run(*arrays), arrays, case), str(jax.make_jaxpr(run)(*arrays)).count("shard_map"))
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 15
    assert all(float(line[-2]) < 2e-6 and int(line[-1]) > 0 for line in lines), done.stdout


@pytest.mark.parametrize(
    ("length", "traced", "expected"),
    [(1024, False, "xla"), (2048, False, "xla_chunked"), (512, True, "xla"), (1024, True, "xla_chunked")],
)
def test_long_sequences_go_in_chunks(length, traced, expected):
    visibility = jax.tree.map(jnp.asarray, masks.causal(length)) if traced else masks.causal(length)
    q = jnp.zeros((1, length, 1, 32))
    assert module.fastest(q, q.swapaxes(1, 2), visibility) == expected


def test_in_chunks_a_long_sequence_takes_a_quarter_of_the_memory():
    """The temporaries of both passes at 4,096 slots, beside those of jax's own attention under a dense mask."""
    visibility = masks.causal(4096)
    mask = jnp.asarray(visibility.as_array())[None, None]
    q = jax.ShapeDtypeStruct((1, 4096, 2, 64), jnp.float32)

    def temporaries(run):
        return jax.jit(lambda q: jax.vjp(run, q)[1](q)).lower(q).compile().memory_analysis().temp_size_in_bytes

    ours = temporaries(lambda q: module.attention(q, q.swapaxes(1, 2), q.swapaxes(1, 2), visibility))
    assert 4 * ours < temporaries(lambda q: jax.nn.dot_product_attention(q, q, q, mask=mask))


# ---- what cannot be served


Q, K, V, _ = drawn(Case(masks.causal(5), heads=4, batch=2), jnp.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q, K[:, :, :4], V, masks.causal(5)), r"\(2, 2, 4, 32\).*do not go together"),
        ((Q, K[..., :16], V[..., :16], masks.causal(5)), "do not go together"),
        ((Q, K[:1], V[:1], masks.causal(5)), "do not go together"),
        ((Q[:, :, :3], K, V, masks.causal(5)), "2 heads of keys do not divide 3"),
        ((Q.astype(jnp.bfloat16), K, V, masks.causal(5)), "bfloat16, float32, float32"),
        ((Q.astype(jnp.float16), K.astype(jnp.float16), V.astype(jnp.float16), masks.causal(5)), "float16"),
        ((Q, K, V, masks.causal(4)), r"q_time has the shape \(4,\)"),
        ((Q, K, V, samples(*[masks.causal(5)] * 3)), r"q_time has the shape \(3, 5\)"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        module.attention(*arguments)


def test_an_implementation_that_cannot_serve_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="runs on a TPU, and this is a cpu"):
        module.attention(Q, K, V, masks.causal(5), implementation="pallas_tpu")
    with pytest.raises(UserError, match="runs on a Hopper GPU, and this is a cpu"):
        module.attention(Q, K, V, masks.causal(5), implementation="pallas_gpu")
    for kind, served in (("NVIDIA H200", True), ("NVIDIA GH200 480GB", True), ("NVIDIA A100-SXM4-80GB", False)):
        monkeypatch.setattr(module, "device", lambda kind=kind: SimpleNamespace(platform="gpu", device_kind=kind))
        assert module.is_hopper() == served
    with pytest.raises(UserError, match="runs on a Hopper GPU, and this is a NVIDIA A100"):
        module.attention(Q, K, V, masks.causal(5), implementation="pallas_gpu")
    with pytest.raises(UserError, match="multiply bfloat16, and float32 not exactly; 'xla' serves float32"):
        pallas_gpu.forward(Q, K, V, masks.causal(5), scale=1.0)
    q, k = (jnp.zeros((*x.shape[:3], 257), jnp.bfloat16) for x in (Q, K))
    with pytest.raises(UserError, match=r"heads of 257 exceed .* 256"):
        pallas_gpu.forward(q, k, k, masks.causal(5), scale=1.0)
    with pytest.raises(UserError, match="did you mean 'pallas_tpu'"):
        module.attention(Q, K, V, masks.causal(5), implementation="palas_tpu")
