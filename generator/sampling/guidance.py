"""Guidance schedules: the scale of classifier-free guidance (arXiv:2207.12598) at every time of a layout.

One convention, LlamaGen's: guided = unconditional + scale * (conditional - unconditional), so 1 is off. A scale `t` of VAR's
convention ((1 + t) c - t u) or `w` of MaskGIT's (c + w (c - u)) is 1 + t, 1 + w here; VAR's own schedule is "linear". Schedules
are indexed by what is predicted (a token of a raster, a scale), never by iteration: what is sampled then has one
distribution, whichever sampler draws it.

Progress is 0 at the first of N and 1 at the last, as VAR's and xAR's. RAR's is i / N, which does not reach 1; MAR's is the
share that is known after a step, which does not start at 0.

These need no schedule of their own:
  RAR's power-cosine (arXiv:2411.00776): "cosine" with its power, 2.75 (B), 2.5 (L), 1.5 (XL), 1.2 (XXL);
  ELM's square and square root (arXiv:2410.16257): "linear" with power 2 and 0.5;
  a step (ResTok, arXiv:2601.03955): "constant" within (0.25, 1); a rectangle: "constant" within any other interval.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from models.errors import UserError, unknown

Rows = TypeVar("Rows")  # a tree of arrays (B, ...)

# progress in [0, 1] over the times, to its power -> share of (scale - 1) that is applied
SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "linear": lambda progress: progress,
    "half_linear": lambda progress: np.minimum(1, 2 * progress),  # Token-Shuffle's, arXiv:2504.17789
    "cosine": lambda progress: (1 - np.cos(np.pi * progress)) / 2,
    "sine": lambda progress: np.sin(np.pi / 2 * progress),  # ELM's "cos"
    "log": lambda progress: np.log1p((np.e - 1) * progress),  # ELM's
    "triangular": lambda progress: 1 - np.abs(2 * progress - 1),
    "reversed_linear": lambda progress: 1 - progress,
    "reversed_cosine": lambda progress: (1 + np.cos(np.pi * progress)) / 2,
    "flipped_cosine": lambda progress: np.cos(np.pi * progress) / 2,  # MaskGen's: falls from 1/2 to -1/2
}


def guidance_scales(
    times: int, *, scale: float, schedule: str, interval: tuple[float, float], power: float = 1.0
) -> Float[np.ndarray, "S"]:
    """The scale at every time.

    Args:
      times: S, of the layout: its tokens, or its scales.
      scale: where the schedule's share is 1; 1 is off.
      schedule: a name of `SCHEDULES`.
      interval: guide only where progress lies in [low, high] (arXiv:2404.07724), scale 1 elsewhere; (0, 1) is everywhere.
      power: of progress in the schedule, not in the interval: above 1 delays, 0 is the schedule's end throughout.

    Raises:
      UserError: there is no such schedule, or the power is negative.
    """
    if schedule not in SCHEDULES:
        raise unknown("guidance schedule", schedule, SCHEDULES)
    if not power >= 0:
        raise UserError(f"sampler: guidance_power {power}; it must be >= 0.")
    progress = np.linspace(0, 1, times)
    scales = 1 + (scale - 1) * SCHEDULES[schedule](progress**power)
    return np.where((interval[0] <= progress) & (progress <= interval[1]), scales, 1.0).astype(np.float32)


def runs(scales: Float[np.ndarray, "S"]) -> list[tuple[int, int, bool]]:
    """Split the times where guidance is switched on or off: (start, stop, guided), in order.

    A single time without guidance before one with it is computed as if guided: to fill its unconditional cache later
    would cost a call of its own.
    """
    guided = scales != 1
    single = ~guided[:-1] & guided[1:] & np.append(True, guided[:-2])
    guided[:-1] |= single
    starts = [0, *(np.flatnonzero(np.diff(guided)) + 1).tolist(), len(scales)]
    return [(start, stop, bool(guided[start])) for start, stop in pairwise(starts)]


def paired(conditional: Rows, unconditional: Rows) -> Rows:
    """One batch of both, an image's two rows one after the other: devices that share the images have both of theirs."""
    return jax.tree.map(
        lambda *x: jnp.stack(x, axis=1).reshape(2 * len(x[0]), *x[0].shape[1:]), conditional, unconditional
    )


def unpaired(rows: Rows) -> tuple[Rows, Rows]:
    """The conditional and the unconditional rows of `paired`."""
    both = jax.tree.map(lambda x: x.reshape(len(x) // 2, 2, *x.shape[1:]), rows)
    return jax.tree.map(lambda x: x[:, 0], both), jax.tree.map(lambda x: x[:, 1], both)
