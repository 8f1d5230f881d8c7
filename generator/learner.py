"""How the training loop sees a generator: one player, the next-token loss, no statistics."""

from typing import Any

import jax

from generator.generator import Generator
from models.modules import Description, Params
from models.tokens import Tokens


class GeneratorLearner:
    """Maximum likelihood of extracted tokens; a batch is {"ids": (B, T, K), "label": (B,)}, int32."""

    stage = "generator"
    unit = "loss"  # the metric that curves and progress bars show

    def __init__(self, description: Description[Generator]):
        self.description = description
        self.players = {"generator": self.loss}
        self.axes = {"generator": description.axes}
        self.statistics_axes: Params = {}

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        """Parameters by player, and (no) statistics."""
        return {"generator": self.description.init(key)}, {}

    def loss(self, params: Params, statistics: Params, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        """(loss, (statistics, metrics))."""
        generator = self.description.merge(params["generator"])
        loss, metrics = generator.loss(Tokens(batch["ids"]), batch["label"], key=key)
        return loss, (statistics, metrics)

    def heldout(self, params: Params, batch: Any) -> dict[str, jax.Array]:
        """Metrics of the averaged generator on held-out tokens: `loss` in nats per token."""
        return self.description.merge(params).loss(Tokens(batch["ids"]), batch["label"])[1]

    def after_update(self, params: Params, statistics: Params) -> tuple[Params, Params]:
        """Nothing is changed but by gradients."""
        return params, statistics
