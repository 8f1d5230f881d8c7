"""What to change where a training step does not fit: the first of ever greater changes that the compiler accepts."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from models.transformer import REMATERIALISATION

ATTEMPTS = 6  # programs that are compiled in search of a plan, at most
Overrides = dict[str, Any]  # config field -> value


@dataclasses.dataclass(frozen=True)
class Plan:
    """The outcome of a search.

    Attributes:
      overrides: of the config, to type; empty where it fits as it is; None where none was found.
      record: of the program that fits.
      attempts: programs that were compiled for it.
      why: what stopped a search that found none.
    """

    overrides: Overrides | None
    record: Mapping[str, Any] | None
    attempts: int
    why: str = ""


def candidates(config: ConfigDict, stage: str, devices: int) -> Iterator[Overrides]:
    """Ever greater changes: what is kept for the backward pass, over how many devices parameters are split, how many images.

    Only what changes something is offered: a tokenizer rematerialises nothing.
    """
    section = config.training[stage]
    others = math.prod(size for axis, size in config.mesh.items() if axis not in ("data", "fsdp"))
    rows = devices // others  # over which a batch is split
    least = rows * section.accumulate
    batch = max(-(-section.batch_size // least), 1) * least  # the next that divides
    fsdp = config.mesh.fsdp if config.mesh.fsdp > 0 else rows // max(config.mesh.data, 1)
    fixed = {f"training.{stage}.batch_size": batch} if batch != section.batch_size else {}
    order = list(REMATERIALISATION) if stage == "generator" else [""]
    policies = order[order.index(config.generator.remat) :] if stage == "generator" else order

    def change(policy: str, split: int, images: int) -> Overrides:
        made = dict(fixed)
        if policy and policy != config.generator.remat:
            made["generator.remat"] = policy
        if split != fsdp:
            made |= {"mesh.data": rows // split, "mesh.fsdp": split}
        if images != batch:
            made[f"training.{stage}.batch_size"] = images
        return made

    wider = [size for size in (fsdp * 4, fsdp * 16, fsdp * 64) if size < rows and rows % size == 0] + [rows] * (
        fsdp < rows
    )
    smaller = [images for n in range(1, 16) if (images := batch >> n) >= least and images % least == 0]
    steps = [(policy, fsdp, batch) for policy in policies] + [(policies[-1], size, batch) for size in wider]
    steps += [(policies[-1], (wider or [fsdp])[-1], images) for images in smaller]
    seen: list[Overrides] = [{}]
    for step in steps:
        if (made := change(*step)) not in seen:
            seen.append(made)
            yield made


def search(
    offered: Iterator[Overrides], held: Callable[[Overrides], float], compiled: Callable[[Overrides], Mapping[str, Any]],
    usable: float,
) -> Plan:  # fmt: skip
    """The first change that fits.

    Args:
      offered: changes, the smallest first.
      held: bytes a chip that a change's arguments alone take; what is too much already is not compiled.
      compiled: the record of a change's program.
      usable: bytes a chip.
    """
    attempts = 0
    for overrides in offered:
        if held(overrides) > usable:
            continue
        if attempts == ATTEMPTS:
            return Plan(
                None, None, attempts, f"the search ended after {ATTEMPTS} programs; there are smaller batches to try"
            )
        attempts += 1
        record = compiled(overrides)
        if record["fits"]:
            return Plan(overrides, record, attempts)
    return Plan(None, None, attempts, "nothing that can be changed here makes it fit; take more chips, or larger ones")
