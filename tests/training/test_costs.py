"""Arithmetic, traffic and collectives of programs, against closed forms."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.chips import CHIPS
from training.costs import Costs, costs_of
from training.products import window_pairs

S = jax.ShapeDtypeStruct


def compiled(function, *shapes):
    return jax.jit(function).lower(*shapes).compile().as_text()


def program(*lines, others=""):
    """A program of these instructions, as a TPU's compiler prints it."""
    return (
        f"HloModule m\n\n{others}\nENTRY %main (p: f32[1]) -> f32[1] {{\n"
        + "".join(f"  {line}\n" for line in lines)
        + "}\n"
    )


def test_bodies_of_loops_count_as_often_as_they_run():
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    found = costs_of(compiled(layers, S((16, 64), jnp.float32), S((5, 64, 32 * 2), jnp.float32)))
    assert found.flops == {"float32": 5 * 2 * 16 * 64 * 64}


def test_loops_of_unknown_length_count_as_often_as_is_said():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

    text = compiled(until, S((16, 16), jnp.float32))
    assert costs_of(text, loops=9).flops == {"float32": 9 * 2 * 16**3}
    assert costs_of(text).unknown_loops == 1


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_of_a_convolution_costs_nothing(stride):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    found = costs_of(compiled(convolve, S((2, 9, 9, 3), jnp.float32), S((3, 3, 3, 5), jnp.float32)))
    taps = sum(1 for out in range(0, 9, stride) for tap in (-1, 0, 1) if 0 <= out + tap < 9)
    assert sum(found.flops.values()) == 2 * 2 * 3 * 5 * taps**2


def test_a_product_of_batches_written_as_a_dilated_convolution_costs_what_it_does():
    text = program(
        "%q = bf16[16,4,64,32]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(0)",
        "%k = bf16[16,4,64,32]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)",
        "ROOT %c = f32[16,4,64,64]{3,2,1,0:T(8,128)} convolution(%q, %k), "
        "window={size=16x4 stride=15x3 lhs_dilate=16x4}, dim_labels=01bf_01oi->01bf",
    )
    assert costs_of(text).flops == {"bfloat16": 2 * 16 * 4 * 64 * 64 * 32}


def test_pairs_of_a_window_by_enumeration():
    random = np.random.default_rng(0)
    for _ in range(300):
        size, kernel, out, stride, spread, dilation = map(int, random.integers(1, 6, 6))
        low = int(random.integers(-2, 4))
        at = lambda place, tap: place * stride + tap * dilation - low  # noqa: B023, E731
        wanted = sum(
            0 <= at(place, tap) <= (size - 1) * spread and at(place, tap) % spread == 0
            for place in range(out) for tap in range(kernel)
        )  # fmt: skip
        found = window_pairs(
            size=size, kernel=kernel, out=out, stride=stride, low=low, spread=spread, dilation=dilation
        )
        assert found == wanted


def test_precision_decides_the_rate():
    precise = compiled(lambda a, b: jnp.dot(a, b, precision="highest"), S((8, 8), jnp.float32), S((8, 8), jnp.float32))
    assert set(costs_of(precise).flops) == {"highest"}
    chip = CHIPS["TPU v5 lite"]
    assert Costs(flops={"highest": 197e12}).seconds(chip)["compute"] == pytest.approx(6)
    # A chip that jax shows as two devices gives each the half.
    assert Costs(hbm_bytes=7380e9).seconds(CHIPS["TPU7x"])["memory"] == pytest.approx(2)


