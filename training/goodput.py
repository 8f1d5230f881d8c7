"""Where the time of a training goes, and how fast its steps are."""

import functools
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from training.chips import chip_of

KINDS = ("step", "compile", "data", "evaluation", "save")
SQUARE = 1024  # side of the matrices that measure what a CPU can do
REPEATS = 8  # of which the best counts


class Goodput:
    """Wall-clock seconds of a training by kind, as its loop waits for them: for steps, for the compiler, for data, ...

    "compile" is of the step; an evaluation's program is compiled in its own time. Steps run while the host fetches the next
    batch, so that "data" is no more than what the devices may have waited.

    Args:
      images: of a step.
      tokens: of an image that the loss is of; 0 where there are none.
      flops: of the model in a step, over all devices; 0 where nobody counted.
      peak: FLOP/s of all devices together.
    """

    def __init__(self, *, images: int, tokens: int = 0, flops: float = 0.0, peak: float = 0.0):
        self.images, self.tokens, self.flops, self.peak = images, tokens, flops, peak
        self.began = time.monotonic()
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.steps = 0
        self.told = (0, 0.0, 0.0)  # steps, their seconds, those of data, when they were last told

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """What happens inside counts as of this kind."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] += time.monotonic() - start

    def speed(self) -> dict[str, float]:
        """Of the steps since the last call, without compilation, evaluations and saves; {} where there are none.

        speed/images and speed/tokens a second, speed/utilisation of the devices' peak by the model's FLOPs, speed/data_wait, a
        share of the steps' time, and speed/memory_gib, the most that a device of this process (or, on a CPU, it) has held.
        """
        now = (self.steps, self.seconds["step"], self.seconds["data"])
        steps, busy, waited = (new - old for new, old in zip(now, self.told, strict=True))
        self.told = now
        if not steps or busy <= 0:
            return {}
        rate = steps / (busy + waited)
        found = {"images": rate * self.images, "data_wait": waited / (busy + waited), "memory_gib": memory() / 2**30}
        if self.tokens:
            found["tokens"] = found["images"] * self.tokens
        if self.flops and self.peak:
            found["utilisation"] = rate * self.flops / self.peak
        return {f"speed/{name}": value for name, value in found.items()}

    def shares(self) -> dict[str, float]:
        """Each kind's share of the wall clock so far, as goodput/...; goodput/step is the goodput."""
        wall = time.monotonic() - self.began
        return {f"goodput/{kind}": self.seconds[kind] / wall for kind in KINDS} | {"goodput/seconds": wall}

    def __str__(self) -> str:
        shares = self.shares()
        wall = shares.pop("goodput/seconds")
        lost = ", ".join(f"{kind} {100 * shares[f'goodput/{kind}']:.0f} %" for kind in KINDS[1:])
        other = max(1 - sum(shares.values()), 0)
        return (
            f"goodput {100 * shares['goodput/step']:.0f} % of {wall:.0f} s in steps; {lost}, other {100 * other:.0f} %"
        )


def memory() -> int:
    """The most bytes that a device of this process has held; on a CPU, that the process has."""
    held = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return max(held) or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@functools.cache
def peak(mesh: Mesh) -> float:
    """FLOP/s of all devices of a mesh together: bfloat16 by the chips' table, on CPUs float32 as measured; 0 if unknown."""
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    if chip is not None:
        return mesh.size * chip.rates["bfloat16"] / chip.devices
    # However many devices a CPU is said to be, they are one processor's; a process is taken to have its machine for itself.
    return matrix_rate() * jax.process_count() if device.platform == "cpu" else 0.0


def matrix_rate(side: int = SQUARE) -> float:
    """FLOP/s of a float32 matrix product on this process's first device, measured: the best of several."""
    square, product = jnp.ones((side, side)), jax.jit(jnp.matmul)
    product(square, square).block_until_ready()

    def seconds() -> float:
        start = time.perf_counter()
        product(square, square).block_until_ready()
        return time.perf_counter() - start

    return 2 * side**3 / min(seconds() for _ in range(REPEATS))
