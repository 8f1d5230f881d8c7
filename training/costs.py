"""What a compiled program costs a chip: arithmetic, memory traffic, and what goes over the links.

Read from the compiler's own output, with bodies of loops counted as often as they run (its `cost_analysis` counts them once).
"""

import dataclasses
import math
import re
from collections.abc import Callable

from training.chips import Chip
from training.hlo import Computation, Instruction, Module, parse, trip_count

# Neither compute nor move anything; what an asynchronous operation moves is counted where it starts.
FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier",
    "add-dependency", "copy-done", "slice-done", "async-done", "async-update", "recv-done", "send-done",
}  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding", "PinTo", "ManualSharding")
SLICES = ("slice", "dynamic-slice", "gather")  # read as much as they give
TRANSPARENT = ("bitcast", "reshape", "copy", "convert")

# kind: bytes that a chip receives for n chips, as a share of the operand's (as rings and tori do it, which nothing undercuts).
COLLECTIVES: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: n - 1.0,  # (n - 1) / n of the result
    "all-reduce": lambda n: 2.0 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1.0) / n,
    "all-to-all": lambda n: (n - 1.0) / n,
    "ragged-all-to-all": lambda n: (n - 1.0) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}


@dataclasses.dataclass
class Costs:
    """Of one call on one device.

    Attributes:
      flops: multiply-adds counted as two, by arithmetic, a name of `Chip.rates`.
      recomputed_flops: those of them that rematerialisation added.
      hbm_bytes: read from and written to the device's memory.
      link_bytes: received from other devices, by kind of collective.
      collectives: how many of each kind.
      unknown_loops: loops whose length is decided while they run.
    """

    flops: dict[str, float] = dataclasses.field(default_factory=dict)
    recomputed_flops: float = 0.0
    hbm_bytes: float = 0.0
    link_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0

    def add(self, other: "Costs", times: int) -> None:
        """Count another's costs so many times."""
        for field in dataclasses.fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, dict):
                for name, value in its.items():
                    mine[name] = mine.get(name, 0.0) + times * value
            else:
                setattr(self, field.name, mine + (its if field.name == "unknown_loops" else times * its))

    def seconds(self, chip: Chip) -> dict[str, float]:
        """How long each resource is busy at its peak rate: "compute", "memory", "links"."""
        return {
            "compute": math.fsum(flops * chip.devices / chip.rates[kind] for kind, flops in self.flops.items()),
            "memory": self.hbm_bytes / (chip.hbm_bandwidth / chip.devices),
            "links": math.fsum(self.link_bytes.values()) / (chip.link_bandwidth / chip.devices),
        }


def costs_of(text: str, *, loops: int = 1) -> Costs:
    """Of a compiled program's text (`jax.stages.Compiled.as_text`).

    Args:
      text: the program.
      loops: how often loops go round whose length is decided while they run.
    """
    module = parse(text)
    known: dict[str, Costs] = {}
    return of_computation(module, module.entry, loops, known)


def of_computation(module: Module, computation: Computation, loops: int, known: dict[str, Costs]) -> Costs:
    """Of a computation that runs instruction by instruction: the entry, and what `while`, `conditional` and `call` run."""
    if computation.name in known:
        return known[computation.name]
    total = Costs()
    for instruction in computation:
        opcode = instruction.opcode
        called = [module.computations[name] for name in instruction.called() if name in module.computations]
        if opcode == "while":
            trips = trip_count(module, computation, instruction)
            total.unknown_loops += trips is None
            for part in called:
                total.add(of_computation(module, part, loops, known), loops if trips is None else trips)
        elif opcode == "conditional":  # the dearest branch
            branches = [of_computation(module, part, loops, known) for part in called]
            total.add(max(branches, key=lambda branch: (math.fsum(branch.flops.values()), branch.hbm_bytes)), 1)
        elif opcode in ("call", "async-start") and called:
            total.add(of_computation(module, called[0], loops, known), 1)
        else:
            total.hbm_bytes += traffic(module, computation, instruction)
            add_work(total, module, computation, instruction)
    known[computation.name] = total
    return total


def add_work(total: Costs, module: Module, computation: Computation, instruction: Instruction) -> None:
    """Arithmetic and collectives of an instruction, or of all that is fused into it."""
    opcode = instruction.opcode
    if opcode == "fusion":
        inner = module.computations[instruction.called()[0]]
        for part in inner:
            add_work(total, module, inner, part)
        return
    if flops := products(computation, instruction):
        again = flops if "rematted_computation" in instruction.attributes else 0.0
        total.add(Costs({arithmetic(computation, instruction): flops}, again), 1)
    kind = opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        # The compiler's reduce-scatter may be an all-reduce fused with the slice that is kept.
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        payload = math.fsum(operand.bytes for operand in computation.operands(instruction))
        moved = payload * COLLECTIVES[kind](group_size(instruction))
        total.add(Costs(link_bytes={kind: moved}, collectives={kind: 1.0}), 1)


# ---- arithmetic


