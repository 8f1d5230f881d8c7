"""Cases of attention, and a dense softmax in float64 to compare with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import masks as benchmarks
from models import masks
from models.kernels.reference import error, reference
from models.masks import Visibility


class Case(NamedTuple):
    """A mask, and what else there is: samples, heads of queries and of keys, their width."""

    visibility: Visibility
    batch: int = 1
    heads: int = 2
    key_heads: int = 2
    width: int = 32


def scales(sides):
    return masks.groups(np.repeat(np.arange(len(sides)), np.square(sides)).astype(np.int32))


def some_blind(length):
    """Causal, but every seventh query sees nothing, and nobody sees any fifth key."""
    causal, slots = masks.causal(length), np.arange(length)
    blind = np.where(slots % 7 == 3, -1, slots).astype(np.int32)
    return masks.among(causal._replace(q_time=blind), slots % 5 != 0)


def samples(*rows):
    return Visibility(*(np.stack(columns) for columns in zip(*rows)))


RNG = np.random.default_rng(0)
SLOTS = np.arange(300, dtype=np.int32)
MASKS = benchmarks.MASKS | {  # of this field, at its lengths
    "a mask for each sample": masks.random_order(np.stack([np.roll(SLOTS, 7 * row) for row in range(4)])),
}
CASES = {
    "one slot": Case(masks.causal(1)),
    "seven slots, wide heads": Case(masks.causal(7), width=256),
    "causal, a prime": Case(masks.causal(257), batch=2, heads=4, key_heads=2, width=64),
    "bidirectional": Case(masks.bidirectional(131), heads=3, key_heads=1),
    "VAR's ten scales": Case(scales([1, 2, 3, 4, 5, 6, 8, 10, 13, 16]), width=64),
    "packed documents": Case(masks.packed(np.repeat(np.arange(7), 100).astype(np.int32))),
    "window": Case(masks.window(401, 30)),
    "prefix": Case(masks.prefix(300, 120)),
    "clean and noisy": Case(masks.clean_and_noisy((np.arange(150) // 16).astype(np.int32))),
    "next neighbour": Case(masks.groups(np.add(*np.divmod(np.arange(16 * 16, dtype=np.int32), 16)).astype(np.int32))),
    "an order for each sample": Case(
        masks.random_order(np.stack([RNG.permutation(300) for _ in range(3)]).astype(np.int32)), batch=3, key_heads=1
    ),
    "another mask for each sample": Case(
        samples(masks.causal(300), masks.window(300, 9), some_blind(300), masks.bidirectional(300)), batch=4
    ),
    "some see nothing": Case(some_blind(300)),
    "nobody sees anything": Case(masks.among(masks.causal(200), np.zeros(200, bool))),
    "a window of queries over a cache": Case(
        masks.cache(SLOTS[[[100, 101, 102], [7, 8, 9]]], SLOTS, np.array([[102], [9]]) >= SLOTS), batch=2
    ),
}


def drawn(case, dtype, *, seed=1):
    """Queries, keys, values, and the gradient of what comes out."""
    rng, (T, S) = np.random.default_rng(seed), case.visibility.as_array().shape[-2:]
    queries, keys = (case.batch, T, case.heads, case.width), (case.batch, case.key_heads, S, case.width)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in (queries, keys, keys, queries))


def passes(run, arrays, visibility):
    """Output and gradients."""
    *qkv, gradient = arrays
    out, back = jax.vjp(lambda q, k, v: run(q, k, v, visibility, scale=q.shape[-1] ** -0.5), *qkv)
    return (out, *back(gradient))


def worst(found, arrays, case):
    """The greatest error of output and gradients."""
    return error(found, reference(*arrays, case.visibility))
