"""Speculative samplers: the sequential sampler's distribution, and where noise is shared its very tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import FILTERS, LIMIT, ROWS, SCALES, distance, frequencies, noise_floor, sampled
from table_model import TableModel

from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.fixed_noise import FIXED_NOISE
from generator.sampling.interface import Aids
from generator.sampling.jacobi import ACCEPT, FRESH, GUMBEL, MAXIMAL, REPLACE
from generator.sampling.rules import likelihood
from generator.sampling.speculative import Drafts, speculative

METHODS = {"fixed_noise": FIXED_NOISE, "jacobi": FRESH, "gumbel": GUMBEL, "maximal": MAXIMAL}


@pytest.fixture(scope="module")
def table():
    return TableModel()


@pytest.fixture(scope="module")
def floor(table):
    return noise_floor(table)


def test_the_law_of_all_sequences_is_enumerated(table):
    law = table.probabilities(SCALES, FILTERS.temperature, FILTERS.top_k)
    assert law.shape == (81,)
    assert law.sum() == pytest.approx(1, abs=1e-12)
    assert law.min() > 0


def decode(table, method, first, window):
    def run(labels, images):
        aids = Aids(frequencies=frequencies(table, ROWS))
        drafts = partial(FIRST_DRAFTS[first].of, aids)
        out = speculative(table, labels, images, method=method, first_drafts=drafts, window=window, seed=0,
                          filters=FILTERS, scales=SCALES)  # fmt: skip
        return out.tokens.ids, out.accepted

    return sampled(run)


@pytest.mark.parametrize(
    ("first", "window"), [("uniform", 3), ("frequency", 4), ("repeat_left", 2), ("sample_left", 3), ("above", 3)]
)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_drawn_has_the_models_distribution(table, floor, name, first, window):
    tokens, accepted = decode(table, METHODS[name], first, window)
    accepted = np.asarray(accepted)
    assert (accepted.sum(-1) == table.spec.positions).all()
    assert len(np.unique((accepted > 0).sum(-1))) > 1, "rows advance alike"
    assert distance(table, tokens) < LIMIT * floor


# ---- what is wrong is found


def keeps_old_q(log_p, drafts, verdict, noise):
    carried = MAXIMAL.carry(log_p, drafts, verdict, noise)
    return Drafts(carried.tokens, jnp.where(verdict.stands[..., None], drafts.log_q, log_p))


def accepts_more(log_p, drafts, noise):
    ratio = jnp.exp(likelihood(log_p, drafts.tokens) - likelihood(drafts.log_q, drafts.tokens))
    return FRESH.verify(log_p, drafts, noise)._replace(stands=noise.uniform(ACCEPT) < ratio + 0.02)


def residual_of_less_than_one(log_p, drafts, noise):
    left = jnp.cumsum(jnp.maximum(jnp.exp(log_p) - jnp.exp(drafts.log_q), 0), axis=-1)
    drawn = (noise.uniform(REPLACE)[..., None] > left).sum(axis=-1)
    return FRESH.verify(log_p, drafts, noise)._replace(instead=jnp.minimum(drawn, log_p.shape[-1] - 1))


def temperature_twice(log_p, drafts, noise):
    return FRESH.verify(jax.nn.log_softmax(log_p / FILTERS.temperature), drafts, noise)


WRONG = {
    "keeps the old q": MAXIMAL._replace(carry=keeps_old_q),
    "accepts more": FRESH._replace(verify=accepts_more),
    "residual of less than one": FRESH._replace(verify=residual_of_less_than_one),
    "temperature twice": FRESH._replace(verify=temperature_twice),
}


@pytest.mark.parametrize("name", WRONG)
def test_known_mistakes_are_found(table, floor, name):
    tokens, _ = decode(table, WRONG[name], "uniform", 3)
    found = distance(table, tokens) / floor
    print(f"{name}: {found:.1f} times the floor")
    assert found > LIMIT