def products(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a matrix product or convolution, or as a kernel says of itself; 0 of all else, which is not what limits."""
    if instruction.opcode == "dot":
        lhs = computation.operands(instruction)[0].arrays[0].shape
        contracted = [
            int(axis) for axis in instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}").split(",") if axis
        ]
        return 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(lhs[axis] for axis in contracted)
    if instruction.opcode == "convolution":
        return convolution_flops(computation, instruction)
    if instruction.opcode == "custom-call":
        return custom_flops(computation, instruction)
    return 0.0


def convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """Two for each pair of a kernel's entry and an input's that is there: not of padding, nor between dilated ones.

    A TPU's compiler writes products of batches as convolutions that are dilated, which counted naively would be many times as
    much.
    """
    lhs, rhs = (operand.arrays[0].shape for operand in computation.operands(instruction))
    out = instruction.arrays[0].shape
    labels = re.split(r"_|->", instruction.attribute(r"dim_labels=([\w?>\-]+)"))
    window = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute(r"window=\{([^}]*)\}")))
    pairs = 1
    for axis in range(len(out) - 2):
        field = lambda name, default: window[name].split("x")[axis] if name in window else default  # noqa: B023, E731
        pairs *= window_pairs(
            size=lhs[labels[0].index(str(axis))], kernel=rhs[labels[1].index(str(axis))], out=out[labels[2].index(str(axis))],
            stride=int(field("stride", "1")), low=int(field("pad", "0_0").split("_")[0]),
            spread=int(field("lhs_dilate", "1")), dilation=int(field("rhs_dilate", "1")),
        )  # fmt: skip
    batch, features = out[labels[2].index("b")], out[labels[2].index("f")]
    batch //= int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    return 2.0 * pairs * batch * features * rhs[labels[1].index("i")]


def window_pairs(*, size: int, kernel: int, out: int, stride: int, low: int, spread: int, dilation: int) -> int:
    """Pairs of an output's and a kernel's position, of one axis, under which there is an input."""
    pairs = 0
    for tap in range(kernel):
        first = tap * dilation - low  # the place, among inputs spread apart, that output 0 sees through this tap
        last = (size - 1) * spread
        if spread == 1 or stride % spread == 0:
            if first % spread:
                continue
            begin, end = max(0, -(first // stride)), min(out - 1, (last - first) // stride)
            pairs += max(0, end - begin + 1)
        else:
            pairs += sum(0 <= (at := first + place * stride) <= last and at % spread == 0 for place in range(out))
    return pairs


def custom_flops(computation: Computation, instruction: Instruction) -> float:
    """What a kernel of Pallas says of itself, and products that a GPU's library does."""
    if said := instruction.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)'):
        return float(said)
    if contracted := instruction.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]'):
        lhs = computation.operands(instruction)[0].arrays[0].shape
        axes = [int(axis) for axis in re.findall(r"\d+", contracted)]
        return 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(lhs[axis] for axis in axes)
    return 0.0


def arithmetic(computation: Computation, instruction: Instruction) -> str:
    """The name in `Chip.rates` of what a product is done in."""
    types = {array.dtype for operand in computation.operands(instruction)[:2] for array in operand.arrays}
    if "f32" not in types:
        return "bfloat16"
    precision = instruction.attribute(r"operand_precision=\{(\w+)")
    return precision if precision in ("high", "highest") else "float32"


# ---- memory


def traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes of the device's memory that an instruction reads and writes; each array once, slices as much as they touch."""
    opcode, operands = instruction.opcode, computation.operands(instruction)
    if (
        opcode in FREE
        or opcode.endswith("-done")
        or instruction.attribute(r'custom_call_target="(\w+)').startswith(FREE_CALLS)
    ):
        return 0.0
    if opcode in ("copy-start", "slice-start"):
        ends = instruction.arrays[:2]
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
    if opcode == "dynamic-update-slice":
        return 2 * in_memory(operands[1]) if written else in_memory(operands[1])
    if opcode.removesuffix("-start") in COLLECTIVES and opcode.endswith("-start"):
        own = math.fsum(in_memory(operand) for operand in operands)  # the type names operands and results
        return max(written, own) if opcode != "all-reduce-start" else written + own
    return written + math.fsum(
        in_memory(operand) for operand in {operand.name: operand for operand in operands}.values()
    )


def in_memory(instruction: Instruction) -> float:
    """Bytes of its result that lie in the device's memory."""
    return math.fsum(array.bytes for array in instruction.arrays if array.space == 0)


def fused_read(module: Module, inner: Computation, parameter: Instruction) -> float:
    """Bytes that a fusion reads of a parameter: slices of it, nothing where it is only written into, or all."""
    read = 0.0
    for place, name in seen_through(inner, parameter.name):
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
        if result.opcode == "dynamic-update-slice":
            sizes.append(inner.operands(result)[1].bytes)
        elif result.opcode == "fusion":
            sizes.append(fused_writes(module, module.computations[result.called()[0]])[number])
        else:
            sizes += [math.inf] * results
    return sizes


# ---- links


def group_size(instruction: Instruction) -> int:
    """How many devices take part in a collective together."""
    if listed := instruction.attribute(r"replica_groups=\{\{([\d,]+)\}"):
        return listed.count(",") + 1
    if shape := instruction.attribute(r"replica_groups=\[([\d,]+)\]<="):
        return int(shape.split(",")[-1])
    if mesh := instruction.attribute(r"replica_groups=mesh\[([^\]]*)\]"):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
        named = instruction.attribute(r"replica_groups=mesh\[[^\]]*\][^{]*\{([^}]*)\}")
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named))
    return 1
