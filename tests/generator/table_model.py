"""A generator that is a table: the logits of every prefix, so that what a sampler should draw can be enumerated."""

import itertools

import jax.numpy as jnp
import numpy as np

from generator.layouts import raster
from models.masks import behind, visible
from models.tokens import Grid, TokenSpec


class TableModel:
    """Two tables, one of the condition 0 and one of no condition, over all prefixes of N tokens of V codes.

    Its cache holds the tokens that were fed, by slot: a draft that was refused and is read later gives other logits.
    """

    def __init__(self, *, codes=3, shape=(2, 2), seed=0, spread=1.5):
        self.spec = TokenSpec(Grid(*shape), (codes,))
        self.layout = raster(self.spec, 1)
        self.condition = self
        prefixes = codes ** (self.spec.positions - 1)
        rng = np.random.default_rng(seed)
        self.logits = (spread * rng.normal(size=(2, self.spec.positions, prefixes, codes))).astype(np.float32)

    def null(self, condition):
        return jnp.ones_like(condition)

    def start(self, condition):
        return jnp.full((len(condition), 1, 1), -1)

    def embed(self, ids):
        return ids

    def context(self, condition):
        return condition

    def init_cache(self, batch, slots=None):
        rows = jnp.zeros((batch, 1, self.layout.slots if slots is None else slots, 1))
        return [(rows, rows)]

    def head(self, hidden):
        return hidden

    def extend(self, cache, x, slots, context):
        return self.hidden(cache, x, slots, context)

    def hidden(self, cache, x, slots, context, branches=None):
        batch, slots = jnp.arange(len(x))[:, None], jnp.broadcast_to(jnp.asarray(slots), x.shape[:2])
        rows, (tokens, places) = slots, cache[0]
        missing = max(self.layout.slots - tokens.shape[2], 0)
        tokens, places = (jnp.pad(rows, ((0, 0), (0, 0), (0, missing), (0, 0))) for rows in cache[0])
        if branches is None:
            visibility = self.layout.visibility
            visibility = visibility._replace(q_time=slots)
        else:
            rows = jnp.broadcast_to(self.layout.slots + jnp.asarray(branches.nodes), slots.shape)
            visibility = behind(self.layout.visibility, branches)
        tokens = tokens.at[batch, 0, rows, 0].set(x[..., 0])
        places = places.at[batch, 0, rows, 0].set(slots.astype(places.dtype))
        seen = visible(visibility) & jnp.ones_like(rows, bool)[..., None]
        # What is seen of every slot of the prefix; of two rows with one slot both, which is no prefix of the table.
        of_slot = places[:, 0, :, 0, None] == jnp.arange(1, self.layout.slots)
        prefix = jnp.einsum("bnr,brs,br->bns", seen * 1.0, of_slot * 1.0, tokens[:, 0, :, 0])
        digits = self.spec.sizes[0] ** (slots[..., None] - jnp.arange(1, self.layout.slots))
        number = jnp.where(jnp.arange(1, self.layout.slots) <= slots[..., None], prefix * digits, 0).sum(-1)
        logits = jnp.asarray(self.logits)[context[:, None], slots, number.astype(jnp.int32)]
        return logits, [(tokens[:, :, : -missing or None], places[:, :, : -missing or None])]

    def probabilities(self, scales, temperature, top_k):
        """Of every sequence (V ** N,) in lexical order, in float64."""
        codes, count = self.spec.sizes[0], self.spec.positions
        found = np.ones(codes**count)
        for number, sequence in enumerate(itertools.product(range(codes), repeat=count)):
            prefix = 0
            for position, code in enumerate(sequence):
                conditional, unconditional = self.logits[:, position, prefix].astype(np.float64)
                logits = (unconditional + scales[position] * (conditional - unconditional)) / temperature
                kept = np.where(logits >= np.sort(logits)[-top_k or 0], np.exp(logits), 0)
                found[number] *= kept[code] / kept.sum()
                prefix = prefix * codes + code
        return found