def test_vector_memory_is_no_traffic_and_slices_are_what_they_touch():
    fused = """
%fused (a: f32[6,8,128], i: s32[]) -> f32[8,128] {
  %a = f32[6,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %s = f32[1,8,128]{2,1,0} dynamic-slice(%a, %i, %z, %z), dynamic_slice_sizes={1,8,128}
  ROOT %b = f32[8,128]{1,0} bitcast(%s)
}

%update (c: f32[6,8,128], u: f32[8,128], j: s32[]) -> f32[6,8,128] {
  %c = f32[6,8,128]{2,1,0} parameter(0)
  %u = f32[8,128]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %z = s32[] constant(0)
  %v = f32[1,8,128]{2,1,0} bitcast(%u)
  ROOT %d = f32[6,8,128]{2,1,0} dynamic-update-slice(%c, %v, %j, %z, %z)
}
"""
    text = program(
        "%w = f32[6,8,128]{2,1,0:T(8,128)} parameter(0)",
        "%n = s32[]{:T(128)S(6)} parameter(1)",
        "%row = f32[8,128]{1,0:T(8,128)S(1)} fusion(%w, %n), kind=kLoop, calls=%fused",  # reads 4096
        "%far = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%row)",  # writes 4096
        "%there = f32[8,128]{1,0:T(8,128)} copy-done(%far)",
        # of which 1024 are read
        "%part = ((f32[8,128]{1,0:T(8,128)}), f32[2,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%there), slice={[0:2]}",
        "%got = f32[2,128]{1,0:T(8,128)S(1)} slice-done(%part)",
        "ROOT %new = f32[6,8,128]{2,1,0:T(8,128)} fusion(%w, %there, %n), kind=kLoop, calls=%update",  # reads and writes 4096
        others=fused,
    )
    assert costs_of(text).hbm_bytes == 4096 + 4096 + 1024 + 2 * 4096


NESTED = """
%take (a: f32[12,8,128], i: s32[]) -> f32[8,128] {
  %a = f32[12,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %s = f32[1,8,128]{2,1,0} dynamic-slice(%a, %i, %z, %z), dynamic_slice_sizes={1,8,128}
  ROOT %b = f32[8,128]{1,0} bitcast(%s)
}

%put (c: f32[12,8,128], u: f32[8,128], j: s32[]) -> f32[12,8,128] {
  %c = f32[12,8,128]{2,1,0} parameter(0)
  %u = f32[8,128]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %z = s32[] constant(0)
  %v = f32[1,8,128]{2,1,0} bitcast(%u)
  ROOT %d = f32[12,8,128]{2,1,0} dynamic-update-slice(%c, %v, %j, %z, %z)
}

%layer (a: f32[12,8,128], c: f32[12,8,128], i: s32[]) -> ROOT_TYPE {
  %a = f32[12,8,128]{2,1,0} parameter(0)
  %c = f32[12,8,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[8,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%take
  %new = f32[12,8,128]{2,1,0} fusion(%c, %row, %i), kind=kLoop, calls=%put
  ROOT %r = RESULT
}

%body (p: (s32[]{S(6)}, f32[12,8,128], f32[12,8,128])) -> (s32[], f32[12,8,128], f32[12,8,128]) {
  %p = (s32[]{:T(128)S(6)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%p), index=0
  %a = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%p), index=1
  %c = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %f = ROOT_TYPE fusion(%a, %c, %i), kind=kOutput, calls=%layer
  ROOT %t = (s32[], f32[12,8,128], f32[12,8,128]) tuple(%i, %a, %c)
}

%test (p: (s32[]{S(6)}, f32[12,8,128], f32[12,8,128])) -> pred[] {
  ROOT %p = pred[] parameter(0)
}
"""


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("f32[12,8,128]{2,1,0:T(8,128)}", "f32[12,8,128]{2,1,0} bitcast(%new)"),
        ("f32[12,8,128]{2,1,0:T(8,128)}", "f32[12,8,128]{2,1,0} fusion(%c, %row, %i), kind=kLoop, calls=%put"),
        ("(f32[12,8,128]{2,1,0:T(8,128)})", "(f32[12,8,128]{2,1,0}) tuple(%new)"),
    ],
)
def test_fusions_inside_fusions_read_and_write_a_layer_of_a_stack(kind, result):
    text = program(
        "%p = (s32[], f32[12,8,128]{2,1,0}, f32[12,8,128]{2,1,0}) parameter(0)",
        "ROOT %w = (s32[], f32[12,8,128]{2,1,0}, f32[12,8,128]{2,1,0}) while(%p), condition=%test, body=%body, "
        'backend_config={"known_trip_count":{"n":"12"}}',
        others=NESTED.replace("ROOT_TYPE", kind).replace("RESULT", result),
    )
    assert costs_of(text).hbm_bytes == 12 * (4096 + 4096)


