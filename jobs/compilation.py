"""A program compiled for chips that are not there: does it fit, what does it cost, how fast can it be at best?"""

import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from jobs.programs import Program
from jobs.topologies import Topology
from models.errors import UserError
from training.chips import GIB
from training.costs import Costs, costs_of
from training.model_flops import model_flops

# Without a GPU there is nothing to time the tiles of Triton's products on, and of some shapes its compiler finds none.
OPTIONS: dict[str, dict[str, Any]] = {"tpu": {}, "cuda": {"xla_gpu_enable_triton_gemm": False}}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
Record = dict[str, Any]


def compile_program(program: Program, topology: Topology, usable: float) -> Record:
    """Compile, and read what the compiler says; nothing runs.

    Args:
      program: what is compiled.
      topology: for which chips.
      usable: bytes a chip, from `usable_bytes`.

    Returns:
      {"program", "fits", "chips", "images", "model_flops_per_step", "bytes_per_chip", "hbm_bytes", "memory",
      "compile_seconds"}, memory being bytes a chip by kind; and of what fits {"flops_per_step", "recomputed_flops_per_step",
      "traffic_per_chip", "links_per_chip", "collectives", "seconds", "step_seconds_bound", "limited_by", "mfu_bound",
      "images_per_second_bound", "unknown_loops"}. Chips, images and FLOPs are those of all hosts.
    """
    began = time.monotonic()
    with jax.set_mesh(program.mesh):
        traced = program.function.trace(*program.arguments)
        lowered = traced.lower(lowering_platforms=(topology.platform,))
    held = {kind: tree_bytes(tree) * topology.chip.devices for kind, tree in program.kinds.items()}
    model = program.hosts * model_flops(traced.jaxpr, loops=program.calls)
    record: Record = {
        "program": program.name, "chips": topology.chips, "images": program.hosts * program.images,
        "model_flops_per_step": model,
    }  # fmt: skip
    try:
        compiled = lowered.compile(compiler_options=OPTIONS[topology.platform])
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        used, usable = (amount * topology.chip.devices for amount in needed)
        return record | {
            "fits": False, "bytes_per_chip": used, "hbm_bytes": usable, "memory": held,
            "compile_seconds": time.monotonic() - began,
        }  # fmt: skip
    record["compile_seconds"] = time.monotonic() - began
    kinds = memory(compiled.memory_analysis(), held, topology.chip.devices)
    used = math.fsum(kinds.values())
    fits = topology.platform == "tpu" or used <= usable  # a GPU's compiler refuses nothing
    record |= {"fits": fits, "bytes_per_chip": used, "hbm_bytes": usable, "memory": kinds}
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"jax {jax.__version__} cannot read what this compiler writes; install the one that belongs to it: pip install "
            f"'jax[tpu]=={jax.__version__}'."
        ) from error
    costs = costs_of(text, loops=program.calls)
    return record | bounds(costs, model, program, topology)


def memory(analysis: Any, held: dict[str, float], devices: int) -> dict[str, float]:
    """Bytes a chip by kind, of these arguments; the compiler's own peak also counts a TPU's vector memory, and is not used."""
    arguments, new = analysis.argument_size_in_bytes, analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return held | {
        "padding": devices * arguments - math.fsum(held.values()), "temporaries": devices * analysis.temp_size_in_bytes,
        "new results": devices * new, "program": devices * analysis.generated_code_size_in_bytes,
    }  # fmt: skip


def bounds(costs: Costs, model: float, program: Program, topology: Topology) -> Record:
    """What the chips do, and the roofline: no step can be faster than its busiest resource at peak rate."""
    chip, devices = topology.chip, topology.chip.devices
    images, everywhere, peak = (
        program.hosts * program.images,
        len(topology.devices),
        topology.chips * chip.rates[program.dtype],
    )
    seconds = costs.seconds(chip)
    # Products of single rows may become sums, of which the program's text does not say what they are.
    seconds["compute"] = max(seconds["compute"], model / peak)
    limit = max(seconds, key=lambda name: seconds[name])
    bound = seconds[limit]
    return {
        "flops_per_step": math.fsum(costs.flops.values()) * everywhere,
        "recomputed_flops_per_step": costs.recomputed_flops * everywhere,
        "traffic_per_chip": costs.hbm_bytes * devices,
        "links_per_chip": {kind: amount * devices for kind, amount in costs.link_bytes.items()},
        "collectives": dict(costs.collectives),
        "unknown_loops": costs.unknown_loops,
        "seconds": seconds,
        "step_seconds_bound": bound,
        "limited_by": limit,
        "mfu_bound": model / (peak * bound) if bound else 0.0,
        "images_per_second_bound": images / bound if bound else 0.0,
    }


def tree_bytes(tree: Any) -> float:
    """Bytes that one device holds of a tree of shapes with shardings, without padding."""
    leaves = jax.tree.leaves(tree)
    return math.fsum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def out_of_memory(message: str) -> tuple[float, float] | None:
    """Bytes that a device needs and has, from the compiler's refusal; None where it refuses for another reason."""
    amount = r"([\d.]+)([KMGT]?)i?B?"
    for pattern in (rf"\({amount}\) exceeds available HBM \({amount}\)", rf"Used {amount} of {amount} hbm"):
        if "RESOURCE_EXHAUSTED" in message and (found := re.search(pattern, message)):
            return float(found[1]) * UNITS[found[2]], float(found[3]) * UNITS[found[4]]
    return None


def usable_bytes(topology: Topology) -> float:
    """A chip's memory that programs may use: a TPU's compiler says it where it refuses one that is too big."""
    if topology.platform != "tpu":  # where jax takes a share when it starts
        return topology.chip.hbm_bytes * float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    size = int(topology.chip.hbm_bytes / topology.chip.devices) // GIB + 1
    huge = jax.ShapeDtypeStruct((size, GIB // 4), jnp.float32, sharding=place)
    try:
        jax.jit(lambda x: x + 1).trace(huge).lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        if needed := out_of_memory(str(error)):
            return needed[1] * topology.chip.devices
    return topology.chip.hbm_bytes
