"""Speculative decoding with trees of drafts: one call of the model judges every branch, the path that stands is drawn.

The tree's root is the last token that is drawn; what the model gives at a node judges the node's children. Nodes see what
is drawn, themselves and the nodes above them (`models.masks.behind`), in rows of the cache behind the sequence; those on
the path are then copied to where they belong. Rows of a batch advance on their own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from generator.generator import Condition
from generator.sampling.calls import Caller, Revise, caller
from generator.sampling.distribution import Filters
from generator.sampling.interface import Model, SampleOutput
from generator.sampling.noise import Noise
from models.masks import Branches, ancestors
from models.tokens import Tokens


class Tree(NamedTuple):
    """Drafts that branch; node 0 is the root.

    Attributes:
      tokens: int32 (B, M).
      parent: int32 (B, M), -1 at the root; parents come before their children, elder siblings before younger ones.
      log_q: float32 (B, M, V), what each was drawn from, given its elder siblings; None for rules that do not ask.
    """

    tokens: Int[Array, "B M"]
    parent: Int[Array, "B M"]
    log_q: Any

    @property
    def depth(self) -> Int[Array, "B M"]:
        """Of every node; 0 at the root."""
        return ancestors(self.parent).sum(axis=1).astype(jnp.int32) - 1


class Walk(NamedTuple):
    """What stands of a tree.

    Attributes:
      taken: the root and the nodes that are drawn; siblings of one token may both be.
      token: what is drawn after the last of them.
    """

    taken: Bool[Array, "B M"]
    token: Int[Array, "B"]


class Place(NamedTuple):
    """Where the rows of a batch are between two calls.

    Attributes:
      ids: int32 (B, N), drawn before `done`.
      done: int32 (B,).
      noise: of the positions that the call's nodes are followed by is made of this: (positions) -> Noise.
    """

    ids: Int[Array, "B N"]
    done: Int[Array, "B"]
    noise: Callable[[jax.Array], Noise]

    @property
    def last(self) -> Int[Array, "B"]:
        """The last token that is drawn; 0 where there is none."""
        return jnp.take_along_axis(self.ids, jnp.maximum(self.done - 1, 0)[:, None], axis=1)[:, 0]


class Path(NamedTuple):
    """The nodes that are drawn, in order.

    Attributes:
      nodes: int32 (B, D), of each depth; of no meaning from `length` on.
      length: int32 (B,), the root counted: what is drawn after it is as many tokens.
    """

    nodes: Int[Array, "B D"]
    length: Int[Array, "B"]

    def positions(self, place: Place) -> Int[Array, "B D"]:
        """What is drawn after each node from a place on; beyond the sequence where there is no node."""
        depths = jnp.arange(self.nodes.shape[1])
        return jnp.where(depths < self.length[:, None], place.done[:, None] + depths, place.ids.shape[1])


class Judged(NamedTuple):
    """What a call gave of a tree.

    Attributes:
      tree: that was judged.
      hidden: (R, M, D), what the head was asked with.
      log_p: float32 (B, M, V), of what follows each node.
      path: what was drawn.
    """

    tree: Tree
    hidden: Float[Array, "R M D"]
    log_p: Float[Array, "B M V"]
    path: Path


class Rule(NamedTuple):
    """What decides which path stands.

    Attributes:
      walk: (log p (B, M, V) after every node, tree, noise of the positions after them) -> what stands.
      proposals: whether it asks for the distributions of drafts.
      independent: whether siblings must be drawn independently of each other.
    """

    walk: Callable[[jax.Array, Tree, Noise], Walk]
    proposals: bool
    independent: bool = False


class Drafter(NamedTuple):
    """What makes trees; its memory is whatever pytree it likes.

    Attributes:
      start: (place) -> memory.
      propose: (memory, place) -> (tree, memory).
      carry: (memory, what was judged, place before, place after) -> memory.
      nodes: of a tree, the root counted.
      levels: of the deepest tree, the root's counted.
    """

    start: Callable[[Place], Any]
    propose: Callable[[Any, Place], tuple[Tree, Any]]
    carry: Callable[[Any, Judged, Place, Place], Any]
    nodes: int
    levels: int


class State(NamedTuple):
    """Between two calls of the model."""

    turn: Int[Array, ""]
    ids: Int[Array, "B N"]
    done: Int[Array, "B"]
    memory: Any
    cache: Any
    accepted: Int[Array, "B N"]


def by_trees(
    generator: Model,
    condition: Condition,
    images: Int[Array, "B"],
    *,
    drafter: Callable[[Caller], Drafter],
    rule: Rule,
    seed: int,
    filters: Filters,
    scales: Float[np.ndarray, "N"],
    revise: Revise | None = None,
) -> SampleOutput:
    """Draw all tokens of every row, a path of a tree a call; traced whole, so that a batch is one program.

    Args:
      generator: with `scan_layers=False`, of tokens one after the other.
      condition: of each image.
      images: index of each image in its run, which with the seed decides its noise.
      drafter: what makes the trees, of how the model is asked.
      rule: what stands.
      seed: of the run.
      filters: temperature, top-k and the like.
      scales: guidance scale at each position.
      revise: (state, log p, positions) -> log p to go on with; for tokens that are known.
    """
    ask = caller(generator, condition, scales=scales, filters=filters, revise=revise)
    batch, count = len(images), generator.spec.positions
    drafts = drafter(ask)
    row, depths = jnp.arange(batch)[:, None], jnp.arange(drafts.levels)

    def place(state: State) -> Place:
        return Place(state.ids, state.done, lambda positions: Noise(seed, images, positions, state.turn))

    def call(state: State) -> State:
        here = place(state)
        tree, memory = drafts.propose(state.memory, here)
        depth = tree.depth
        positions = state.done[:, None] + depth  # that are drawn after the nodes
        inside = jnp.minimum(positions, count - 1)
        branches = Branches(jnp.minimum(state.done, count - 1), tree.parent, np.arange(drafts.nodes, dtype=np.int32))
        hidden, cache = ask(state.cache, tree.tokens, inside, branches)
        log_p = ask.log_p(hidden, inside)
        walk = rule.walk(log_p, tree, here.noise(positions))
        path = path_of(walk.taken, depth, drafts.levels)
        target = path.positions(here)
        cache = ask.settled(cache, path.nodes, target)
        below = jnp.roll(jnp.take_along_axis(tree.tokens, path.nodes, axis=1), -1, axis=1)
        drawn = jnp.where(depths == path.length[:, None] - 1, walk.token[:, None], below)
        done = jnp.minimum(state.done + path.length, count)
        state = State(
            state.turn + 1, state.ids.at[row, target].set(drawn, mode="drop"), done, memory, cache,
            state.accepted.at[:, state.turn].set(done - state.done),
        )  # fmt: skip
        return state._replace(memory=drafts.carry(memory, Judged(tree, hidden, log_p, path), here, place(state)))

    ids = jnp.zeros((batch, count), jnp.int32)
    state = State(jnp.int32(0), ids, jnp.zeros(batch, jnp.int32), (), ask.cache(drafts.nodes), ids)
    state = state._replace(memory=drafts.start(place(state)))
    state = jax.lax.while_loop(lambda state: (state.done < count).any(), call, state)
    calls = (state.accepted > 0).sum(axis=1)
    return SampleOutput(Tokens(state.ids[..., None]), calls + bool(ask.silent), (), state.accepted)


def path_of(taken: Bool[Array, "B M"], depth: Int[Array, "B M"], levels: int) -> Path:
    """The first taken node of each depth."""
    at = taken[:, None, :] & (depth[:, None, :] == jnp.arange(levels)[:, None])
    return Path(at.argmax(axis=2).astype(jnp.int32), at.any(axis=2).sum(axis=1).astype(jnp.int32))
