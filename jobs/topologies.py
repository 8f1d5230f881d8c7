"""Devices that are not there: what a compiler must know of them to compile for them."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from models.errors import UserError
from training.chips import CHIPS, Chip

# family: (kind of device, an example, most chips that are linked, options of the compiler)
TPUS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "v4": ("TPU v4", "v4:2x2x1", 4096, {"chip_config_name": "megacore"}),  # one device a chip, as on the machines
    "v5e": ("TPU v5 lite", "v5e:16x16", 256, {}),
    "v5p": ("TPU v5", "v5p:8x8x8", 8960, {}),
    "v6e": ("TPU v6 lite", "v6e:16x16", 256, {}),
    "tpu7x": ("TPU7x", "tpu7x:4x4x4", 9216, {}),
}
GPUS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
GPUS_OF_A_HOST = 8  # more are not linked by NVLink
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no machine to ask what it is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # what it asks next; the topology's name decides what is compiled for
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
# Of Hopper, for the compiler of CUDA (xla/stream_executor/device_description.proto).
GPU_TARGET = """
gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 clock_rate_ghz: 1.98
device_memory_size: {memory} shared_memory_per_block_optin: 232448
cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }} registers_per_core_limit: 65536
registers_per_block_limit: 65536 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.12.0" }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 patch: 0 }} device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that nobody has to own.

    Attributes:
      name: as --topology names it.
      chip: of which kind they are.
      devices: that jax sees; several may be one chip.
      platform: of the compiler, "tpu" or "cuda".
      backend: as `jax.default_backend` would call it there.
    """

    name: str
    chip: Chip
    devices: Sequence[jax.Device]
    platform: str
    backend: str

    @property
    def chips(self) -> int:
        """Their number."""
        return len(self.devices) // self.chip.devices

    def host(self) -> "Topology":
        """The chips of its first host alone: compiled for by themselves, as a part of a slice cannot be."""
        devices: Any = self.devices
        if len({device.process_index for device in devices}) == 1:
            return self
        coords = [device.coords for device in devices if device.process_index == devices[0].process_index]
        family, _, sizes = self.name.partition(":")
        shape = (np.ptp(coords, axis=0) + 1)[: sizes.count("x") + 1]
        return open_topology(f"{family}:{'x'.join(map(str, shape))}")


def open_topology(name: str) -> Topology:
    """The topology of this name: `v5e:16x16`, `h100x8`.

    Raises:
      UserError: there is none such, or its compiler is not installed.
    """
    found = re.fullmatch(r"(\w+?)(?::([1-9]\d*(?:x[1-9]\d*)*)|x([1-9]\d*))", name)
    family = found[1] if found else ""
    if found and family in TPUS and found[2]:
        return open_tpus(name, family, math.prod(map(int, found[2].split("x"))))
    if found and family in GPUS and found[3]:
        return open_gpus(name, family, int(found[3]))
    raise UserError(f"unknown topology {name!r}; there are {', '.join(examples())}, and other sizes of these.")


def examples() -> list[str]:
    """A name of every family."""
    return [example for _, example, *_ in TPUS.values()] + [f"{family}x8" for family in GPUS]


def too_many(name: str, count: int, most: int) -> UserError:
    """For chips that no links join."""
    return UserError(f"there is no topology {name!r}: {count} chips, and {most} at most are linked.")


def open_tpus(name: str, family: str, count: int) -> Topology:
    """By libtpu, which needs no TPU to compile."""
    kind, example, most, options = TPUS[family]
    if count > most:
        raise too_many(name, count, most)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"the compiler for TPUs is not installed; pip install 'jax[tpu]=={jax.__version__}'.")
    for variable, value in LIBTPU.items():
        os.environ.setdefault(variable, value)
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"there is no topology {name!r} ({reason}); take sizes as in {example}.") from None
    return Topology(name, CHIPS[kind], devices, "tpu", "tpu")


def open_gpus(name: str, family: str, count: int) -> Topology:
    """By the CUDA plugin of jax, which needs no GPU to compile but is told what one is like."""
    if count > GPUS_OF_A_HOST:
        raise too_many(name, count, GPUS_OF_A_HOST)
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError("the compiler for GPUs is not installed; pip install 'jax[cuda13]' (4.5 GB).")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which asks for a driver
    kind = GPUS[family]
    chip = CHIPS[kind]
    target = GPU_TARGET.format(bandwidth=chip.hbm_bandwidth, memory=int(chip.hbm_bytes), kind=kind)
    try:
        devices = topologies.get_topology_desc(
            name, "cuda", target_config=target, topology=f"1x1x{count}"
        ).devices  # slices x hosts x GPUs
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"the compiler for GPUs refuses {name!r} ({str(error).strip().splitlines()[0]}).") from None
    return Topology(name, chip, devices, "cuda", "gpu")
