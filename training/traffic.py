"""Bytes of a device's memory that a compiled program's instructions read and write."""

import math

from training.hlo import Computation, Instruction, Module
from training.links import COLLECTIVES, continues

# Neither compute nor move anything; what an asynchronous operation moves is counted where it starts.
FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier",
    "add-dependency", "copy-done", "slice-done", "async-done", "async-update", "recv-done", "send-done",
}  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding", "PinTo", "ManualSharding")
SLICES = ("slice", "dynamic-slice", "gather")  # read as much as they give
TRANSPARENT = ("bitcast", "reshape", "copy", "convert")


def traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes of the device's memory that an instruction reads and writes; each array once, slices as much as they touch.

    Raises:
      ValueError: an asynchronous operation that is not known.
    """
    opcode, operands = instruction.opcode, computation.operands(instruction)
    if (
        opcode in FREE
        or opcode.endswith("-done")
        or instruction.attribute(r'custom_call_target="(\w+)').startswith(FREE_CALLS)
    ):
        return 0.0
    if opcode in ("copy-start", "slice-start", "dynamic-slice-start"):  # whose types name operands, then the result
        ends = (instruction.arrays[0], instruction.arrays[len(operands)])
        return math.fsum(min(end.bytes for end in ends) for end in ends if end.space == 0)
    written = in_memory(instruction)
    if opcode == "fusion":
        inner = module.computations[instruction.called()[0]]
        parameters = inner.parameters()
        read = math.fsum(
            fused_read(module, inner, parameters[number])
            for number, operand in enumerate(computation.instructions[name] for name in instruction.operands)
            if in_memory(operand)
        )
        results = zip(instruction.arrays, fused_writes(module, inner), strict=True)
        return read + math.fsum(min(array.bytes, size) for array, size in results if array.space == 0)
    if opcode in SLICES:
        touched = instruction.bytes
        return math.fsum(touched for array in (*operands[0].arrays[:1], *instruction.arrays) if array.space == 0)
    if opcode in ("dynamic-update-slice", "dynamic-update-slice-start"):
        return in_memory(operands[1]) + (operands[1].bytes if written else 0.0)
    if opcode.removesuffix("-start") in COLLECTIVES and opcode.endswith("-start"):
        own = math.fsum(in_memory(operand) for operand in operands)  # the type names operands and results
        return max(written, own) if opcode != "all-reduce-start" else written + own
    if opcode.endswith("-start"):
        raise ValueError(f"an asynchronous operation of unknown traffic: {opcode}")
    return written + math.fsum(
        in_memory(operand) for operand in {operand.name: operand for operand in operands}.values()
    )


def in_memory(instruction: Instruction) -> float:
    """Bytes of its result that lie in the device's memory."""
    return math.fsum(array.bytes for array in instruction.arrays if array.space == 0)


def fused_read(module: Module, inner: Computation, parameter: Instruction) -> float:
    """Bytes that a fusion reads of a parameter: slices of it, nothing where it is only written or handed on, or all."""
    read = 0.0
    for place, name in seen_through(inner, parameter.name):
        if continues(place) or hands_on(inner, place):
            continue
        first = place.operands[0] == name
        if place.opcode in SLICES and first:
            read += place.bytes
        elif place.opcode == "fusion":  # a TPU's compiler nests them
            nested = module.computations[place.called()[0]]
            own = nested.parameters()
            read += math.fsum(
                fused_read(module, nested, own[n]) for n, operand in enumerate(place.operands) if operand == name
            )
        elif place.opcode != "dynamic-update-slice" or not first:
            return parameter.bytes
    return min(read, parameter.bytes)


def seen_through(inner: Computation, name: str) -> list[tuple[Instruction, str]]:
    """Who takes a result, and under which name: through what does not change which entries are read."""
    found: list[tuple[Instruction, str]] = []
    for user in inner.users(name):
        found += seen_through(inner, user.name) if user.opcode == "bitcast" else [(user, name)]
    return found


def fused_writes(module: Module, inner: Computation) -> list[float]:
    """Bytes that a fusion writes of each of its results: of one that is updated in place the update alone."""
    root, sizes = inner.instructions[inner.root], []
    if root.opcode == "fusion":
        return fused_writes(module, module.computations[root.called()[0]])
    for result in inner.operands(root) if root.opcode == "tuple" else [root]:
        number, results = 0, len(result.arrays)
        while result.opcode in (*TRANSPARENT, "get-tuple-element") and result.operands:
            number = int(result.attribute(r"index=(\d+)") or number)
            result = inner.instructions[result.operands[0]]
        if continues(result) or (hands_on(inner, root) and result.opcode == "parameter") or is_done(result):
            sizes.append(0.0)
        elif result.opcode == "dynamic-update-slice":
            sizes.append(inner.operands(result)[1].bytes)
        elif result.opcode == "fusion":
            sizes.append(fused_writes(module, module.computations[result.called()[0]])[number])
        else:
            sizes += [math.inf] * results
    return sizes


def hands_on(inner: Computation, instruction: Instruction) -> bool:
    """Whether it hands what it takes on as it is, beside or at the end of a collective that was begun before."""
    return is_done(instruction) or (instruction.opcode == "tuple" and any(continues(part) for part in inner))


def is_done(instruction: Instruction) -> bool:
    """Whether it ends a collective that was begun before: all of it was counted then."""
    return instruction.attribute(r'custom_call_target="(\w+)') == "AsyncCollectiveDone"
