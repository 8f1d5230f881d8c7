"""Optax chains from config sections."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from models.errors import unknown
from models.modules import Params
from models.registry import build


def with_warmup(after: optax.Schedule, learning_rate: float, warmup: int) -> optax.Schedule:
    """Linear from 0 over `warmup` steps, then `after`, whose own count starts there."""
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


# (learning rate, steps after the warm-up, share of the learning rate at the end) -> schedule
SCHEDULES: dict[str, Callable[[float, int, float], optax.Schedule]] = {
    "constant": lambda rate, steps, final: optax.constant_schedule(rate),
    "cosine": lambda rate, steps, final: optax.cosine_decay_schedule(rate, max(steps, 1), final),
    "linear": lambda rate, steps, final: optax.linear_schedule(rate, final * rate, max(steps, 1)),
}

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": optax.adam, "adamw": optax.adamw}


def learning_rate_schedule(config: Mapping[str, Any]) -> optax.Schedule:
    """Learning rate by step, from the fields steps, learning_rate, schedule, warmup_steps and final_share."""
    if config["schedule"] not in SCHEDULES:
        raise unknown("schedule", config["schedule"], SCHEDULES)
    rate, warmup = config["learning_rate"], config["warmup_steps"]
    after = SCHEDULES[config["schedule"]](rate, config["steps"] - warmup, config["final_share"])
    return with_warmup(after, rate, warmup)


def decays(axes: tuple[str | None, ...]) -> bool:
    """Whether weights with these logical axes decay: matrices that are no positions and no offsets of norms."""
    return len([name for name in axes if name != "layers"]) >= 2 and not {"slots", "norm"} & set(axes)


def make_optimizer(config: Mapping[str, Any], axes: Params) -> optax.GradientTransformation:
    """Clipping by the global norm, then the named optimizer; `adamw` decays matrices only.

    Args:
      config: a stage's training section.
      axes: logical axes like the parameters; see `decays`.
    """
    fields = {**config["optimizer"], "learning_rate": learning_rate_schedule(config)}
    if fields["name"] == "adamw":
        fields["mask"] = jax.tree.map(decays, axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    else:
        fields.pop("weight_decay", None)
    clip = optax.clip_by_global_norm(config["clip_norm"]) if config["clip_norm"] else optax.identity()
    return optax.chain(clip, build("optimizer", OPTIMIZERS, fields))
