"""What accelerators can do at most, by the kind of device that jax names: what utilisation is a share of.

TPUs: the tables of https://cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e, tpu7x; interconnect as the sum of a chip's links
in one direction, half of what newer pages call bidirectional; of v6e's memory 1640 and 1638 GB/s are told). GPUs: NVIDIA's H100
(SXM) and H200 data sheets, dense, without sparsity; memory as the driver gives it.
"""

import dataclasses
import math
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip, which jax may show as several devices.

    Attributes:
      name: for people.
      rates: multiply-adds counted as two, a second, by arithmetic: "bfloat16"; "float32" as jax multiplies it by default (on a
        TPU in one pass of bfloat16, on a GPU as TensorFloat-32); "high" and "highest", what those precisions ask for.
      hbm_bytes: memory.
      hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second, at most, that a chip receives in collectives, counted as `training.costs.COLLECTIVES`
        does; inf where that is not known.
      devices: that jax shows a chip as.
    """

    name: str
    rates: Mapping[str, float]
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    devices: int = 1


def tpu(name: str, peak: float, gib: int, hbm: float, links: float, devices: int = 1) -> Chip:
    """A TPU; float32 of higher precision takes three or six passes of bfloat16."""
    rates = {"bfloat16": peak, "float32": peak, "high": peak / 3, "highest": peak / 6}
    return Chip(name, rates, float(gib * GIB), hbm, links, devices)


def gpu(name: str, hbm_bytes: float, hbm: float) -> Chip:
    """A Hopper GPU with NVLink 4; true float32 has no tensor cores."""
    rates = {"bfloat16": 989e12, "float32": 494e12, "high": 67e12, "highest": 67e12}
    # 450e9 in one direction; its switches add what passes, so that an all-reduce may receive half of what a ring's does.
    return Chip(name, rates, hbm_bytes, hbm, 2 * 450e9)


CHIPS = {  # by `jax.Device.device_kind`
    "TPU v4": tpu("TPU v4", 275e12, 32, 1200e9, 300e9),  # two cores that jax shows as one device
    "TPU v5 lite": tpu("TPU v5e", 197e12, 16, 819e9, 200e9),
    "TPU v5": tpu("TPU v5p", 459e12, 95, 2765e9, 600e9),
    "TPU v6 lite": tpu("TPU v6e", 918e12, 32, 1640e9, 400e9),
    # Two devices of a chip share its links and have a faster path between them: what each receives bounds nothing.
    "TPU7x": tpu("TPU7x", 2307e12, 192, 7380e9, math.inf, devices=2),
    "NVIDIA H100 80GB HBM3": gpu("H100", 85_520_809_984.0, 3350e9),
    "NVIDIA H200": gpu("H200", 151_397_597_184.0, 4800e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a device is of, or is part of; None for what is not in the table, such as a CPU."""
    return CHIPS.get(
        {"TPU v5p": "TPU v5", "TPU v5e": "TPU v5 lite", "TPU v6e": "TPU v6 lite"}.get(device_kind, device_kind)
    )
