"""Trees of sibling drafts from the calls before: what SJD-PAC (arXiv:2603.18599) adds to speculative Jacobi decoding.

A window of distributions stands ahead of what is drawn, each what the last call gave for its position. The drafts of a
position are drawn from it without replacement: Gumbel noise that the position keeps ranks them, so the first is the coupled
draft, and the next are those that the same noise would draw if p changed a little more. (The public code draws siblings
from what rejection leaves of p, and judges them as if from p, which is biased.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from generator.sampling.calls import Caller
from generator.sampling.distribution import draw
from generator.sampling.noise import Noise
from generator.sampling.speculative import Drafts, FirstDrafts, Past, moved
from generator.sampling.templates import Template
from generator.sampling.trees import Drafter, Path, Place, Tree
from models.masks import ancestors
from models.tokens import Grid


class Siblings(NamedTuple):
    """Trees of a template over a window of distributions, which is their memory (B, L, V).

    Attributes:
      template: the shape of the trees; all nodes of a depth share their drafts.
      first_drafts: of positions that no call has seen.
      frequencies: what they may be drawn from.
      proposals: whether the rule asks for the distributions of drafts.
    """

    template: Template
    first_drafts: FirstDrafts
    frequencies: Float[Array, "B N V"] | None
    proposals: bool

    def __call__(self, ask: Caller) -> Drafter:
        """What makes the trees for a model."""
        levels, shape = self.template.levels, ask.model.spec.shape
        assert isinstance(shape, Grid)
        codes = ask.model.spec.sizes[0]

        def first(past: Past, place: Place) -> jax.Array:
            return self.first_drafts.draw(past, noise_of(place, levels - 1), codes).log_q

        def start(place: Place) -> Any:
            nothing = Drafts(jnp.zeros((len(place.done), 1), jnp.int32), jnp.zeros((len(place.done), 1, codes)))
            return first(Past(place.ids, place.done, nothing, self.frequencies, shape.width), place)

        def propose(window: jax.Array, place: Place) -> tuple[Tree, Any]:
            tokens, log_q = ranked(window, noise_of(place, levels - 1), int(self.template.rank.max()) + 1)
            depth, rank = self.template.depth[1:], self.template.rank[1:]
            tokens = jnp.concatenate([place.last[:, None], tokens[:, depth - 1, rank]], axis=1)
            log_q = log_q[:, np.append(0, depth - 1), np.append(0, rank)] if self.proposals else None  # the root's is not asked for
            return Tree(tokens, jnp.broadcast_to(self.template.parent, tokens.shape), log_q), window

        def carry(window: jax.Array, tree: Tree, log_p: jax.Array, path: Path, before: Place, after: Place) -> Any:
            nodes = fullest(tree, path, self.template)
            log_p = jnp.take_along_axis(log_p, nodes[..., None], axis=1)
            noise = noise_of(before, levels)
            tokens = draw(log_p, noise.kept(codes))
            beyond = jnp.where(noise.positions >= after.done[:, None], noise.positions, after.ids.shape[1])
            ids = after.ids.at[jnp.arange(len(tokens))[:, None], beyond].set(tokens, mode="drop")
            last = Drafts(tokens[:, -1:], log_p[:, -1:])
            past = Past(ids, before.done + levels, last, self.frequencies, shape.width)
            return moved(log_p, first(past, after), after.done - before.done)

        return Drafter(start, propose, carry, len(self.template.parent), levels)


def noise_of(place: Place, count: int) -> Noise:
    """Of the positions from the first that is not drawn."""
    return place.noise(jnp.minimum(place.done[:, None] + jnp.arange(count), place.ids.shape[1] - 1))


def ranked(
    log_q: Float[Array, "B L V"], noise: Noise, ranks: int
) -> tuple[jax.Array, jax.Array]:
    """Drafts (B, L, K) of each distribution without replacement, and what each was drawn from (B, L, K, V)."""
    kept, tokens, distributions = noise.kept(log_q.shape[-1]), [], []
    for _ in range(ranks):
        # A distribution may have no more codes than are drawn.
        log_q = jnp.where(log_q.max(axis=-1, keepdims=True) > -jnp.inf, jax.nn.log_softmax(log_q), -jnp.log(log_q.shape[-1]))
        tokens.append(draw(log_q, kept))
        distributions.append(log_q)
        log_q = jnp.where(jnp.arange(log_q.shape[-1]) == tokens[-1][..., None], -jnp.inf, log_q)
    return jnp.stack(tokens, axis=2), jnp.stack(distributions, axis=2)


def fullest(tree: Tree, path: Path, template: Template) -> jax.Array:
    """Of every depth the node (B, D) that knows most of what was drawn: below the path's end, or at least the best drafts'."""
    end = jnp.take_along_axis(path.nodes, path.length[:, None] - 1, axis=1)
    known = jnp.take_along_axis(ancestors(tree.parent), end[..., None], axis=1)
    at = template.depth == np.arange(template.levels)[:, None]
    return jnp.where(at, 1 + known, 0).argmax(axis=2)
