"""Compile a config's programs for hardware that nobody has to own: do they fit, what do they cost, how fast can they be?"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jobs.compilation import Record, compile_program, tree_bytes, usable_bytes
from jobs.conditions import need_classes
from jobs.plans import Plan, candidates, search
from jobs.programs import LEARNERS, programs, training
from jobs.topologies import Topology, examples, open_topology
from jobs.train import STAGES
from models import sharding
from models.errors import UserError, unknown
from training.chips import GIB

TOP = (
    "fits",
    "chips",
    "bytes_per_chip",
    "hbm_bytes",
    "flops_per_step",
    "step_seconds_bound",
    "mfu_bound",
    "compile_seconds",
)


def run(config: ConfigDict, workdir: Path, *, topology: str, as_json: bool) -> None:
    """A table of every program, and a plan for the training of the last stage; with `as_json` one JSON object in the last line.

    Nothing is allocated, and neither dataset nor checkpoint is read.

    Raises:
      UserError: there is no such topology, or nothing to compile for it.
    """
    if not topology:
        raise UserError(f"--job=compile needs --topology=NAME, such as {', '.join(examples())}.")
    stages = stages_of(config)
    chips = open_topology(topology)
    # No program is read back from a cache for chips that are not there.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = sharding.make_mesh(config.mesh.to_dict(), chips.devices)
    sharding.reader_of(mesh)
    for stage in stages:  # a mistake is told before the minutes that a compiler takes
        LEARNERS[stage](config)
    print(f"{config.experiment} on {topology}: {chips.chips} chips of {chips.chip.name}", flush=True)
    for stage in config.stages:
        if stage not in stages:
            print(f"the stage {stage!r} is not compiled: it begins with a trained generator")
    usable, records = usable_bytes(chips), []
    for name, build in programs(config, stages, chips):
        try:
            program = build()
        except UserError as error:  # of its batch or sampler; the others may yet be compiled
            record = {"program": name, "fits": False, "chips": chips.chips, "reason": str(error)}
        else:
            record = compile_program(program, chips, usable)
        records.append(record)
        print(f"\n{described(record)}", flush=True)
    main = next(record for record in records if record["program"] == f"train {stages[-1]}")
    plan = make_plan(config, stages[-1], chips, main, mesh, usable)
    print(f"\nplan for train {stages[-1]}: {in_words(plan)}", flush=True)
    if as_json:
        chosen = {name: main.get(name) for name in TOP}
        print(json.dumps({"topology": topology, "experiment": config.experiment, **chosen, "programs": records,
                          "plan": {"overrides": plan.overrides, "attempts": plan.attempts, "why": plan.why,
                                   "record": plan.record if plan.overrides else None}}))  # fmt: skip
        sys.stdout.flush()


def stages_of(config: ConfigDict) -> list[str]:
    """The config's stages that can be compiled.

    Raises:
      UserError: there are none, or what they are of is not known.
    """
    for stage in config.stages:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    stages = [stage for stage in config.stages if stage in LEARNERS]
    if not stages:
        raise UserError(f"stages={tuple(config.stages)} leave nothing to compile; take some of {', '.join(LEARNERS)}.")
    if "generator" in stages:
        need_classes(config, "compile")
        if not config.data.classes:
            raise UserError(
                "how many classes there are is not known without the dataset; give --config.data.classes=N."
            )
    return stages


# ---- the plan


def make_plan(
    config: ConfigDict, stage: str, chips: Topology, main: Mapping[str, Any], mesh: Mesh, usable: float
) -> Plan:
    """What to change so that a stage's training fits: nothing where it does."""
    if main["fits"]:
        return Plan({}, main, 0)

    def changed(overrides: dict[str, Any]) -> ConfigDict:
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(overrides)
        return other

    def held(overrides: dict[str, Any]) -> float:
        program = training(changed(overrides), stage, chips.devices)
        return tree_bytes(program.arguments) * chips.chip.devices

    def compiled(overrides: dict[str, Any]) -> Record:
        print(f"trying {typed(overrides)}", flush=True)
        return compile_program(training(changed(overrides), stage, chips.devices), chips, usable)

    return search(candidates(config, stage, mesh.shape, held), held, compiled, usable)


def in_words(plan: Plan) -> str:
    """A plan as a sentence, with what to type."""
    if plan.overrides is None:
        return f"{plan.why}."
    if not plan.overrides:
        return "it fits as it is."
    assert plan.record is not None
    return f"{typed(plan.overrides)} fits with {free(plan.record)}\n{described(plan.record)}"


def typed(overrides: Mapping[str, Any]) -> str:
    """As options of the command line."""
    return " ".join(f"--config.{field}={value}" for field, value in overrides.items())


# ---- the table


def described(record: Mapping[str, Any]) -> str:
    """A program's rows."""
    rows = [("", verdict(record))]
    if "memory" in record:
        kinds = sorted(record["memory"].items(), key=lambda item: -item[1])
        rows.append(("memory per chip", ", ".join(f"{kind} {amount(size)}" for kind, size in kinds if size)))
    if "seconds" in record:
        images, step = record["images"], record["step_seconds_bound"]
        moved = record["links_per_chip"]
        links = [f"{kind} {record['collectives'][kind]:.0f} x, {amount(moved[kind])}" for kind in moved]
        rows += [
            ("FLOPs per step", f"{record['flops_per_step']:.4g}, of them {record['recomputed_flops_per_step']:.3g} recomputed; "
                               f"the model's own {record['model_flops_per_step']:.4g}"),
            ("memory traffic", f"{amount(record['traffic_per_chip'])} per chip and step"),
            ("over the links", "; ".join(links) or "nothing"),
            ("busy at least", ", ".join(f"{name} {1e3 * value:.4g} ms" for name, value in record["seconds"].items())),
            ("step at least", f"{1e3 * step:.4g} ms (limited by {record['limited_by']}), so at most "
                              f"{record['images_per_second_bound']:.4g} images/s of {images} a step"),
            ("utilisation", f"model FLOPs: at most {record['mfu_bound']:.1%}"),
        ]  # fmt: skip
        if record["unknown_loops"]:
            rows.append(("loops", f"{record['unknown_loops']} end when all is drawn; counted as if every draft stood"))
    if "compile_seconds" in record:
        rows.append(("compiled in", f"{record['compile_seconds']:.1f} s"))
    return "\n".join([record["program"], *(f"  {name:<16} {text}" for name, text in rows)])


def verdict(record: Mapping[str, Any]) -> str:
    """Whether it fits, and by how much."""
    if "reason" in record:
        return f"cannot run so: {record['reason']}"
    word = "fits" if record["fits"] else "DOES NOT FIT"
    return f"{word}: {amount(record['bytes_per_chip'])} of {amount(record['hbm_bytes'])} per chip, {free(record)}"


def free(record: Mapping[str, Any]) -> str:
    """How much is left, or lacking."""
    left = record["hbm_bytes"] - record["bytes_per_chip"]
    return f"{amount(left)} to spare" if left >= 0 else f"{amount(-left)} too much"


def amount(size: int | float) -> str:
    """Bytes for people."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} B"