@pytest.mark.parametrize(
    ("groups", "devices"),
    [("{{0,1,2,3},{4,5,6,7}}", 4), ("[4,64]<=[64,4]T(1,0)", 64), ("[256]<=[256]", 256), ("mesh['a'=4,'b'=64] {'b'}", 64),
     ("mesh['a'=8,'b'=1,'c'=2], device_ids=([2,8]T(1,0)) {'a'}", 8), ("mesh['a'=4,'b'=64] {'a','b'}", 256),
     ("mesh['a'=16] {'a':(1)8}", 8)],
)  # fmt: skip
def test_groups_in_every_form(groups, devices):
    text = program(
        "%x = f32[1024]{0:T(1024)} parameter(0)",
        f"ROOT %r = f32[1024]{{0:T(1024)}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%a",
    )
    assert costs_of(text).link_bytes == {"all-reduce": pytest.approx(2 * (devices - 1) / devices * 4096)}


@pytest.mark.parametrize(("groups", "devices"), [("{}", 16), ("something", 0)])
def test_groups_of_all_and_of_nobody_knows_whom(groups, devices):
    text = program(
        "%x = f32[1024]{0:T(1024)} parameter(0)",
        f"ROOT %r = f32[1024]{{0:T(1024)}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%a",
    ).replace("HloModule m", "HloModule m, is_scheduled=true, replica_count=2, num_partitions=8")
    if devices:
        assert costs_of(text).link_bytes == {"all-reduce": pytest.approx(2 * (devices - 1) / devices * 4096)}
    else:
        with pytest.raises(ValueError, match="unknown groups"):
            costs_of(text)


def test_an_update_is_read_where_it_lies_and_written_where_the_whole_does():
    text = program(
        "%w = f32[6,8,128]{2,1,0:T(8,128)} parameter(0)",
        "%u = f32[1,8,128]{2,1,0:T(8,128)S(1)} parameter(1)",
        "%z = s32[]{:T(128)S(6)} parameter(2)",
        "ROOT %d = f32[6,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%w, %u, %z, %z, %z)",
    )
    assert costs_of(text).hbm_bytes == 4096
    later = "((f32[6,8,128]{2,1,0}, f32[1,8,128]{2,1,0:S(1)}, s32[]{:S(6)}), f32[6,8,128]{2,1,0}, u32[]{:S(2)}) "
    assert (
        costs_of(re.sub(r"= \S+ dynamic-update-slice", f"= {later}dynamic-update-slice-start", text)).hbm_bytes == 4096
    )
    row = "((f32[6,8,128]{2,1,0}, s32[]{:S(6)}), f32[1,8,128]{2,1,0:S(1)}, u32[]{:S(2)}) dynamic-slice-start(%w, %z)"
    assert costs_of(re.sub(r"= \S+ dynamic-update-slice.*", f"= {row}", text)).hbm_bytes == 4096
    unknown = program("%w = f32[6,8,128]{2,1,0} parameter(0)", "ROOT %d = f32[6,8,128]{2,1,0} sort-start(%w)")
    with pytest.raises(ValueError, match="sort-start"):
        costs_of(unknown)


@pytest.mark.parametrize(
    ("kind", "first", "second", "result"),
    [
        ("Forward", "4,9,9,6", "3,3,6,8", "4,7,7,8"), ("BiasActivationForward", "4,9,9,6", "3,3,6,8", "4,7,7,8"),
        ("BackwardInput", "4,7,7,8", "3,3,6,8", "4,9,9,6"), ("BackwardFilter", "4,9,9,6", "4,7,7,8", "3,3,6,8"),
    ],
)  # fmt: skip
def test_convolutions_of_a_library_cost_as_much_as_the_forward_one(kind, first, second, result):
    text = program(
        f"%x = f32[{first}]{{3,2,1,0}} parameter(0)",
        f"%y = f32[{second}]{{3,2,1,0}} parameter(1)",
        f"ROOT %c = (f32[{result}]{{3,2,1,0}}, u8[1024]{{0}}) custom-call(%x, %y), window={{size=3x3}}, "
        f'dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$conv{kind}"',
    )
    assert sum(costs_of(text).flops.values()) == 2 * 4 * 7 * 7 * 8 * 3 * 3 * 6
    with pytest.raises(ValueError, match="convolution of unknown cost"):
        costs_of(text.replace("__cudnn$conv", "__mystery$"))


