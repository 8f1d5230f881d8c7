"""How the training loop sees a generator: one player, the likelihood of extracted tokens, no statistics."""

from collections.abc import Callable
from typing import Any

import jax

from generator.generator import Generator
from models.modules import Description, Params


class GeneratorLearner:
    """Maximum likelihood of extracted tokens; a batch is {"ids": (B, N, K), "label": (B,)}, int32.

    Args:
      description: of the generator.
      feed: ids -> what feeds the generator's layout under teacher forcing.
      weight: step -> weight of every token (N,), or None where all count alike throughout (`generator.objectives`).
    """

    stage = "generator"
    unit = "loss"  # the metric that curves and progress bars show

    def __init__(
        self,
        description: Description[Generator],
        feed: Callable[[jax.Array], jax.Array] = lambda ids: ids,
        weight: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self.description, self.feed, self.weight = description, feed, weight
        self.players = {"generator": self.loss}
        self.axes = {"generator": description.axes}
        self.frozen: Params = {}  # parameters that losses see and nobody trains
        self.statistics_axes: Params = {}

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        """Parameters by player, and (no) statistics."""
        return {"generator": self.description.init(key)}, {}

    def loss(self, params: Params, statistics: Params, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        """(loss, (statistics, metrics))."""
        generator = self.description.merge(params["generator"])
        weight = None if self.weight is None else self.weight(step)
        inputs = self.feed(batch["ids"])
        loss, metrics = generator.loss(inputs, batch["ids"], batch["label"], weight=weight, key=key)
        return loss, (statistics, metrics)

    def heldout(self, params: Params, batch: Any) -> dict[str, jax.Array]:
        """Metrics of the averaged generator on held-out tokens: `loss` in nats per token."""
        generator = self.description.merge(params)
        return generator.loss(self.feed(batch["ids"]), batch["ids"], batch["label"])[1]

    def after_update(self, params: Params, statistics: Params) -> tuple[Params, Params]:
        """Nothing is changed but by gradients."""
        return params, statistics
