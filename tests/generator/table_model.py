"""A generator that is a table: the logits of every prefix, so that what a sampler should draw can be enumerated."""

import itertools

import jax.numpy as jnp
import numpy as np

from generator.layouts import raster
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
        tokens = jnp.zeros((batch, 1, self.layout.slots if slots is None else slots, 1))
        return [(tokens, tokens)]

    def extend(self, cache, x, slots, context):
        rows, slots = jnp.arange(len(x))[:, None], jnp.broadcast_to(jnp.asarray(slots), x.shape[:2])
        tokens, other = cache[0]
        missing = self.layout.slots - tokens.shape[2]
        tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, missing), (0, 0))).at[rows, 0, slots, 0].set(x[..., 0])
        prefix, prefixes = jnp.zeros(len(x), jnp.int32), []
        for slot in range(self.layout.slots):
            prefix = prefix * self.spec.sizes[0] + tokens[:, 0, slot, 0].astype(jnp.int32) if slot else prefix
            prefixes.append(prefix)
        of_slots = jnp.stack(prefixes, axis=1)[rows, slots]
        return jnp.asarray(self.logits)[context[:, None], slots, of_slots], [(tokens[:, :, : -missing or None], other)]

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
