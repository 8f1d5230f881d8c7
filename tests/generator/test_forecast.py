"""Forecasting heads: what they leave alone, what they learn, and that drafts of theirs change no token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from generator.forecast import REACH, Forecast, ForecastLearner, forecast_hidden
from generator.sampling.calls import caller
from generator.sampling.distribution import Filters
from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.fixed_noise import FIXED_NOISE
from generator.sampling.guidance import unpaired
from generator.sampling.interface import Aids
from generator.sampling.sequential import sequential
from generator.sampling.speculative import Seen, speculative
from jobs.feeds import TokenFeed
from models.modules import describe

WINDOW, ROW = 6, 4
SCALES = np.full(12, 1.5, np.float32)


@pytest.fixture(scope="module")
def case(make):
    return make(scale=5.0, depth=1)


@pytest.fixture(scope="module")
def heads(case):
    width = case.sampling_generator.transformer.of.width
    return describe(lambda rngs: Forecast(width=width, row=ROW, hidden=32, rngs=rngs))


def asked(model, labels):
    return caller(model, labels, scales=SCALES, filters=Filters())


def seen_by(ask, ids, first):
    """A call of all tokens, of which a window is looked at."""
    everywhere = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden = jax.jit(lambda ids: ask(ask.cache(), jnp.roll(ids, 1, axis=1), everywhere)[0])(ids)
    window = ask.both(first[:, None] + jnp.arange(WINDOW))
    return Seen(first, ids, jnp.take_along_axis(hidden, window[..., None], axis=1))


def test_states_near_which_nothing_changed_stay(case, heads):
    model, forecast = case.sampling_generator, heads.merge(heads.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, model.spec.sizes[0], (3, 12)))
    ask, first = asked(model, jnp.arange(3)), jnp.array([0, 2, 6])
    seen = seen_by(ask, ids, first)
    positions = first[:, None] + jnp.arange(WINDOW)
    np.testing.assert_array_equal(forecast_hidden(forecast, ask, seen, ids, positions), seen.hidden)

    # A token that changed is noticed within the reach of one row and one, and nowhere else.
    changed = ids.at[:, 3].set((ids[:, 3] + 1) % model.spec.sizes[0])
    found = forecast_hidden(forecast, ask, seen, changed, positions)
    differs = np.asarray(unpaired((found != seen.hidden).any(-1))[0])
    distance = np.asarray(positions) - 3
    np.testing.assert_array_equal(differs, np.isin(distance, [1, 2, ROW - 1, ROW, ROW + 1]))


def test_positions_beyond_are_told_apart_up_to_the_reach(case, heads):
    params = heads.init(jax.random.key(0))
    params["ahead"] = jax.random.normal(jax.random.key(1), params["ahead"].shape)
    model, forecast = case.sampling_generator, heads.merge(params)
    ids = jnp.zeros((1, 12), jnp.int32)
    ask = asked(model, jnp.zeros(1, jnp.int32))
    seen = seen_by(ask, ids, jnp.zeros(1, jnp.int32))
    found = forecast_hidden(forecast, ask, seen, ids, WINDOW + jnp.arange(12 - WINDOW)[None])
    assert 12 - WINDOW < REACH
    flat = np.asarray(found[0])
    assert (np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(len(flat)) > 0).all()


def test_what_is_learned_brings_drafts_nearer_and_changes_no_token(case, heads):
    """Trained on what the generator itself draws; the tokens stay the sequential sampler's at every step of it."""
    labels = jnp.arange(64) % 3

    def drawn(params, labels, images):
        model = case.sampling.merge(params)
        return sequential(model, labels, images, TokenFeed(), seed=0, filters=Filters(), scales=SCALES).tokens.ids

    ids = jax.jit(drawn)(case.sampling_params, labels, jnp.arange(64))
    learner = ForecastLearner(heads, case.sampling, case.sampling_params, asked, WINDOW)
    params, _ = learner.init(jax.random.key(0))
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)
    batch = {"ids": ids, "label": labels}

    @jax.jit
    def step(params, state, frozen, key):
        def loss(params):
            found, (_, metrics) = learner.loss({**params, **frozen}, {}, batch, key, jnp.int32(0))
            return found, metrics

        gradient, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, metrics

    heldout = jax.jit(learner.heldout)
    before = heldout(params["forecast"], batch, **learner.frozen)
    for number in range(150):
        params, state, _ = step(params, state, learner.frozen, jax.random.key(number))
    after = heldout(params["forecast"], batch, **learner.frozen)
    assert after["loss"] < 0.8 * before["loss"]
    assert after["next"] < after["next_stale"]

    @jax.jit
    def decoded(frozen, forecast):
        model = case.sampling.merge(frozen)
        shares = jnp.full((64, 12, model.spec.sizes[0]), -jnp.log(model.spec.sizes[0]))
        drafts = partial(FIRST_DRAFTS["forecast"].of, Aids(frequencies=shares, forecast=heads.merge(forecast)))
        return speculative(model, labels, jnp.arange(64), method=FIXED_NOISE, first_drafts=drafts, window=WINDOW, seed=0,
                           filters=Filters(), scales=SCALES)  # fmt: skip

    untrained, trained = (
        decoded(case.sampling_params, of) for of in (heads.init(jax.random.key(5)), params["forecast"])
    )
    np.testing.assert_array_equal(trained.tokens.ids, ids)
    np.testing.assert_array_equal(untrained.tokens.ids, ids)
    assert trained.calls.mean() < untrained.calls.mean()
