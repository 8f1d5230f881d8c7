"""Trees that grow where the draft model believes in them: DySpec (arXiv:2410.11744).

A draft stands about as often as the draft model gives it, so what is worth most is drawn next: at the root, or below a node
that is there, one more child, drawn without replacement. The child's chance times its parent's is what its own first child is
worth, the chance of all codes that are left what the next sibling is. Every node is a call of the draft model.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from generator.sampling.calls import Caller
from generator.sampling.distribution import draw
from generator.sampling.draft_model import asked, fed
from generator.sampling.interface import Aids, Model
from generator.sampling.rules import likelihood
from generator.sampling.settings import Settings
from generator.sampling.trees import Drafter, Judged, Place, Rule, Tree
from generator.sampling.walks import FIRST_DRAFT


class Growth(NamedTuple):
    """A tree that grows, its nodes in the order in which they were drawn.

    Attributes:
      tokens: int32 (B, M).
      parent: int32 (B, M), -1 of nodes that are not there.
      depth: int32 (B, M).
      log_q: float32 (B, M, V), what each was drawn from; None for rules that do not ask.
      value: float32 (B, M), log of the chance that the next child of each stands; -inf where there can be none.
      left: float32 (B, M, V), log q of that child.
      cache: of the draft model.
    """

    tokens: Int[Array, "B M"]
    parent: Int[Array, "B M"]
    depth: Int[Array, "B M"]
    log_q: Any
    value: Float[Array, "B M"]
    left: Float[Array, "B M V"]
    cache: Any


class DySpec(NamedTuple):
    """Trees of M nodes by their value; their memory is the draft model's cache.

    Which children a node gets depends on tokens of other branches at its depth. So the noise that a position keeps, which all
    of them share, would give drafts away before they are drawn: rules that ask for their distributions get noise of each node.

    Attributes:
      model: of the same tokens.
      nodes: M, the root counted.
      rule: that the trees are for.
    """

    model: Model
    nodes: int
    rule: Rule

    def __call__(self, target: Caller) -> Drafter:
        """What makes the trees for a model."""
        ask, nodes, codes = target.of(self.model), self.nodes, self.model.spec.sizes[0]

        def start(place: Place) -> Any:
            return ask.cache(nodes)

        def propose(cache: Any, place: Place) -> tuple[Tree, Any]:
            row, nowhere = jnp.arange(len(place.done)), jnp.full((len(place.done), nodes), -1, jnp.int32)

            def known(growth: Growth, number: Any, value: jax.Array) -> Growth:
                """With what the draft model says of a node's children, the first of which is worth so much (B,)."""
                after = place.done + growth.depth[:, number]
                hidden, cache = fed(
                    ask, growth.cache, place, growth.tokens, growth.parent, jnp.asarray(number)[None], after[:, None]
                )
                left = growth.left.at[:, number].set(asked(ask, hidden, after[:, None])[:, 0])
                value = jnp.where(after < place.ids.shape[1], value, -jnp.inf)  # nothing is drawn beyond the end
                return growth._replace(value=growth.value.at[:, number].set(value), left=left, cache=cache)

            def drawn(number: Any, growth: Growth) -> Growth:
                above = growth.value.argmax(axis=1)
                value, log_q, depth = growth.value[row, above], growth.left[row, above], growth.depth[row, above]
                noise = place.noise((place.done + depth)[:, None])
                stream = FIRST_DRAFT + jnp.asarray(number)[None]
                gumbel = noise.fresh(codes, stream) if self.rule.proposals else noise.kept(codes)
                token = draw(log_q, gumbel[:, 0])
                left = jnp.where(jnp.arange(codes) == token[:, None], -jnp.inf, log_q)
                rest = jax.nn.logsumexp(left, axis=1)
                there = value > -jnp.inf
                growth = Growth(
                    growth.tokens.at[:, number].set(token),
                    growth.parent.at[:, number].set(jnp.where(there, above.astype(jnp.int32), -1)),
                    growth.depth.at[:, number].set(jnp.where(there, depth + 1, 0)),
                    None if growth.log_q is None else growth.log_q.at[:, number].set(log_q),
                    growth.value.at[row, above].set(jnp.where(there, value + rest, -jnp.inf)),
                    growth.left.at[row, above].set(left - rest[:, None]),
                    growth.cache,
                )
                return known(growth, number, jnp.where(there, value + likelihood(log_q, token), -jnp.inf))

            tokens, left = (nowhere * 0).at[:, 0].set(place.last), jnp.zeros((*nowhere.shape, codes))
            log_q = left if self.rule.proposals else None
            growth = Growth(tokens, nowhere, nowhere * 0, log_q, jnp.full(nowhere.shape, -jnp.inf), left, cache)
            growth = known(growth, 0, jnp.zeros(len(row)))
            growth = jax.lax.fori_loop(1, nodes, drawn, growth)
            return Tree(growth.tokens, growth.parent, growth.log_q), growth.cache

        def carry(cache: Any, judged: Judged, before: Place, after: Place) -> Any:
            return ask.settled(cache, judged.path.nodes, judged.path.positions(before))

        return Drafter(start, propose, carry, nodes, nodes)


def of_dyspec(settings: Settings, aids: Aids, rule: Rule) -> DySpec:
    """Trees of a draft model, by `dyspec`."""
    return DySpec(aids.draft, settings.window, rule)
