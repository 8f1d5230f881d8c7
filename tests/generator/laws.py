"""What samplers of a `TableModel` draw, against its enumerated law; in batches of three rows, which advance unequally."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chisquare
from table_model import TableModel

from generator.sampling.distribution import Filters
from generator.sampling.sequential import sequential
from jobs.feeds import TokenFeed

SAMPLES, ROWS = 200_001, 3
SCALES = np.array([1.0, 1.5, 2.0, 0.5], np.float32)
FILTERS = Filters(temperature=1.3, top_k=0, top_p=1.0)
LIMIT = 1.5  # times the floor


def scales_of(table: TableModel) -> np.ndarray:
    """Guidance that differs by position, the conditional rows alone at the first."""
    return SCALES[: table.spec.positions]


def frequencies(table: TableModel, batch: int) -> jax.Array:
    """Of nothing in particular."""
    shares = np.random.default_rng(5).dirichlet(np.ones(table.spec.sizes[0]), table.spec.positions)
    return jnp.log(jnp.broadcast_to(jnp.asarray(shares, jnp.float32), (batch, *shares.shape)))


def sampled(run, seed=0, samples=SAMPLES):
    """What (labels, images) -> anything gives, of batches of three rows."""

    @jax.jit
    def all_groups(images):
        return jax.vmap(lambda images: run(jnp.zeros(ROWS, jnp.int32), images))(images)

    return all_groups(jnp.arange(samples).reshape(-1, ROWS) + seed * samples)


def by_sequence(table: TableModel, tokens) -> np.ndarray:
    """Share of every sequence (V ** N,)."""
    codes, count = table.spec.sizes[0], table.spec.positions
    numbers = np.asarray(tokens).reshape(-1, count) @ codes ** np.arange(count)[::-1]
    return np.bincount(numbers, minlength=codes**count) / len(numbers)


def distance(table: TableModel, tokens) -> float:
    """Total variation between what was drawn and the truth."""
    truth = table.probabilities(scales_of(table), FILTERS.temperature, FILTERS.top_k)
    return np.abs(by_sequence(table, tokens) - truth).sum() / 2


def likelihood(table: TableModel, tokens) -> float:
    """p of Pearson's chi-squared test; sees a bias that is still within the noise of `distance`."""
    truth = table.probabilities(scales_of(table), FILTERS.temperature, FILTERS.top_k)
    count = np.asarray(tokens).size // table.spec.positions
    return chisquare(by_sequence(table, tokens) * count, truth * count, sum_check=False).pvalue


def one_by_one(table: TableModel, seed=1, samples=SAMPLES):
    """The sequential sampler's tokens (samples / 3, 3, N, 1)."""

    def run(labels, images):
        scales = scales_of(table)
        return sequential(table, labels, images, TokenFeed(), seed=seed, filters=FILTERS, scales=scales).tokens.ids

    return sampled(run, samples=samples)


def noise_floor(table: TableModel) -> float:
    """The distance of the sequential sampler: noise, on average, as that of one seed is itself off by a fifth."""
    return float(np.mean([distance(table, one_by_one(table, seed=seed)) for seed in (1, 2, 3, 4)]))
