"""What to change where a training step does not fit: the smallest of ever greater changes that the compiler accepts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from models.transformer import REMATERIALISATION

Overrides = dict[str, Any]  # config field -> value
NOTHING = "nothing that can be changed here makes it fit; take more chips, or larger ones"


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


def candidates(
    config: ConfigDict, stage: str, mesh: Mapping[str, int], held: Callable[[Overrides], float]
) -> list[Overrides]:
    """Ever greater changes: what is kept for the backward pass, over how many devices parameters are split, how many images.

    Only what changes something is offered: a tokenizer rematerialises nothing. More devices than a model's widths can be
    divided by would split nothing, and hold more.

    Args:
      config: that does not fit.
      stage: whose training it is.
      mesh: its axes' sizes on the devices.
      held: bytes a chip that a change's arguments alone take.
    """
    section, rows, fsdp = config.training[stage], mesh["data"] * mesh["fsdp"], mesh["fsdp"]
    least = rows * section.accumulate
    batch = max(section.batch_size // least, 1) * least  # the nearest that divides and takes no more memory
    policies, now = (list(REMATERIALISATION), config.generator.remat) if stage == "generator" else ([""], "")
    policies = policies[policies.index(now) :]
    by_width = {
        size: held(change(config, stage, mesh, policies[-1], size, batch))
        for size in sorted({fsdp, fsdp * 4, fsdp * 16, fsdp * 64, rows})
        if size <= rows and rows % size == 0
    }
    widths = [size for size, most in by_width.items() if most <= min(by_width[w] for w in by_width if w <= size)]
    batches = [images for n in range(16) if (images := batch >> n) >= least and images % least == 0]
    steps = [(policy, fsdp, batch) for policy in policies]
    steps += [(policies[-1], width, batch) for width in widths[1:]]
    steps += [(policies[-1], widths[-1], images) for images in batches[1:]]
    return [made for step in steps if (made := change(config, stage, mesh, *step))]


def change(config: ConfigDict, stage: str, mesh: Mapping[str, int], policy: str, fsdp: int, images: int) -> Overrides:
    """What to override for this policy, this many devices that parameters are split over, and this many images."""
    made: Overrides = {"generator.remat": policy} if policy and policy != config.generator.remat else {}
    if fsdp != mesh["fsdp"]:
        made |= {"mesh.data": mesh["data"] * mesh["fsdp"] // fsdp, "mesh.fsdp": fsdp}
    if images != config.training[stage].batch_size:
        made[f"training.{stage}.batch_size"] = images
    return made


def search(
    offered: Sequence[Overrides], held: Callable[[Overrides], float], compiled: Callable[[Overrides], Mapping[str, Any]],
    usable: float,
) -> Plan:  # fmt: skip
    """The smallest change that fits: the greatest is tried first, and where it fits, the rest is halved until one is left.

    Args:
      offered: changes, the smallest first, each of which takes less memory than those before it.
      held: bytes a chip that a change's arguments alone take; what is too much already is not compiled.
      compiled: the record of a change's program.
      usable: bytes a chip.
    """
    plan, attempts, left = Plan(None, None, 0, NOTHING), 0, list(offered)
    tried = len(left) - 1
    while left:
        fits = held(left[tried]) <= usable
        if fits:
            attempts, record = attempts + 1, compiled(left[tried])
            fits = record["fits"]
        if fits:
            plan, left = Plan(left[tried], record, attempts), left[:tried]
        else:
            left = left[tried + 1 :]  # none, of the greatest
        tried = len(left) // 2
    return dataclasses.replace(plan, attempts=attempts)
