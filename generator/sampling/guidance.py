"""Guidance schedules: the scale of classifier-free guidance (arXiv:2207.12598) at every time of a layout.

One convention, LlamaGen's: guided = unconditional + scale * (conditional - unconditional), so 1 is off. A scale `t` of VAR's
convention ((1 + t) c - t u) or `w` of MaskGIT's (c + w (c - u)) is 1 + t, 1 + w here; VAR's own schedule is "linear". Schedules
are indexed by what is predicted (a token of a raster, a scale), never by iteration: what is sampled then has one
distribution, whichever sampler draws it.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from models.errors import unknown

# progress in [0, 1] over the times -> share of (scale - 1) that is applied
SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - np.cos(np.pi * progress)) / 2,
}


def guidance_scales(
    times: int, *, scale: float, schedule: str, interval: tuple[float, float]
) -> Float[np.ndarray, "S"]:
    """The scale at every time.

    Args:
      times: S, of the layout: its tokens, or its scales.
      scale: the largest scale; 1 is off.
      schedule: a name of `SCHEDULES`.
      interval: guide only where progress lies in [low, high] (arXiv:2404.07724), scale 1 elsewhere; (0, 1) is everywhere.
    """
    if schedule not in SCHEDULES:
        raise unknown("guidance schedule", schedule, SCHEDULES)
    progress = np.linspace(0, 1, times)
    scales = 1 + (scale - 1) * SCHEDULES[schedule](progress)
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
