"""What the benchmarks of speed share: programs timed in turns, another one beside them, and what this machine can do."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp

from training import goodput

STREAM = 2**27  # floats that are summed to measure bandwidth
SQUARE = 2048  # side of the matrices that measure the matrix rate
REPEATS = 8  # of which the best counts


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def beside(command: str) -> Iterator[Callable[[], float]]:
    """Runs another program; a call has it do its work once, and returns the seconds that it says it took.

    The program reads a line for every time, and answers each with a line that holds the seconds and nothing else. It gets the
    malloc that it has anywhere else, not ours. At the end its standard input is closed, and it is waited for.

    Raises:
      RuntimeError: on a call, it has ended.
    """
    own = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    other = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own)

    def once() -> float:
        assert other.stdin is not None
        assert other.stdout is not None
        with suppress(BrokenPipeError):
            print("once", file=other.stdin, flush=True)
        said = other.stdout.readline()
        if not said:
            raise RuntimeError(f"{command!r} has ended, with exit code {other.wait()}")
        return float(said)

    try:
        yield once
    finally:
        other.communicate()  # closes what it reads, and waits


def in_turns(timed: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each measured in every round, one after the other; a first round, of warm-up, does not count."""
    found = [{name: measure() for name, measure in timed.items()} for _ in range(rounds + 1)]
    return {name: [measured[name] for measured in found[1:]] for name in timed}


def read_rate() -> float:
    """Bytes/s that can be read; the best of several."""
    stream, add = jnp.ones(STREAM), jax.jit(jnp.sum)
    return 4 * STREAM / min(seconds(lambda: add(stream).block_until_ready()) for _ in range(REPEATS))


def matrix_rate() -> float:
    """Operations/s of a float32 matrix product; the best of several."""
    return goodput.matrix_rate(SQUARE)
