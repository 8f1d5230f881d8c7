"""What samplers draw from a `TableModel`, against what they should."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chisquare

from generator.sampling.distribution import Filters
from generator.sampling.sequential import sequential
from jobs.feeds import TokenFeed

SAMPLES, ROWS = 200_001, 3
SCALES = np.array([1.0, 1.5, 2.0, 0.5], np.float32)
FILTERS = Filters(temperature=1.3, top_k=0, top_p=1.0)


def sampled(run, samples=SAMPLES):
    """What is drawn, in batches of three rows."""

    @jax.jit
    def all_groups(images):
        return jax.vmap(lambda images: run(jnp.zeros(ROWS, jnp.int32), images))(images)

    return all_groups(jnp.arange(samples).reshape(-1, ROWS))


def by_sequence(table, tokens):
    """Share of every sequence (V ** N,)."""
    codes, count = table.spec.sizes[0], table.spec.positions
    numbers = np.asarray(tokens).reshape(-1, count) @ codes ** np.arange(count)[::-1]
    return np.bincount(numbers, minlength=codes**count) / len(numbers)


def distance(table, tokens):
    """Total variation between what was drawn and the truth."""
    return (
        np.abs(by_sequence(table, tokens) - table.probabilities(SCALES, FILTERS.temperature, FILTERS.top_k)).sum() / 2
    )


def likelihood(table, tokens):
    """p of Pearson's chi-squared test; sees a bias that is still within the noise of `distance`."""
    expected = len(tokens.reshape(-1, table.spec.positions)) * table.probabilities(SCALES, FILTERS.temperature, 0)
    return chisquare(by_sequence(table, tokens) * expected.sum(), expected, sum_check=False).pvalue


def sequentially(table, seed=0, samples=SAMPLES):
    """Tokens that the sequential sampler draws."""

    def run(labels, images):
        return sequential(table, labels, images, TokenFeed(), seed=seed, filters=FILTERS, scales=SCALES).tokens.ids

    return sampled(run, samples)
