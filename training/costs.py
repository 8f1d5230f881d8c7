"""What a compiled program costs a chip: arithmetic, memory traffic, and what goes over the links.

Read from the compiler's own output, with bodies of loops counted as often as they run (its `cost_analysis` counts them once).
"""

import dataclasses
import math

from training.chips import Chip
from training.hlo import Computation, Instruction, Module, parse, trip_count
from training.links import link_bytes
from training.products import arithmetic, products
from training.traffic import traffic


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
        elif opcode in ("call", "call-start", "async-start") and called:
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
    if found := link_bytes(module, computation, instruction):
        kind, moved = found
        total.add(Costs(link_bytes={kind: moved}, collectives={kind: 1.0}), 1)
