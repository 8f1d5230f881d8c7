"""What attention's implementation makes of a training step: configs/cifar10, in turns with jax.nn.dot_product_attention.

python -m benchmarks.attention_step [--config=size=S] [--rounds=9] [--json]

A step of the generator on random tokens, of this config and batch. `jax.nn.dot_product_attention` is given the mask entry by
entry, and keeps for the backward pass either what ours keeps or all that there is; the better of both is what counts.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from benchmarks.training_speed import training
from benchmarks.turns import in_turns, seconds
from configs import cifar10
from models import attention
from models.masks import Visibility
from models.process import tune_malloc
from models.transformer import REMATERIALISATION

THEIRS = "jax.nn"


def by_jax(q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, *, scale: float) -> jax.Array:
    """Attention of jax, under a mask of all entries."""
    mask = jnp.asarray(visibility.as_array()).reshape(-1, 1, *visibility.as_array().shape[-2:])
    return jax.nn.dot_product_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=mask, scale=scale)


def step_with(implementation: str, remat: str, argument: str) -> Callable[[], None]:
    """A call that makes a training step."""
    config = cifar10.get_config(argument)
    config.generator.remat, config.data.classes = remat, 10
    with mock.patch.object(attention, "fastest", return_value=implementation):
        once, *_ = training(config, config.training.generator.batch_size)
        once()  # compiles it
    return once


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="size=S", help="the argument of configs/cifar10")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    attention.IMPLEMENTATIONS[THEIRS] = by_jax
    REMATERIALISATION["everything"] = jax.checkpoint_policies.everything_saveable
    ways = [("xla", "none"), ("xla_chunked", "none"), (THEIRS, "none"), (THEIRS, "everything")]
    steps = {" ".join(way): partial(seconds, step_with(*way, options.config)) for way in ways}
    medians = {name: statistics.median(times) for name, times in in_turns(steps, options.rounds).items()}
    theirs = min(median for name, median in medians.items() if name.startswith(THEIRS))
    found: dict[str, Any] = {"seconds": medians, "ratio": theirs / medians["xla none"]}
    print(json.dumps(found) if options.json else "\n".join(
        [*(f"{name:24}{1e3 * median:10.1f} ms" for name, median in medians.items()), f"ratio{found['ratio']:29.3f}"]
    ))  # fmt: skip


if __name__ == "__main__":
    tune_malloc()
    main()
