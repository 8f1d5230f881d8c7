"""Pairs of tokens and likelihoods of what a trained generator's samplers draw, each with randomness of its own.

Of every image the shares of all pairs of codes that are so far apart, and its log p, are what its sampler and the
sequential one may differ in; a difference of means is measured in their covariance, so that it is chi-square distributed
though the pairs of an image depend on each other.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from test_speculative import WRONG
from trained import CODES, SIDE, trained

from generator.sampling.distribution import Filters
from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.interface import Aids
from generator.sampling.jacobi import FRESH, MAXIMAL
from generator.sampling.sequential import sequential
from generator.sampling.siblings import Siblings
from generator.sampling.speculative import speculative
from generator.sampling.templates import likely
from generator.sampling.trees import by_trees
from generator.sampling.walks import RULES
from jobs.feeds import TokenFeed

IMAGES, BATCH, LEVEL = 10_000, 2000, 1e-4  # of each sampler, of a call; of a test
SCALES = np.ones(SIDE * SIDE, np.float32)
UNIFORM = partial(FIRST_DRAFTS["uniform"].of, Aids())
PAIRS = {"distance 1": (0, 1), "distance 4, above": (1, 0), "distance 5": (1, 1)}  # rows and columns apart


def by_window(method, model, labels, images, **options):
    return speculative(model, labels, images, method=method, first_drafts=UNIFORM, window=6, **options)


def by_siblings(model, labels, images, **options):
    drafter = Siblings(likely(10, (0.5, 0.2, 0.1)), UNIFORM, proposals=True)
    return by_trees(model, labels, images, drafter=drafter, rule=RULES["multi_round"], **options)


SAMPLERS = {
    "jacobi": partial(by_window, FRESH),
    "coupled_maximal": partial(by_window, MAXIMAL),
    "siblings": by_siblings,
}


def drawn(sampler, seed):
    """Tokens (IMAGES, N) of images of both classes, and the log p that the model gives them, in nats a token."""
    case = trained()

    @jax.jit
    def run(images):
        labels = images % 2
        out = sampler(
            case.sampling.merge(case.sampling_params), labels, images, seed=seed, filters=Filters(), scales=SCALES
        )
        ids = out.tokens.ids
        log_p = jax.nn.log_softmax(case.generator.logits(ids, labels))
        return ids[..., 0], jnp.take_along_axis(log_p, ids, axis=-1).mean(axis=(1, 2)), out.calls

    parts = [run(jnp.arange(BATCH, dtype=jnp.int32) + start) for start in range(0, IMAGES, BATCH)]
    return tuple(np.concatenate(part) for part in zip(*parts))


def pair_shares(ids, apart):
    """Of each image the share of every pair of codes (IMAGES, V^2 - 1): the last follows from the others."""
    rows, columns = apart
    grid = ids.reshape(-1, SIDE, SIDE)
    pairs = (grid[:, : SIDE - rows, : SIDE - columns] * CODES + grid[:, rows:, columns:]).reshape(len(ids), -1)
    return (pairs[..., None] == np.arange(CODES**2 - 1)).mean(axis=1)


def found_by(ids, log_p, reference):
    """p-values of all that is compared, by name."""
    found = {}
    for name, apart in PAIRS.items():
        a, b = pair_shares(ids, apart), pair_shares(reference[0], apart)
        difference, spread = a.mean(axis=0) - b.mean(axis=0), np.cov(a.T) / len(a) + np.cov(b.T) / len(b)
        found[name] = stats.chi2.sf(difference @ np.linalg.solve(spread, difference), len(difference))
    difference, spread = log_p.mean() - reference[1].mean(), log_p.var() / len(log_p) + reference[1].var() / len(log_p)
    found["log p"] = 2 * stats.norm.sf(abs(difference) / np.sqrt(spread))
    return found


def least_effects():
    """What is found with probability 0.9: a difference of means in standard deviations of one image, of pairs and of log p."""
    size = CODES**2 - 1
    bound = stats.chi2.isf(LEVEL, size)
    pairs = optimize.brentq(lambda strength: stats.ncx2.sf(bound, size, strength) - 0.9, 1e-3, 1e3)
    log_p = (stats.norm.isf(LEVEL / 2) + stats.norm.isf(0.1)) ** 2
    return [float(np.sqrt(2 * strength / IMAGES)) for strength in (pairs, log_p)]


@pytest.fixture(scope="module")
def reference():
    def sampler(model, labels, images, **options):
        return sequential(model, labels, images, TokenFeed(), **options)

    return drawn(sampler, seed=1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pairs_and_likelihoods_are_the_sequential_samplers(reference, name):
    ids, log_p, calls = drawn(SAMPLERS[name], seed=2)
    found = found_by(ids, log_p, reference)
    told = ", ".join(f"{what} {p:.3f}" for what, p in found.items())
    print(f"{name}: p-values {told}; {calls.mean():.1f} calls of {SIDE * SIDE}")
    assert calls.mean() < 0.95 * SIDE * SIDE
    assert min(found.values()) > LEVEL


def test_a_mistake_is_found_with_as_many_images(reference):
    pairs, likelihood = least_effects()
    spread = reference[1].std()
    print(f"found with probability 0.9: means {pairs:.3f} standard deviations of an image apart in some weighing of its "
          f"pairs, {likelihood:.3f} in log p, which is {likelihood * spread:.4f} nats a token")  # fmt: skip
    ids, log_p, _ = drawn(partial(by_window, WRONG["keeps the old q"]), seed=2)
    found = found_by(ids, log_p, reference)
    print("keeps the old q: p-values", {what: f"{p:.1e}" for what, p in found.items()},
          f"log p {log_p.mean():.4f} instead of {reference[1].mean():.4f}")  # fmt: skip
    assert min(found.values()) < 1e-3 * LEVEL
