"""Generators of captions: a prefix of features, padded on the left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generator.conditioning import Captions, left_padded
from generator.sampling.distribution import Filters, target_distribution
from generator.sampling.noise import gumbel_noise
from generator.sampling.sequential import sequential

TEXT = {"condition": {"name": "text", "entries": 5, "features": 6}}
LENGTHS = [5, 1, 3]


@pytest.fixture
def case(make):
    return make(height=2, width=3, **TEXT)


@pytest.fixture
def captions():
    rng = np.random.default_rng(4)
    mask = (np.arange(5) < np.array(LENGTHS)[:, None]).astype(np.int32)
    padded = left_padded(rng.normal(size=(3, 5, 6)).astype(np.float32), mask)
    return jax.tree.map(jnp.asarray, padded)


@pytest.fixture
def ids():
    return jnp.asarray(np.random.default_rng(5).integers(0, 17, (3, 6, 1)), jnp.int32)


def logits(case, ids, captions):
    return np.asarray(jax.jit(lambda p: case.description.merge(p).logits(ids, captions))(case.params))


def test_captions_are_turned_so_that_they_end_where_tokens_begin():
    features = np.arange(12, dtype=np.float32).reshape(1, 4, 3) + 1
    turned = left_padded(features, np.array([[1, 1, 0, 0]], np.int32))
    np.testing.assert_array_equal(turned.present, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(turned.features[0, 2:], features[0, :2])
    np.testing.assert_array_equal(turned.features[0, :2], 0)


def test_padding_is_seen_by_nobody(case, captions, ids):
    expected = logits(case, ids, captions)
    noise = 9 * np.random.default_rng(0).normal(size=captions.features.shape)
    padded = captions.features + np.where(captions.present[..., None] == 0, noise, 0).astype(np.float32)
    np.testing.assert_array_equal(logits(case, ids, captions._replace(features=padded)), expected)
    heard = captions.features + np.where(captions.present[..., None] == 1, noise, 0).astype(np.float32)
    assert np.abs(logits(case, ids, captions._replace(features=heard)) - expected).max(axis=-1).min() > 1e-4


def test_a_caption_says_the_same_however_far_it_is_padded(make, captions, ids):
    """Rotary embedding leaves the prefix alone, so a caption of three entries needs no padding to five."""
    long, short = make(height=2, width=3, **TEXT), make(height=2, width=3, condition=TEXT["condition"] | {"entries": 3})
    params = {**long.params, "condition": {**long.params["condition"], "none": jnp.zeros((3, 6))}}
    cut = jax.tree.map(lambda leaf: leaf[2:, 2:], captions)
    found = jax.jit(lambda p: short.description.merge(p).logits(ids[2:], cut))(params)
    np.testing.assert_allclose(found, logits(long, ids[2:], jax.tree.map(lambda leaf: leaf[2:], captions)), atol=2e-5)


def test_no_caption_has_features_of_its_own_that_are_not_trained(case, captions, ids):
    condition = case.generator.condition
    none = condition.null(captions)
    np.testing.assert_array_equal(none.present, captions.present)
    np.testing.assert_array_equal(none.features[1], case.params["condition"]["none"])
    grads = jax.grad(lambda p: case.description.merge(p).loss(ids, ids, condition.null(captions))[0])(case.params)
    np.testing.assert_array_equal(grads["condition"]["none"], 0)
    assert np.abs(grads["condition"]["up"]["kernel"]).max() > 0


def test_a_share_of_the_captions_is_dropped_in_training(make):
    condition = make(height=2, width=3, label_dropout=0.25, **TEXT).generator.condition
    many = Captions(jnp.ones((4000, 5, 6)), jnp.ones((4000, 5), jnp.int32))
    gone = np.abs(np.asarray(condition.drop(many, jax.random.key(0)).features) - 1).max(axis=(1, 2)) > 0
    assert abs(gone.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_sampling_fills_the_prefix_with_one_call_and_draws_what_the_full_forward_says(case, captions):
    images, scales, count = jnp.arange(3), np.full(6, 2.0, np.float32), 6

    def run(params):
        generator = case.sampling.merge(params)
        return sequential(generator, captions, images, case.feed, seed=3, filters=Filters(top_k=9), scales=scales)

    out = jax.jit(run)(case.sampling_params)
    np.testing.assert_array_equal(out.calls, count)
    ids = out.tokens.ids
    rows = [jnp.asarray(logits(case, ids, asked)) for asked in (captions, case.generator.condition.null(captions))]
    log_probs = target_distribution(*rows, 2.0, Filters(top_k=9))
    noise = gumbel_noise(3, images, jnp.broadcast_to(jnp.arange(count), (3, count)), case.codes)
    np.testing.assert_array_equal(ids[..., 0], jnp.argmax(log_probs + noise, axis=-1))
