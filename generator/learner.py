"""How the training loop sees a generator: one player, the likelihood of extracted tokens, no statistics."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from generator.generator import Generator
from models.modules import Description, Params


class GeneratorLearner:
    """Maximum likelihood of extracted tokens; a batch is {"ids": (B, N, K), "label": (B,)}, int32.

    Args:
      description: of the generator.
      feed: (ids, **frozen) -> what feeds the generator's layout under teacher forcing.
      frozen: parameters that `feed` sees and nobody trains, by name.
      weight: step -> weight of every token (N,), or None where all count alike throughout (`generator.objectives`).
    """

    stage = "generator"
    unit = "loss"  # the metric that curves and progress bars show

    def __init__(
        self,
        description: Description[Generator],
        feed: Callable[..., jax.Array] = lambda ids: ids,
        frozen: Mapping[str, Params] = MappingProxyType({}),
        weight: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self.description, self.feed, self.weight = description, feed, weight
        self.players = {"generator": self.loss}
        self.tokens = description.merge(description.shapes).spec.positions  # of an image, for which the loss is
        self.axes = {"generator": description.axes}
        self.frozen = dict(frozen)
        self.statistics_axes: Params = {}

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        """Parameters by player, and (no) statistics."""
        return {"generator": self.description.init(key)}, {}

    def loss(self, params: Params, statistics: Params, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        """(loss, (statistics, metrics))."""
        generator = self.description.merge(params["generator"])
        weight = None if self.weight is None else self.weight(step)
        inputs = self.feed(batch["ids"], **{name: params[name] for name in self.frozen})
        loss, metrics = generator.loss(inputs, batch["ids"], batch["label"], weight=weight, key=key)
        return loss, (statistics, metrics)

    def heldout(self, params: Params, batch: Any, **frozen: Params) -> dict[str, jax.Array]:
        """Metrics of the averaged generator on held-out tokens: `loss` in nats per token."""
        generator = self.description.merge(params)
        return generator.loss(self.feed(batch["ids"], **frozen), batch["ids"], batch["label"])[1]

    def after_update(self, params: Params, statistics: Params) -> tuple[Params, Params]:
        """Nothing is changed but by gradients."""
        return params, statistics
