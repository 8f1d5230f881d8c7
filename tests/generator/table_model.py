"""A generator that is a table: the logits of every prefix, so that what a sampler should draw can be enumerated."""

import itertools

import jax.numpy as jnp
import numpy as np

from generator.layouts import raster
from models.masks import INFINITY, behind
from models.tokens import Grid, TokenSpec

UNWRITTEN, PATTERN = -2, 7919


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
        rows = jnp.full((batch, 1, self.layout.slots if slots is None else slots, 1), float(UNWRITTEN))
        return [(rows, rows)]

    def head(self, hidden):
        return hidden

    def extend(self, cache, x, slots, context):
        return self.hidden(cache, x, slots, context)

    def hidden(self, cache, x, slots, context, branches=None, unwritten=None):
        """Logits; NaN where a row is seen that nothing was written to, or two rows of one slot."""
        batch, slots = jnp.arange(len(x))[:, None], jnp.broadcast_to(jnp.asarray(slots), x.shape[:2])
        room = cache[0][0].shape[2]
        missing = ((0, 0), (0, 0), (0, max(self.layout.slots - room, 0)), (0, 0))
        tokens, places = (jnp.pad(rows, missing, constant_values=UNWRITTEN) for rows in cache[0])
        rows, visibility = slots, self.layout.visibility._replace(q_time=slots)
        if branches is not None:
            rows = jnp.broadcast_to(self.layout.slots + jnp.asarray(branches.nodes), slots.shape)
            visibility = behind(self.layout.visibility, branches)
        if unwritten is not None:
            visibility = visibility._replace(k_start=jnp.where(unwritten, INFINITY, visibility.k_start))
        tokens = tokens.at[batch, 0, rows, 0].set(x[..., 0])
        places = places.at[batch, 0, rows, 0].set(slots.astype(places.dtype))
        seen = visibility.as_array() & jnp.ones_like(rows, bool)[..., None]
        sound = ~(seen & (places[:, 0, :, 0] == UNWRITTEN)[:, None]).any(-1)
        of_slot = places[:, 0, :, 0, None] == jnp.arange(self.layout.slots)
        known = jnp.einsum("bnr,brs->bns", seen * 1.0, of_slot * 1.0)
        sound &= (known <= 1).all(-1)
        fed = jnp.einsum("bnr,brs,br->bns", seen * 1.0, of_slot * 1.0, tokens[:, 0, :, 0])
        numbers = self.prefixes(jnp.moveaxis(fed, 2, 0).astype(jnp.int32), jnp.moveaxis(known == 0, 2, 0))
        number = jnp.take_along_axis(jnp.stack(numbers, axis=2), slots[..., None], axis=2)[..., 0]
        logits = jnp.asarray(self.logits)[context[:, None], slots, number]
        logits = jnp.where(sound[..., None], logits, jnp.nan)
        return logits, [(tokens[:, :, :room], places[:, :, :room])]

    def prefixes(self, fed, hidden):
        """For every slot, the number of what it sees, of what all slots are fed with: 0 where they are hidden."""
        prefix, pattern, found = 0 * fed[0], 0, []
        for slot in range(self.layout.slots):
            prefix = prefix * self.spec.sizes[0] + fed[slot] if slot else prefix
            pattern = 2 * pattern + hidden[slot]
            found.append((prefix + PATTERN * pattern) % self.logits.shape[2])
        return found

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
