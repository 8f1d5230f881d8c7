"""Calls of a model by speculative samplers: what is drawn after each of many drafts, wherever the rows of a batch are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from generator.generator import Condition
from generator.sampling.distribution import Filters, target_distribution
from generator.sampling.guidance import paired, unpaired
from generator.sampling.interface import Model
from models.masks import Branches
from models.transformer import grown, moved

Revise = Callable[[Any, jax.Array, Any], jax.Array]  # (state, log p, positions) -> log p


class Caller(NamedTuple):
    """A model asked for one batch of conditions; guided calls hold two rows of each (`guidance.paired`).

    Attributes:
      model: of tokens one after the other.
      condition: of each image.
      start: what feeds the slots of the condition.
      context: of the condition.
      scales: float32 (N,), guidance scale at each position.
      filters: temperature, top-k and the like.
      revise: what becomes of log p, for tokens that are known.
      guided: whether there are unconditional rows.
    """

    model: Model
    condition: Condition
    start: jax.Array
    context: Any
    scales: Float[np.ndarray, "N"]
    filters: Filters
    revise: Revise | None
    guided: bool

    @property
    def silent(self) -> int:
        """Slots that predict nothing."""
        return self.model.layout.conditions - 1

    def of(self, model: Model) -> "Caller":
        """Another model of the same tokens, asked for the same."""
        return caller(model, self.condition, scales=self.scales, filters=self.filters, revise=self.revise)

    def both(self, x: jax.Array) -> jax.Array:
        """For the unconditional rows as well."""
        return jnp.repeat(x, 2, axis=0) if self.guided else x

    def cache(self, nodes: int = 0) -> Any:
        """A cache that knows the silent slots, with room for a tree of so many nodes behind the sequence."""
        room = self.model.layout.slots + nodes
        if not self.silent:
            return self.model.init_cache(len(self.start), room)
        cache, slots = self.model.init_cache(len(self.start), 0), np.arange(self.silent, dtype=np.int32)
        _, cache = self.model.hidden(cache, self.start[:, : self.silent], slots, self.context)
        return grown(cache, room)

    def __call__(
        self,
        cache: Any,
        tokens: Int[Array, "B n"],
        positions: Int[Array, "B n"],
        branches: Branches | None = None,
        unwritten: Bool[Array, "S"] | None = None,
    ) -> tuple[Float[Array, "R n D"], Any]:
        """What the head is asked with of positions, each given the token before it, and the cache that knows those tokens.

        Args:
          cache: of the calls before.
          tokens: before the positions; of no meaning before position 0.
          positions: within the sequence.
          branches: where the tokens are nodes of a tree of drafts; its `slot` the first position to draw.
          unwritten: slots that nobody sees.
        """
        x = self.both(self.model.embed(tokens[..., None]))
        x = jnp.where(self.both(positions == 0)[..., None], self.start[:, -1:], x)
        slots = self.both(positions + self.silent)
        if branches is not None:
            slot, parent = self.both(branches.slot + self.silent), self.both(branches.parent)
            branches = Branches(slot, parent, branches.nodes)
        return self.model.hidden(cache, x, slots, self.context, branches, unwritten)

    def log_p(self, hidden: Float[Array, "R n D"], positions: Int[Array, "B n"]) -> Float[Array, "B n V"]:
        """Of the tokens at positions, as they are drawn."""
        outputs = self.model.head(hidden)
        conditional, unconditional = unpaired(outputs) if self.guided else (outputs, None)
        log_p = target_distribution(conditional, unconditional, jnp.asarray(self.scales)[positions], self.filters)
        return log_p if self.revise is None else self.revise((), log_p, positions)

    def settled(self, cache: Any, nodes: Int[Array, "B n"], positions: Int[Array, "B n"]) -> Any:
        """The cache with nodes of a tree as what stands before positions; those beyond the sequence's end are dropped."""
        slots = self.model.layout.slots
        target = jnp.where(positions < self.model.spec.positions, positions + self.silent, slots + nodes)
        return moved(cache, self.both(slots + nodes), self.both(target))


def caller(
    model: Model,
    condition: Condition,
    *,
    scales: Float[np.ndarray, "N"],
    filters: Filters,
    revise: Revise | None = None,
) -> Caller:
    """The model asked for a batch of conditions."""
    guided = bool((scales != 1).any())
    rows = paired(condition, model.condition.null(condition)) if guided else condition
    return Caller(model, condition, model.start(rows), model.context(rows), scales, filters, revise, guided)
