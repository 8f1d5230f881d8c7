"""Trees of the successors that tokens had before: Token Recycling (arXiv:2408.08696).

A table holds of every code the most probable tokens after it, as the model saw them last; drafts are looked up in it, level by
level. Text repeats itself, so that this is free speed there; codes of images are followed by many others, and little stands.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generator.sampling.calls import Caller
from generator.sampling.distribution import certain
from generator.sampling.interface import Aids
from generator.sampling.settings import Settings
from generator.sampling.templates import Template
from generator.sampling.trees import Drafter, Judged, Place, Rule, Tree


class Recycling(NamedTuple):
    """Trees of a template over a table of successors, which is their memory: int32 (B, V, k), each row its own.

    Attributes:
      template: the shape of the trees.
      proposals: whether the rule asks for the distributions of drafts, which are certain.
    """

    template: Template
    proposals: bool

    def __call__(self, ask: Caller) -> Drafter:
        """What makes the trees for a model."""
        template, codes = self.template, ask.model.spec.sizes[0]

        def start(place: Place) -> Any:
            return jnp.zeros((len(place.done), codes, int(template.rank.max()) + 1), jnp.int32)

        def propose(table: jax.Array, place: Place) -> tuple[Tree, Any]:
            row, parent = jnp.arange(len(place.done))[:, None], template.parent
            tokens = jnp.zeros((len(row), len(parent)), jnp.int32).at[:, 0].set(place.last)
            for depth in range(1, template.levels):
                nodes = np.flatnonzero(template.depth == depth)
                tokens = tokens.at[:, nodes].set(table[row, tokens[:, parent[nodes]], template.rank[nodes]])
            log_q = certain(tokens, codes) if self.proposals else None
            return Tree(tokens, jnp.broadcast_to(parent, tokens.shape), log_q), table

        def carry(table: jax.Array, judged: Judged, before: Place, after: Place) -> Any:
            seen = (jnp.arange(len(template.parent)) > 0) | (before.done[:, None] > 0)  # before position 0 is no token
            return renewed(table, jnp.where(seen, judged.tree.tokens, codes), judged.log_p)

        return Drafter(start, propose, carry, len(template.parent), template.levels)


def renewed(table: Int[Array, "B V k"], tokens: Int[Array, "B M"], log_p: Float[Array, "B M V"]) -> Int[Array, "B V k"]:
    """The table with the best codes of each log p as the successors of its token, the last node's where nodes are alike.

    A token of V stands for none.
    """
    _, best = jax.lax.top_k(log_p, table.shape[2])
    index = jnp.arange(tokens.shape[1])
    again = (tokens[:, :, None] == tokens[:, None, :]) & (index[:, None] < index)
    last = jnp.where(again.any(axis=2), table.shape[1], tokens)
    return table.at[jnp.arange(len(table))[:, None], last].set(best, mode="drop")


def of_recycling(settings: Settings, aids: Aids, rule: Rule) -> Recycling:
    """Trees of successors, by `recycling`."""
    return Recycling(settings.template, rule.proposals)
