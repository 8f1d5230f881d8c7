"""What counts in the loss, and when."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from generator.layouts import SequenceLayout
from models.errors import UserError


def progressive(
    layout: SequenceLayout, *, steps: int, warmup: int, until: float, first: int, ramp: float
) -> Callable[[jax.Array], Float[Array, "N"]] | None:
    """step -> weight of every token: later times count from later steps on (progressive training of VAR's code).

    Up to the end of the warm-up only the times up to `first` count; then one more after the other, evenly spread, and all
    from `until` of the training on. The newest time's weight rises linearly from 0.01 to 1, but for the first stage's and the
    last's, which is 1 at once. As no token sees a later time, what does not count yet changes nothing.

    Args:
      layout: of the generator.
      steps: of the training.
      warmup: steps of its learning rate's warm-up.
      until: share of the steps from which everything counts; 0 switches progressive training off.
      first: the last time that counts from the start on.
      ramp: share of the steps over which a new time's weight rises.
    """
    if not until:
        return None
    last = int(layout.time[-1])
    if not 0 <= first < last or not warmup < until * steps:
        raise UserError(f"progressive training from time {first} within {until:g} of {steps} steps does not fit {last + 1} "
                        f"times and {warmup} steps of warm-up.")  # fmt: skip
    progress = np.clip((np.arange(steps) - warmup) / (until * steps - warmup), 0, 1)
    newest = first + np.round(progress * (last - first)).astype(int)
    begins = np.searchsorted(newest, np.arange(last + 1))  # the step at which each time is the newest
    time = layout.time[layout.predicting]

    def weight(step: jax.Array) -> jax.Array:
        now = jnp.asarray(newest)[jnp.minimum(step, steps - 1)]
        risen = jnp.clip((step - jnp.asarray(begins)[now] + 1) / max(ramp * steps, 1), 0.01, 1)
        risen = jnp.where((now == first) | (now == last), 1.0, risen)
        return jnp.where(time < now, 1.0, jnp.where(time == now, risen, 0.0))

    return weight
