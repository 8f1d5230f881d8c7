"""Which path of a tree of drafts stands: rules for `generator.sampling.trees`, all of them lossless.

- `fixed_noise`: the path that the positions' own noise takes, whoever drafted it: the sequential sampler's tokens.
- `multi_round`: siblings are judged one after the other by rejection, p being what the ones before have left of it (SpecInfer,
  arXiv:2305.09781): exact whether siblings are drawn with or without replacement, as each comes with what it was drawn from.
- `k_seq`: siblings that are drawn independently from one q share p out among them (SpecTr, arXiv:2310.15141).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from generator.sampling.distribution import draw
from generator.sampling.noise import Noise
from generator.sampling.rules import KSeq, k_seq_of, residual, stands
from generator.sampling.trees import Rule, Tree, Walk
from models.masks import ancestors

# Streams of noise: of what follows the path; of whether a node stands; of what it drafts.
LAST, FIRST_NODE, FIRST_DRAFT = 3, 16, 1 << 16


def fixed_noise(log_p: Float[Array, "B M V"], tree: Tree, noise: Noise) -> Walk:
    """A node stands if its parent does, and the noise of its position draws it."""
    drawn = draw(log_p, noise.kept(log_p.shape[-1]))
    asked = jnp.take_along_axis(drawn, jnp.maximum(tree.parent, 0), axis=1)
    wrong = (tree.parent >= 0) & (tree.tokens != asked)
    taken = ~(ancestors(tree.parent) & wrong[:, :, None]).any(axis=1)
    deepest = jnp.where(taken, tree.depth, -1).argmax(axis=1)
    return Walk(taken, jnp.take_along_axis(drawn, deepest[:, None], axis=1)[:, 0])


class Front(NamedTuple):
    """Where a walk is.

    Attributes:
      here: the nodes whose children are judged: one, or siblings of one token.
      taken: all that were here.
      judge: what a rule knows of the children that are left.
    """

    here: Bool[Array, "B M"]
    taken: Bool[Array, "B M"]
    judge: Any


def multi_round(log_p: Float[Array, "B M V"], tree: Tree, noise: Noise) -> Walk:
    """The first sibling that min(1, p / q) lets stand, p being what rejection left of it."""

    def judged(number: Any, log_p: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_q, token = tree.log_q[:, number], tree.tokens[:, number]
        return stands(log_p, log_q, token, uniform), jax.nn.log_softmax(residual(log_p, log_q))

    return walked(log_p, tree, noise, lambda here, log_p: log_p, judged, lambda log_p: log_p)


def k_seq(log_p: Float[Array, "B M V"], tree: Tree, noise: Noise) -> Walk:
    """The first sibling that min(1, p / (rho q)) lets stand."""

    def enter(here: jax.Array, log_p: jax.Array) -> KSeq:
        children = below(tree, here)
        log_q = jnp.take_along_axis(tree.log_q, children.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        return k_seq_of(log_p, log_q, children.sum(axis=1))

    def judged(number: Any, rule: KSeq, uniform: jax.Array) -> tuple[jax.Array, KSeq]:
        return rule.stands(tree.tokens[:, number], uniform), rule

    return walked(log_p, tree, noise, enter, judged, lambda rule: rule.rest)


def below(tree: Tree, here: Bool[Array, "B M"]) -> Bool[Array, "B M"]:
    """Children of nodes."""
    return (tree.parent >= 0) & jnp.take_along_axis(here, jnp.maximum(tree.parent, 0), axis=1)


def walked(log_p: Float[Array, "B M V"], tree: Tree, noise: Noise, enter: Any, judged: Any, rest: Any) -> Walk:
    """Judge node after node, and draw what follows the last that stands.

    Where siblings may be of one token, all of one depth must come before the next depth.

    Args:
      log_p: after every node.
      tree: of drafts.
      noise: of the positions after the nodes.
      enter: (nodes that are here, log p after them) -> what is known for judging their children.
      judged: (node, what is known, uniform) -> (whether it stands, what is known if not).
      rest: (what is known) -> log p of what is drawn if no child stands.
    """
    count = tree.tokens.shape[1]
    uniform = noise.uniform(FIRST_NODE + jnp.arange(count))

    def step(number: Any, front: Front) -> Front:
        asked = below(tree, front.here)[:, number]
        kept, judge = judged(number, front.judge, uniform[:, number])
        kept = asked & kept
        alike = below(tree, front.here) & (tree.tokens == tree.tokens[:, number, None])
        here = jnp.where(kept[:, None], alike, front.here)
        anew = enter(here, log_p[:, number])

        def chosen(new: jax.Array, left: jax.Array, old: jax.Array) -> jax.Array:
            shape = (-1, *(1,) * (new.ndim - 1))
            return jnp.where(kept.reshape(shape), new, jnp.where(asked.reshape(shape), left, old))

        return Front(here, front.taken | here, jax.tree.map(chosen, anew, judge, front.judge))

    root = jnp.zeros(tree.tokens.shape, bool).at[:, 0].set(True)
    front = Front(root, root, enter(root, log_p[:, 0]))
    front = jax.lax.fori_loop(1, count, step, front)
    after = jnp.take_along_axis(noise.positions, front.here.argmax(axis=1)[:, None], axis=1)
    last = noise._replace(positions=after).fresh(log_p.shape[-1], LAST)[:, 0]
    return Walk(front.taken, draw(rest(front.judge), last))


RULES = {
    "fixed_noise": Rule(fixed_noise, proposals=False),
    "multi_round": Rule(multi_round, proposals=True),
    "k_seq": Rule(k_seq, proposals=True, independent=True),
}