def test_links_that_are_not_known_bound_nothing():
    seconds = Costs(link_bytes={"all-gather": 600e9}).seconds(CHIPS["TPU7x"])
    assert seconds["links"] == 0  # the two devices of a chip share what it receives
    assert Costs(link_bytes={"all-gather": 600e9}).seconds(CHIPS["TPU v5"])["links"] == pytest.approx(1)


def test_asynchronous_and_fused_collectives_count_once():
    fused = """
%all-reduce-scatter.1 (a: f32[1024]) -> f32[256] {
  %a = f32[1024]{0} parameter(0)
  %r = f32[1024]{0} all-reduce(%a), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  %i = u32[] partition-id()
  ROOT %s = f32[256]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={256}
}

%wrapped (b: f32[1024]) -> f32[1024] {
  %b = f32[1024]{0} parameter(0)
  ROOT %p = f32[1024]{0} collective-permute(%b), channel_id=3, source_target_pairs={{0,1},{1,0}}
}
"""
    text = program(
        "%x = f32[1024]{0:T(1024)} parameter(0)",
        "%s = (f32[1024]{0:T(1024)}, f32[4096]{0:T(1024)}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}",
        "%g = f32[4096]{0:T(1024)} all-gather-done(%s)",
        "%f = f32[256]{0:T(256)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
        "%a = ((f32[1024]{0:T(1024)}), f32[1024]{0:T(1024)}, u32[]{:S(2)}) async-start(%x), calls=%wrapped",
        "%u = ((f32[1024]{0:T(1024)}), f32[1024]{0:T(1024)}, u32[]{:S(2)}) async-update(%a)",
        "ROOT %d = f32[1024]{0:T(1024)} async-done(%u)",
        others=fused,
    )
    found = costs_of(text)
    assert found.collectives == {"all-gather": 1, "reduce-scatter": 1, "collective-permute": 1}
    assert found.link_bytes == {"all-gather": 3 * 4096, "reduce-scatter": 3072, "collective-permute": 4096}


def test_work_that_a_sparse_core_takes_over_counts_where_it_starts():
    """As v5p's and v6e's compilers write a scatter: a call that another core runs, which calls the instruction in turn."""
    scatter = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%work (x: f32[4096], i: s32[64,1], u: f32[64]) -> f32[4096] {
  %x = f32[4096]{0} parameter(0)
  %i = s32[64,1]{1,0} parameter(1)
  %u = f32[64]{0} parameter(2)
  ROOT %y = f32[4096]{0} scatter(%x, %i, %u), to_apply=%add
}

