"""Weights that a rule makes, so that reference outputs of large models need no large files.

Element i of a tensor is mean + amp s, s in [-1, 1) being the upper 24 bits of splitmix64's i-th number (Steele et al., OOPSLA
2014), which starts at the FNV-1a hash of the tensor's name.
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt64

from interop.state_dicts import State
from models.errors import UserError

BLOCK = 1 << 18  # elements at a time, so that the numbers behind them stay in the processor's cache
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
STEPS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
HALF = 1 << 23  # of the 24 bits


def rule_state(seed_name: str, tensors: Iterable[Mapping[str, Any]]) -> tuple[State, str]:
    """The tensors of a rule and the sha256 of their bytes, little-endian and in the order of the list.

    Args:
      seed_name: of the model, in the name that is hashed.
      tensors: key, shape, mean and amp of each; those without mean and amp are what a constructor fills, and are left out.

    Raises:
      UserError: an entry lacks something.
    """
    state: State = {}
    digest = hashlib.sha256()
    for entry in tensors:
        try:
            if "mean" in entry or "amp" in entry:
                key, shape = str(entry["key"]), tuple(map(int, entry["shape"]))
                state[key] = filled(f"{seed_name}/{key}", shape, float(entry["mean"]), float(entry["amp"]))
                little = state[key] if sys.byteorder == "little" else state[key].byteswap()
                digest.update(little.data)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"the rule of {seed_name} lacks key, shape, mean or amp in {entry}.") from None
    return state, digest.hexdigest()


def filled(name: str, shape: tuple[int, ...], mean: float, amp: float) -> Float32[np.ndarray, "..."]:
    """A tensor of the rule, computed in float64 and rounded once."""
    flat = np.empty(int(np.prod(shape)), np.float32)
    start = fnv1a(name)
    for begin in range(0, flat.size, BLOCK):
        numbers = splitmix64(start, begin, min(begin + BLOCK, flat.size))
        flat[begin : begin + BLOCK] = mean + amp * (((numbers >> np.uint64(40)).astype(np.float64) - HALF) / HALF)
    return flat.reshape(shape)


def fnv1a(text: str) -> int:
    """The 64-bit FNV-1a hash of a text's UTF-8 bytes."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def splitmix64(start: int, begin: int, end: int) -> UInt64[np.ndarray, "n"]:
    """Its numbers from `begin` to before `end`, the first being number 0."""
    z = np.arange(begin + 1, end + 1, dtype=np.uint64) * GOLDEN + np.uint64(start)  # modulo 2^64, as all below
    for shift, factor in STEPS:
        z = (z ^ (z >> shift)) * factor
    return z ^ (z >> np.uint64(31))
