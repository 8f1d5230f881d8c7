"""Programs as the compilers for CPUs and TPUs print them."""

import jax
import jax.numpy as jnp
import pytest

from training.hlo import parse, trip_count

# What the compiler for TPUs prints: no trip counts, memory spaces, comments in long tuples.
LOOP = """
HloModule jit_f, is_scheduled=true

%body.1 (p.1: (s32[], f32[8,128], /*index=2*/f32[6,8,128])) -> (s32[], f32[8,128], f32[6,8,128]) {
  %p.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, /*index=2*/f32[6,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x.1 = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%p.1), index=1
  %w.1 = f32[6,8,128]{2,1,0:T(8,128)} get-tuple-element(%p.1), index=2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i.1, %one)
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[6,8,128]{2,1,0:T(8,128)}) tuple(%next, %x.1, %w.1)
}

%condition.1 (p.2: (s32[], f32[8,128], f32[6,8,128])) -> pred[] {
  %end = s32[]{:T(128)} constant(6)
  %p.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[6,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.2, %end), direction=LT
}

ENTRY %main (x: f32[8,128], w: f32[6,8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %w = f32[6,8,128]{2,1,0:T(8,128)} parameter(1)
  %start = s32[]{:T(128)} constant(START)
  %copied = s32[]{:T(128)} copy(%start)
  %t = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[6,8,128]{2,1,0:T(8,128)}) tuple(%copied, %x, %w)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[6,8,128]{2,1,0}) while(%t), condition=%condition.1, body=%body.1
  ROOT %y = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=1
}
"""


def loop_of(text):
    module = parse(text)
    loop = next(instruction for instruction in module.entry if instruction.opcode == "while")
    return module, loop


@pytest.mark.parametrize(("start", "trips"), [(0, 6), (2, 4)])
def test_a_loop_that_counts_to_a_constant_goes_round_as_often(start, trips):
    module, loop = loop_of(LOOP.replace("START", str(start)))
    assert trip_count(module, module.entry, loop) == trips


def test_a_loop_in_larger_steps_goes_round_less_often():
    module, loop = loop_of(LOOP.replace("constant(1)", "constant(2)").replace("START", "1"))
    assert trip_count(module, module.entry, loop) == 3  # 1, 3, 5


@pytest.mark.parametrize(
    ("was", "is_"),
    [
        ("direction=LT", "direction=NE"), ("add(%i.1, %one)", "multiply(%i.1, %one)"), ("add(%i.1, %one)", "add(%i.1, %i.1)"),
        ("tuple(%copied, %x, %w)", "custom-call(%copied, %x, %w)"),
    ],
)  # fmt: skip
def test_a_loop_that_ends_otherwise_is_not_guessed(was, is_):
    module, loop = loop_of(LOOP.replace("START", "0").replace(was, is_))
    assert trip_count(module, module.entry, loop) is None


def test_types_operands_and_calls():
    module, loop = loop_of(LOOP.replace("START", "0"))
    assert loop.called() == ["condition.1", "body.1"]
    assert loop.operands == ("t",)
    assert [(array.dtype, array.shape, array.space, array.bytes) for array in loop.arrays] == [
        ("s32", (), 0, 4), ("f32", (8, 128), 1, 4096), ("f32", (6, 8, 128), 0, 24576),
    ]  # fmt: skip
    assert module.entry.root == "y"
    assert set(module.computations) == {"body.1", "condition.1", "main"}


def test_programs_of_this_machine_are_read():
    def f(x, limit):
        known = jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x @ x), x)
        return known, jax.lax.while_loop(lambda x: x.sum() < limit, lambda x: x @ x, x)

    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    module = parse(jax.jit(f).lower(shape, jax.ShapeDtypeStruct((), jnp.float32)).compile().as_text())
    loops = [instruction for instruction in module.entry if instruction.opcode == "while"]
    assert sorted((trip_count(module, module.entry, loop) or 0) for loop in loops) == [0, 7]
