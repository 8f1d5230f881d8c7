"""Speculative decoding with a smaller model (Leviathan et al., arXiv:2211.17192), which drafts several chains (SpecTr).

All chains of a tree leave the root, node 1 + (d - 1) k + j being chain j of k at depth d: what a depth drafts is one call of
the draft model. Its cache is fed with the leaves as well, so that it keeps whatever path is drawn, as the model's own does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generator.sampling.calls import Caller
from generator.sampling.distribution import draw
from generator.sampling.interface import Aids, Model
from generator.sampling.settings import Settings
from generator.sampling.siblings import noise_of, ranked
from generator.sampling.trees import Drafter, Judged, Place, Rule, Tree
from generator.sampling.walks import FIRST_DRAFT
from models.errors import UserError
from models.masks import Branches


class Growth(NamedTuple):
    """Chains as far as they are drafted.

    Attributes:
      tokens: int32 (B, M).
      log_q: float32 (B, M, V); None for rules that do not ask.
      hidden: (R, k, D), what the draft model's head is asked with of the deepest nodes.
      cache: of the draft model.
    """

    tokens: Int[Array, "B M"]
    log_q: Any
    hidden: Float[Array, "R k D"]
    cache: Any


class Chains(NamedTuple):
    """Trees of k chains of L drafts each; their memory is the draft model's cache.

    Where a rule wants independent siblings (SpecTr, arXiv:2310.15141), every node is drawn on its own. Else the chains begin
    with the k best under the noise that the position keeps, which is drawing without replacement, and go on with the best.

    Attributes:
      model: of the same tokens.
      chains: k.
      length: L.
      rule: that the trees are for.
    """

    model: Model
    chains: int
    length: int
    rule: Rule

    def __call__(self, target: Caller) -> Drafter:
        """What makes the trees for a model."""
        ask, chains, nodes = target.of(self.model), self.chains, 1 + self.chains * self.length
        codes, index = self.model.spec.sizes[0], np.arange(nodes)
        above = np.where(index > chains, index - chains, np.where(index > 0, 0, -1)).astype(np.int32)

        def start(place: Place) -> Any:
            return ask.cache(nodes)

        def propose(cache: Any, place: Place) -> tuple[Tree, Any]:
            parent = jnp.broadcast_to(above, (len(place.done), nodes))
            tokens = jnp.zeros(parent.shape, jnp.int32).at[:, 0].set(place.last)
            log_q = jnp.zeros((*parent.shape, codes)) if self.rule.proposals else None
            hidden, cache = fed(ask, cache, place, tokens, parent, np.zeros(1, np.int32), place.done[:, None])

            def grown(growth: Growth, depth: Any, drafts: jax.Array, log_q: jax.Array) -> Growth:
                """With the drafts of a depth (B, k), and what they were drawn from (B, k, V)."""
                of_depth = 1 + (depth - 1) * chains + jnp.arange(chains, dtype=jnp.int32)
                tokens = growth.tokens.at[:, of_depth].set(drafts)
                kept = None if growth.log_q is None else growth.log_q.at[:, of_depth].set(log_q)
                after = jnp.broadcast_to(place.done[:, None] + depth, drafts.shape)
                return Growth(tokens, kept, *fed(ask, growth.cache, place, tokens, parent, of_depth, after))

            def drawn(depth: Any, log_q: jax.Array) -> jax.Array:
                """Drafts of a depth, one of each distribution."""
                position = place.done[:, None] + depth - 1
                if not self.rule.independent:
                    return draw(log_q, jnp.broadcast_to(place.noise(position).kept(codes), log_q.shape))
                streams = FIRST_DRAFT + 1 + (depth - 1) * chains + jnp.arange(chains)
                return draw(log_q, place.noise(jnp.broadcast_to(position, log_q.shape[:2])).fresh(codes, streams))

            def deeper(depth: Any, growth: Growth) -> Growth:
                position = jnp.broadcast_to(place.done[:, None] + depth - 1, (len(parent), chains))
                log_q = asked(ask, growth.hidden, position)
                return grown(growth, depth, drawn(depth, log_q), log_q)

            first = asked(ask, hidden, place.done[:, None])
            if self.rule.independent:
                given = jnp.broadcast_to(first, (len(parent), chains, codes))
                drafts = drawn(1, given)
            else:
                drafts, given = (x[:, 0] for x in ranked(first, noise_of(place, 1), chains))
            growth = grown(Growth(tokens, log_q, hidden, cache), 1, drafts, given)
            growth = jax.lax.fori_loop(2, self.length + 1, deeper, growth)
            return Tree(growth.tokens, parent, growth.log_q), growth.cache

        def carry(cache: Any, judged: Judged, before: Place, after: Place) -> Any:
            return ask.settled(cache, judged.path.nodes, judged.path.positions(before))

        return Drafter(start, propose, carry, nodes, self.length + 1)


def fed(
    ask: Caller,
    cache: Any,
    place: Place,
    tokens: Int[Array, "B M"],
    parent: Int[Array, "B M"],
    nodes: Int[Array | np.ndarray, "n"],
    positions: Int[Array, "B n"],
) -> tuple[Float[Array, "R n D"], Any]:
    """Some nodes of a tree given to the draft model: what its head is asked with of the positions after them, and its cache."""
    last = place.ids.shape[1] - 1
    branches = Branches(jnp.minimum(place.done, last), parent, nodes)
    return ask(cache, tokens[:, nodes], jnp.minimum(positions, last), branches)


def asked(ask: Caller, hidden: Float[Array, "R n D"], positions: Int[Array, "B n"]) -> Float[Array, "B n V"]:
    """log q at positions; of no meaning beyond the sequence."""
    return ask.log_p(hidden, jnp.minimum(positions, ask.model.spec.positions - 1))


def length_of(chains: int, nodes: int, codes: int) -> int:
    """How long so many chains of so many nodes are, the root counted among the nodes.

    Raises:
      UserError: there are too many chains, or none.
    """
    if not 1 <= chains <= min(nodes - 1, codes):
        raise UserError(
            f"sampler.chains {chains} is not within 1 and the {min(nodes - 1, codes)} that {codes} codes and "
            f"sampler.window {nodes}, of which one is the root, have room for."
        )
    return (nodes - 1) // chains


def of_chains(settings: Settings, aids: Aids, rule: Rule) -> Chains:
    """Chains of a draft model, by `draft_model`."""
    length = length_of(settings.chains, settings.window, aids.draft.spec.sizes[0])
    return Chains(aids.draft, settings.chains, length, rule)


def refuse_chains(settings: Settings, model: Model) -> None:
    """Raise UserError for chains that there is no room for."""
    length_of(settings.chains, settings.window, model.spec.sizes[0])
