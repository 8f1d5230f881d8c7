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
from jaxtyping import Array, Float, Int

from generator.sampling.calls import Caller
from generator.sampling.distribution import draw
from generator.sampling.interface import Aids, Model
from generator.sampling.noise import Noise
from generator.sampling.settings import Settings
from generator.sampling.speculative import Drafts, FirstDrafts, Past, Seen, moved, refined
from generator.sampling.templates import Template
from generator.sampling.trees import Drafter, Judged, Place, Rule, Tree
from models.errors import UserError
from models.masks import ancestors
from models.tokens import Grid


class Siblings(NamedTuple):
    """Trees of a template over a window of distributions, which is their memory (B, L, V).

    Attributes:
      template: the shape of the trees; all nodes of a depth share their drafts.
      first_drafts: of positions that no call has seen.
      proposals: whether the rule asks for the distributions of drafts.
    """

    template: Template
    first_drafts: Callable[[Caller], FirstDrafts]
    proposals: bool

    def __call__(self, ask: Caller) -> Drafter:
        """What makes the trees for a model."""
        levels, shape = self.template.levels, ask.model.spec.shape
        assert isinstance(shape, Grid)
        codes, drafting = ask.model.spec.sizes[0], self.first_drafts(ask)

        def first(past: Past, place: Place) -> jax.Array:
            return drafting.draw(past, noise_of(place, levels - 1), codes).log_q

        def start(place: Place) -> Any:
            nothing = Drafts(jnp.zeros((len(place.done), 1), jnp.int32), jnp.zeros((len(place.done), 1, codes)))
            return first(Past(place.ids, place.done, nothing, shape.width), place)

        def propose(window: jax.Array, place: Place) -> tuple[Tree, Any]:
            tokens, log_q = ranked(window, noise_of(place, levels - 1), int(self.template.rank.max()) + 1)
            of_node = (slice(None), np.maximum(self.template.depth - 1, 0), self.template.rank)
            tokens = tokens[of_node].at[:, 0].set(place.last)
            parent = jnp.broadcast_to(self.template.parent, tokens.shape)
            return Tree(tokens, parent, log_q[of_node] if self.proposals else None), window

        def carry(window: jax.Array, judged: Judged, before: Place, after: Place) -> Any:
            nodes = fullest(judged, self.template)
            log_p = jnp.take_along_axis(judged.log_p, nodes[..., None], axis=1)
            noise = noise_of(before, levels)
            tokens = draw(log_p, noise.kept(codes))
            last = Drafts(tokens[:, -1:], log_p[:, -1:])
            past = Past(ahead(after.ids, tokens, noise, after), before.done + levels, last, shape.width)
            log_q = moved(log_p, first(past, after), after.done - before.done)
            if drafting.refine is None:
                return log_q
            hidden = jnp.take_along_axis(judged.hidden, ask.both(nodes)[..., None], axis=1)
            fed = jnp.take_along_axis(judged.tree.tokens, nodes, axis=1)[:, 1:]
            seen = Seen(before.done, ahead(before.ids, fed, noise_of(before, levels - 1), before), hidden)
            return refined(log_q, drafting.refine, seen, after.ids, after.done, noise_of(after, levels - 1)).log_q

        return Drafter(start, propose, carry, len(self.template.parent), levels)


def noise_of(place: Place, count: int) -> Noise:
    """Of the positions from the first that is not drawn."""
    return place.noise(jnp.minimum(place.done[:, None] + jnp.arange(count), place.ids.shape[1] - 1))


def ranked(log_q: Float[Array, "B L V"], noise: Noise, ranks: int) -> tuple[jax.Array, jax.Array]:
    """Drafts (B, L, K) of each distribution without replacement, and what each was drawn from (B, L, K, V)."""
    kept, tokens, distributions = noise.kept(log_q.shape[-1]), [], []
    left = jnp.ones(log_q.shape, bool)
    for _ in range(ranks):
        # Codes that q excludes come after all others: of their noise the drafts before say nothing.
        some = log_q.max(axis=-1, keepdims=True) > -jnp.inf
        log_q = jax.nn.log_softmax(jnp.where(some, log_q, jnp.where(left, 0.0, -jnp.inf)))
        tokens.append(draw(log_q, kept))
        distributions.append(log_q)
        left &= jnp.arange(log_q.shape[-1]) != tokens[-1][..., None]
        log_q = jnp.where(left, log_q, -jnp.inf)
    return jnp.stack(tokens, axis=2), jnp.stack(distributions, axis=2)


def ahead(ids: Int[Array, "B N"], tokens: Int[Array, "B L"], noise: Noise, place: Place) -> Int[Array, "B N"]:
    """ids with tokens at the noise's positions, as far as they are not drawn."""
    positions = jnp.where(noise.positions >= place.done[:, None], noise.positions, ids.shape[1])
    return ids.at[jnp.arange(len(ids))[:, None], positions].set(tokens, mode="drop")


def fullest(judged: Judged, template: Template) -> jax.Array:
    """Of every depth the node (B, D) that knows most of what was drawn: below the path's end, or at least the best drafts'."""
    path = judged.path
    end = jnp.take_along_axis(path.nodes, path.length[:, None] - 1, axis=1)
    known = jnp.take_along_axis(ancestors(judged.tree.parent), end[..., None], axis=1)
    at = template.depth == np.arange(template.levels)[:, None]
    return jnp.where(at, 1 + known, 0).argmax(axis=2)


def of_siblings(settings: Settings, aids: Aids, rule: Rule) -> Siblings:
    """Trees of sibling drafts, by `siblings`."""
    return Siblings(settings.template, settings.drafts(aids), rule.proposals)


def refuse_branches(settings: Settings, model: Model) -> None:
    """Raise UserError for more siblings than there are codes."""
    if not 1 <= len(settings.branches) <= model.spec.sizes[0]:
        raise UserError(
            f"sampler.branches has {len(settings.branches)} shares, which is not within 1 and the {model.spec.sizes[0]} codes."
        )
