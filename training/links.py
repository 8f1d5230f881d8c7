"""What collectives bring a device over the links."""

import math
import re
from collections.abc import Callable

from training.hlo import Computation, Instruction, Module

# kind: bytes that a chip receives for n chips, as a share of the operand's (as rings and tori do it).
COLLECTIVES: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: n - 1.0,  # (n - 1) / n of the result
    "all-reduce": lambda n: 2.0 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1.0) / n,
    "all-to-all": lambda n: (n - 1.0) / n,
    "collective-permute": lambda n: 1.0,
}


def link_bytes(module: Module, computation: Computation, instruction: Instruction) -> tuple[str, float] | None:
    """Kind of a collective, and bytes that a device receives by it; None for all other instructions."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or continues(instruction):
        return None
    # The compiler's reduce-scatter may be an all-reduce fused with the slice that is kept.
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    payload = math.fsum(operand.bytes for operand in computation.operands(instruction))
    size = 1 if kind == "collective-permute" else group_size(module, instruction)  # which names pairs
    return kind, payload * COLLECTIVES[kind](size)


def continues(instruction: Instruction) -> bool:
    """Whether it is a further step of a collective: a v5e's compiler begins one (step -1) and goes on beside other work."""
    return bool(instruction.attribute(r'"async_collective_fusion_config":\{"flag_start":"(\d+)"'))


def group_size(module: Module, instruction: Instruction) -> int:
    """How many devices take part in a collective together.

    Raises:
      ValueError: the groups are written in a form that is not known.
    """
    if listed := instruction.attribute(r"replica_groups=\{\{([\d,]+)\}"):
        return listed.count(",") + 1
    if shape := instruction.attribute(r"replica_groups=\[([\d,]+)\]<="):
        return int(shape.split(",")[-1])
    if mesh := instruction.attribute(r"replica_groups=mesh\[([^\]]*)\]"):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
        named = instruction.attribute(r"replica_groups=mesh\[[^\]]*\][^{]*\{([^}]*)\}")
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named))
    if "replica_groups={}" in instruction.attributes:  # all
        return module.devices
    raise ValueError(f"a collective of unknown groups: {instruction.attributes[:200]}")
