"""Tokens that must be the sequential sampler's own, of a trained generator: with the positions' noise, and greedy ones.

A call of a window and a call of one token may differ in the last bits, so that a near tie goes the other way; where tokens
differ, the two best scores are shown and must be such a tie, and all before it is compared.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained import CODES, SIDE, trained

from generator.sampling.distribution import Filters, target_distribution
from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.fixed_noise import FIXED_NOISE
from generator.sampling.interface import Aids
from generator.sampling.jacobi import FRESH, GUMBEL, MAXIMAL
from generator.sampling.noise import gumbel_noise
from generator.sampling.sequential import sequential
from generator.sampling.siblings import Siblings
from generator.sampling.speculative import speculative
from generator.sampling.templates import likely
from generator.sampling.trees import by_trees
from generator.sampling.walks import RULES
from jobs.feeds import TokenFeed

SEED, TIE = 3, 1e-4
IMAGES = jnp.array([4, 0, 11, 7, 5, 30, 2], jnp.int32)
COUNT = SIDE * SIDE
OFF, ON = np.ones(COUNT, np.float32), np.full(COUNT, 2.5, np.float32)
LATE = np.where(np.arange(COUNT) < 5, 1, 3).astype(np.float32)


def by_window(method, window, first, model, labels, images, **options):
    frequencies = jnp.full((len(images), COUNT, CODES), -jnp.log(CODES)).at[..., 0].add(1.0)
    drafts = partial(FIRST_DRAFTS[first].of, Aids(frequencies=jax.nn.log_softmax(frequencies)))
    return speculative(model, labels, images, method=method, first_drafts=drafts, window=window, **options)


def by_siblings(rule, template, first, model, labels, images, **options):
    drafter = Siblings(template, partial(FIRST_DRAFTS[first].of, Aids()), RULES[rule].proposals)
    return by_trees(model, labels, images, drafter=drafter, rule=RULES[rule], **options)


def one_by_one(model, labels, images, **options):
    return sequential(model, labels, images, TokenFeed(), **options)


def drawn(sampler, images, filters, scales):
    case = trained()

    @jax.jit
    def run(params, images):
        out = sampler(case.sampling.merge(params), images % 2, images, seed=SEED, filters=filters, scales=scales)
        return out.tokens.ids[..., 0], out.calls

    return tuple(np.asarray(x) for x in run(case.sampling_params, images))


def scores(ids, images, filters, scales):
    """What each token is the argmax of (B, N, V), given those before it: log p and noise, or logits where it is greedy."""
    case, labels = trained(), images % 2
    both = [
        case.generator.logits(jnp.asarray(ids)[..., None], c) for c in (labels, jnp.full_like(labels, case.classes))
    ]
    if filters.temperature == 0:
        return np.asarray(both[1] + scales[:, None] * (both[0] - both[1]))
    positions = jnp.broadcast_to(jnp.arange(COUNT), ids.shape)
    return np.asarray(target_distribution(*both, scales, filters) + gumbel_noise(SEED, images, positions, CODES))


def same_but_for_ties(found, expected, images, filters, scales):
    """How many rows part from the others at a near tie."""
    parted = np.flatnonzero((found != expected).any(axis=1))
    for row in parted:
        at = int((found[row] != expected[row]).argmax())
        best = np.sort(scores(expected, images, filters, scales)[row, at])[-2:]
        print(f"image {images[row]}, position {at}: {best[1]:.7f} and {best[0]:.7f}")
        assert best[1] - best[0] < TIE
    return len(parted)


FILTERS = {
    "plain": Filters(),
    "temperature and top-k": Filters(temperature=1.2, top_k=5),
    "top-p": Filters(top_p=0.8),
    "min-p": Filters(temperature=1.5, min_p=0.1),
    "greedy": Filters(temperature=0.0),
}
WIDE, CHAIN = likely(10, (0.5, 0.2, 0.1)), likely(5, (0.8,))
WITH_NOISE = [  # sampler, filters, guidance
    (partial(by_window, FIXED_NOISE, 1, "uniform"), "plain", OFF),
    (partial(by_window, FIXED_NOISE, 4, "above"), "temperature and top-k", ON),
    (partial(by_window, FIXED_NOISE, 7, "sample_left"), "top-p", LATE),
    (partial(by_window, FIXED_NOISE, COUNT, "repeat_left"), "min-p", ON),
    (partial(by_window, FIXED_NOISE, 5, "frequency"), "plain", LATE),
    (partial(by_siblings, "fixed_noise", WIDE, "uniform"), "plain", OFF),
    (partial(by_siblings, "fixed_noise", WIDE, "sample_left"), "temperature and top-k", LATE),
    (partial(by_siblings, "fixed_noise", CHAIN, "above"), "top-p", ON),
    (partial(by_siblings, "fixed_noise", likely(24, (0.5, 0.3)), "repeat_left"), "min-p", OFF),
]  # fmt: skip
GREEDY = [
    (partial(by_window, FIXED_NOISE, 6, "above"), "greedy", OFF),
    (partial(by_window, FRESH, 4, "uniform"), "greedy", ON),
    (partial(by_window, GUMBEL, 6, "sample_left"), "greedy", OFF),
    (partial(by_window, MAXIMAL, COUNT, "repeat_left"), "greedy", LATE),
    (partial(by_window, MAXIMAL, 3, "above"), "greedy", OFF),
    (partial(by_siblings, "fixed_noise", WIDE, "above"), "greedy", ON),
    (partial(by_siblings, "multi_round", WIDE, "uniform"), "greedy", LATE),
    (partial(by_siblings, "multi_round", CHAIN, "sample_left"), "greedy", OFF),
]
CASES = WITH_NOISE + GREEDY


@pytest.fixture(scope="module")
def references():
    """The sequential sampler's tokens of seven images, as they are asked for."""
    known = {}

    def reference(filters, scales):
        key = (filters, scales.tobytes())
        if key not in known:
            known[key] = drawn(one_by_one, IMAGES, FILTERS[filters], scales)[0]
        return known[key]

    return reference


def test_sets_of_options_do_matter(references):
    assert len({references(filters, ON).tobytes() for filters in ("plain", "greedy")}) == 2
    assert (references("plain", OFF) != references("plain", LATE)).any()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_batch_has_the_sequential_samplers_tokens(references, number):
    sampler, filters, scales = CASES[number]
    found, calls = drawn(sampler, IMAGES, FILTERS[filters], scales)
    ties = same_but_for_ties(found, references(filters, scales), IMAGES, FILTERS[filters], scales)
    print(f"{filters}: {ties} near ties of {found.size} tokens, {calls.mean():.1f} calls")
    assert ties <= 1
    assert (calls <= COUNT).all()


@pytest.mark.parametrize(("number", "row"), [(1, 0), (6, 3), (10, 6), (15, 2)])
def test_an_image_alone_has_the_tokens_that_it_has_in_a_batch(references, number, row):
    sampler, filters, scales = CASES[number]
    image, expected = IMAGES[row : row + 1], references(filters, scales)[row : row + 1]
    for way in (sampler, one_by_one):
        found = drawn(way, image, FILTERS[filters], scales)[0]
        assert same_but_for_ties(found, expected, image, FILTERS[filters], scales) == 0
