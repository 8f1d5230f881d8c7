"""Compiled programs as XLA prints them: computations of instructions, with types, operands and attributes."""

import dataclasses
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "token": 0, "opaque": 0}  # of what does not say how wide it is
ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(?:%?([\w.\-]+)|\{([^}]*)\})"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """An array's type.

    Attributes:
      dtype: "bf16", "f32", "s32", ...
      shape: its dimensions.
      space: number of the memory that it lies in; 0 is the device's large one, 1 a TPU's vector memory.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        """Its size without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS[self.dtype] if self.dtype in BITS else int(digits[0]) if digits else 0
        return math.prod(self.shape) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without "%".
      opcode: "fusion", "convolution", ...
      arrays: its result; a tuple's arrays in their order.
      operands: names of instructions of the same computation.
      inside: what stands between the parentheses, where a constant has its value.
      attributes: what stands behind them.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str

    @property
    def bytes(self) -> float:
        """Of all its arrays."""
        return math.fsum(array.bytes for array in self.arrays)

    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        return [
            name.strip(" %") for one, several in CALLED.findall(self.attributes) for name in (one or several).split(",")
        ]

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in the attributes, "" where it is not found."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of a schedule, and the name of the one whose result is the computation's."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results it takes."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by their number."""
        return {int(part.inside): part for part in self if part.opcode == "parameter"}

    def behind(self, name: str) -> Instruction:
        """The instruction that makes what copies and changes of type hand on."""
        found = self.instructions[name]
        while (
            found.opcode in ("bitcast", "copy", "convert", "copy-done", "copy-start")
            and found.operands[0] in self.instructions
        ):
            found = self.instructions[found.operands[0]]
        return found

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take its result."""
        return [instruction for instruction in self if name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, the one that runs, and on how many devices."""

    computations: dict[str, Computation]
    entry: Computation
    devices: int


def parse(text: str) -> Module:
    """What `jax.stages.Compiled.as_text` gives."""
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] = {}
    name, entry, root = "", "", ""
    for line in text.splitlines():
        if line[:1] not in (" ", "}", "") and (header := HEADER.match(line)):
            name, instructions = header[2], {}
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, instructions, root)
        elif found := INSTRUCTION.match(line):
            instructions[found[2]] = parse_instruction(found[2], found[3])
            root = found[2] if found[1] else root
    title = text[: text.find("\n")]
    counts = [re.search(rf"{kind}=(\d+)", title) for kind in ("replica_count", "num_partitions")]
    return Module(computations, computations[entry], math.prod(int(found[1]) for found in counts if found))


def parse_instruction(name: str, text: str) -> Instruction:
    """`TYPE opcode(operands), attributes`."""
    end = closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    close = closing(text, start)
    inside = text[start + 1 : close]
    return Instruction(
        name, text[end:start].strip(), tuple(parse_array(*groups) for groups in ARRAY.findall(text[:end])),
        tuple(re.findall(r"%([\w.\-]+)", inside)), inside, text[close + 1 :],
    )  # fmt: skip


def parse_array(dtype: str, shape: str, layout: str) -> Array:
    """`bf16[8,128]{1,0:T(8,128)S(1)}`; a dimension of up to so many counts in full."""
    space = re.search(r"S\((\d+)\)", layout)
    sizes = tuple(int(size.removeprefix("<=")) for size in shape.split(",") if size)
    return Array(dtype, sizes, int(space[1]) if space else 0)


def closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError(f"unbalanced parentheses in {text[:200]!r}")


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a `while` of this computation goes round; None where that is decided while it runs.

    The compiler says it (`known_trip_count`), or the loop counts up to a constant in steps of a constant.
    """
    if known := loop.attribute(r'known_trip_count"?:\{"n":"(\d+)"'):
        return int(known)
    condition = module.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
    test, ends = (
        condition.instructions[condition.root],
        [c for c in condition if c.opcode == "constant" and is_integer(c)],
    )
    if test.opcode == "fusion":  # a comparison by itself
        inner = module.computations[test.called()[0]]
        test_inside = inner.instructions[inner.root]
    else:
        test_inside = test
    counters = [c for name in test.operands if (c := condition.behind(name)).opcode == "get-tuple-element"]
    if (
        test_inside.opcode != "compare"
        or "direction=LT" not in test_inside.attributes
        or len(ends) != 1
        or len(counters) != 1
    ):
        return None
    number = int(counters[0].attribute(r"index=(\d+)"))
    body = module.computations[loop.attribute(r"body=%?([\w.\-]+)")]
    state, after = computation.instructions[loop.operands[0]], body.instructions[body.root]
    if state.opcode != "tuple" or after.opcode != "tuple":
        return None
    start, following = computation.behind(state.operands[number]), body.behind(after.operands[number])
    steps = [int(part.inside) for part in body.operands(following) if part.opcode == "constant" and is_integer(part)]
    if following.opcode != "add" or len(steps) != 1 or steps[0] < 1:
        return None
    first = int(start.inside) if start.opcode == "constant" and is_integer(start) else 0
    return -(-(int(ends[0].inside) - first) // steps[0])


def is_integer(constant: Instruction) -> bool:
    """Whether a constant is one integer."""
    return re.fullmatch(r"-?\d+", constant.inside.strip()) is not None