%wrapped (x: f32[4096], i: s32[64,1], u: f32[64]) -> f32[4096] {
  %x = f32[4096]{0} parameter(0)
  %i = s32[64,1]{1,0} parameter(1)
  %u = f32[64]{0} parameter(2)
  %s = ((f32[4096]{0}, s32[64,1]{1,0}, f32[64]{0}), f32[4096]{0}, u32[]{:S(8)}) call-start(%x, %i, %u), to_apply=%work
  ROOT %d = f32[4096]{0} call-done(%s)
}
"""
    arguments = [
        "%x = f32[4096]{0} parameter(0)",
        "%i = s32[64,1]{1,0} parameter(1)",
        "%u = f32[64]{0} parameter(2)",
    ]
    elsewhere = program(
        *arguments,
        "%s = ((f32[4096]{0}, s32[64,1]{1,0}, f32[64]{0}), f32[4096]{0}) call-start(%x, %i, %u), to_apply=%wrapped",
        "ROOT %d = f32[4096]{0} call-done(%s)",
        others=scatter,
    )
    here = program(*arguments, "ROOT %y = f32[4096]{0} scatter(%x, %i, %u), to_apply=%add", others=scatter)
    assert costs_of(elsewhere).hbm_bytes == costs_of(here).hbm_bytes > 4096 * 4


def test_a_collective_in_steps_beside_other_work_counts_where_it_begins():
    """As a v5e's compiler writes one: every step that follows has a copy of it, and hands its buffers on."""
    steps = """
%start (a: f32[1024]) -> (f32[1024], f32[4096]) {
  %a = f32[1024]{0} parameter(0)
  %g = f32[4096]{0} all-gather(%a), GROUPS, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %c = (f32[1024]{0}, f32[4096]{0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%step (a: f32[1024], b: f32[4096], x: f32[8,8]) -> (f32[8,8], f32[1024], f32[4096]) {
  %a = f32[1024]{0} parameter(0)
  %b = f32[4096]{0} parameter(1)
  %x = f32[8,8]{1,0} parameter(2)
  %g = f32[4096]{0} all-gather(%a), GROUPS, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (f32[8,8]{1,0}, f32[1024]{0}, f32[4096]{0}) tuple(%y, %a, %g)
}

%done (a: f32[1024], b: f32[4096]) -> f32[4096] {
  %a = f32[1024]{0} parameter(0)
  %b = f32[4096]{0} parameter(1)
  %g = f32[4096]{0} all-gather(%a), GROUPS, backend_config={"async_collective_fusion_config":{"flag_start":"8"}}
  ROOT %c = f32[4096]{0} custom-call(%a, %b, %g), custom_call_target="AsyncCollectiveDone"
}
""".replace("GROUPS", "replica_groups={{0,1,2,3}}, dimensions={0}")
    text = program(
        "%w = f32[1024]{0} parameter(0)",
        "%x = f32[8,8]{1,0} parameter(1)",
        "%s = (f32[1024]{0}, f32[4096]{0}) fusion(%w), kind=kCustom, calls=%start",
        "%a = f32[1024]{0} get-tuple-element(%s), index=0",
        "%b = f32[4096]{0} get-tuple-element(%s), index=1",
        "%f = (f32[8,8]{1,0}, f32[1024]{0}, f32[4096]{0}) fusion(%a, %b, %x), kind=kOutput, calls=%step",
        "%c = f32[1024]{0} get-tuple-element(%f), index=1",
        "%d = f32[4096]{0} get-tuple-element(%f), index=2",
        "ROOT %r = f32[4096]{0} fusion(%c, %d), kind=kCustom, calls=%done",
        others=steps,
    )
    found = costs_of(text)
    assert found.collectives == {"all-gather": 1}
    assert found.link_bytes == {"all-gather": 3 * 4096}
    assert found.flops == {"float32": 2 * 8**3}
    assert found.hbm_bytes == (4096 + 4096 + 4 * 4096) + 2 * 256  # the start, then the product of 8 x 8


COLLECTIVES = """
import json, jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from training.costs import costs_of
mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
kinds = {
    "all-reduce": lambda x: jax.lax.psum(x, "b"), "all-gather": lambda x: jax.lax.all_gather(x, "b"),
    "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "b", tiled=True),
    "all-to-all": lambda x: jax.lax.all_to_all(x, "b", 0, 0, tiled=True),
    "collective-permute": lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 2), (2, 3), (3, 0)]),
}
found = {}
for kind, f in kinds.items():
    g = jax.shard_map(f, mesh=mesh, in_specs=P("b"), out_specs=P("b"), check_vma=False)
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, P("b")))
    found[kind] = costs_of(jax.jit(g).lower(x).compile().as_text()).link_bytes
print(json.dumps(found))
"""


def test_collectives_of_eight_devices_by_closed_form():
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIVES], env=environment, capture_output=True, text=True, check=True
    )
    own = 16 * 128 * 4  # bytes of a device's rows, in groups of four
    assert json.loads(done.stdout) == {
        "all-reduce": {"all-reduce": 2 * 3 / 4 * own}, "all-gather": {"all-gather": 3 * own},
        "reduce-scatter": {"reduce-scatter": 3 / 4 * own}, "all-to-all": {"all-to-all": 3 / 4 * own},
        "collective-permute": {"collective-permute": own},
    }  # fmt: skip
