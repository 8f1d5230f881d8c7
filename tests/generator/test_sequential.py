import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from variants import VAR

from generator.sampling import sequential as module
from generator.sampling.distribution import Filters, certain, target_distribution
from generator.sampling.guidance import guidance_scales
from generator.sampling.noise import gumbel_noise
from generator.sampling.samplers import build_sampler
from generator.sampling.sequential import mixture, sequential
from jobs.feeds import TokenFeed

TOKENS = TokenFeed()
PLAIN = {"name": "sequential", "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.0,
         "guidance_schedule": "constant", "guidance_interval": (0.0, 1.0)}  # fmt: skip


def sample(case, labels, images, *, scales, filters=Filters(), seed=0):  # noqa: B008
    def run(params):
        generator = case.sampling.merge(params)
        return sequential(generator, labels, images, case.feed, seed=seed, filters=filters, scales=scales)

    out = jax.jit(run)(case.sampling_params)
    return np.asarray(out.tokens.ids)[..., 0], np.asarray(out.calls)


def slow_sample(case, labels, images, *, scales, filters=Filters(), seed=0):  # noqa: B008
    """Time after time with the full forward of both conditions, no cache."""

    def full(params, ids, labels):
        return case.description.merge(params).logits(case.inputs(ids), labels)

    full, layout = jax.jit(full), case.generator.layout
    ids = np.zeros((len(labels), case.spec.positions, 1), np.int32)
    for time, (start, stop) in enumerate(layout.groups):
        tokens = layout.target[start:stop]
        conditional = full(case.params, ids, labels)[:, tokens]
        unconditional = full(case.params, ids, jnp.full_like(labels, case.classes))[:, tokens]
        guided = unconditional + scales[time] * (conditional - unconditional)
        log_probs = target_distribution(guided, None, 1.0, filters)
        noise = gumbel_noise(seed, images, jnp.broadcast_to(tokens, (len(labels), len(tokens))), case.codes)
        ids[:, tokens, 0] = np.argmax(np.asarray(log_probs) + np.asarray(noise), axis=-1)
    return ids[..., 0]


SCALES = {  # with the calls of the model: one a token, and one more wherever guidance comes back after more than one without
    "off": (np.ones(12), 12),
    "on": (np.full(12, 2.5), 12),
    "rising": (guidance_scales(12, scale=3.0, schedule="linear", interval=(0.0, 1.0)), 12),
    "in the middle": (guidance_scales(12, scale=3.0, schedule="constant", interval=(0.3, 0.7)), 13),
    "twice": (np.array([3, 3, 1, 1, 1, 2, 2, 1, 1, 4, 1, 1]), 14),
}


@pytest.mark.parametrize("name", SCALES)
def test_tokens_are_those_of_a_slow_loop_that_always_computes_both(make, name):
    case, (scales, calls) = make(), SCALES[name]
    labels, images = jnp.array([1, 4, 0, 1]), jnp.array([7, 0, 3, 8])
    options = {"scales": scales.astype(np.float32), "filters": Filters(temperature=1.2, top_k=9), "seed": 5}
    found, called = sample(case, labels, images, **options)
    np.testing.assert_array_equal(found, slow_sample(case, labels, images, **options))
    np.testing.assert_array_equal(called, [calls] * 4)


SCHEDULES_OF_SCALES = {"off": ([1, 1, 1], 3), "var": ([1, 2, 3], 3), "late": ([1, 1, 3], 4), "early": ([2, 1, 1], 3)}


@pytest.mark.parametrize("name", SCHEDULES_OF_SCALES)
def test_scales_are_those_of_a_slow_loop(make, name):
    case, (scales, calls) = make(**VAR), SCHEDULES_OF_SCALES[name]
    labels, images = jnp.array([1, 4, 0, 1]), jnp.array([7, 0, 3, 8])
    options = {"scales": np.array(scales, np.float32), "filters": Filters(temperature=1.2, top_k=9), "seed": 5}
    found, called = sample(case, labels, images, **options)
    np.testing.assert_array_equal(found, slow_sample(case, labels, images, **options))
    np.testing.assert_array_equal(called, [calls] * 4)


def test_several_scales_may_be_of_one_size(make):
    """As in ImageFolder's (1, 1, 2, 3, 3, ...), where equal grids still have convolutions of their own."""
    case = make(**VAR, sides=(1, 1, 2, 2))
    options = {"scales": np.full(4, 2.0, np.float32), "seed": 5}
    labels, images = jnp.array([1, 4]), jnp.array([7, 0])
    found, _ = sample(case, labels, images, **options)
    np.testing.assert_array_equal(found, slow_sample(case, labels, images, **options))


def test_an_image_of_scales_depends_on_its_seed_and_index_alone(make):
    case, scales = make(**VAR), np.array([1.0, 2.0, 2.5], np.float32)
    labels, images = jnp.arange(6) % 5, jnp.arange(6)
    together, _ = sample(case, labels, images, scales=scales)
    alone = [sample(case, labels[i : i + 1], images[i : i + 1], scales=scales)[0] for i in range(6)]
    np.testing.assert_array_equal(np.concatenate(alone), together)


def test_the_state_at_the_end_is_the_sum_of_the_codes_drawn(make):
    case = make(**VAR)
    labels = images = jnp.arange(4)

    def run(params, smooth):
        return sequential(case.sampling.merge(params), labels, images, case.feed, seed=0, filters=Filters(),
                          scales=np.ones(3, np.float32), smooth=smooth)  # fmt: skip

    plain, smooth = (jax.jit(run, static_argnums=1)(case.sampling_params, smooth) for smooth in (False, True))
    np.testing.assert_allclose(plain.state, case.feed.quantizer.lookup(plain.tokens.ids), atol=1e-5)
    # Mixed codes of the first scale move what is drawn later, but not the first draw.
    np.testing.assert_array_equal(smooth.tokens.ids[:, 0], plain.tokens.ids[:, 0])
    assert np.abs(smooth.state - plain.state).max() > 1e-3


def test_a_mixture_is_nearly_one_code_at_the_last_scale_and_never_one_that_was_removed():
    log_probs = jax.nn.log_softmax(jnp.array([[[2.0, 1.0, -jnp.inf, 0.0]]]))
    noise = jnp.array([[[0.3, 0.1, 9.0, -0.2]]])
    first, last = mixture(log_probs, noise, 0.0), mixture(log_probs, noise, 1.0)
    np.testing.assert_allclose(first, jax.nn.softmax((log_probs + noise) / 0.27), rtol=1e-5)
    np.testing.assert_allclose(last[0, 0], [1, 0, 0, 0], atol=1e-6)
    assert first[0, 0, 2] == last[0, 0, 2] == 0
    assert 0.5 < first[0, 0, 0] < 0.999


@pytest.mark.parametrize("options", [{}, VAR], ids=["raster", "scales"])
def test_known_tokens_are_kept_and_the_others_follow_them(make, options):
    case = make(**options)
    (labels, images), layout = (jnp.arange(4), jnp.arange(4)), case.generator.layout
    scales = np.full(len(layout.groups), 2.0, np.float32)
    known = np.random.default_rng(0).integers(0, case.codes, (4, case.spec.positions, 1)).astype(np.int32)
    keep = np.random.default_rng(1).random(case.spec.positions) < 0.5

    def revise(state, log_p, time):
        start, size = (time, 1) if layout.feed == "tokens" else (layout.groups[time][0], log_p.shape[1])
        own = certain(jax.lax.dynamic_slice_in_dim(jnp.asarray(known), start, size, axis=1)[..., 0], case.codes)
        return jnp.where(jax.lax.dynamic_slice_in_dim(jnp.asarray(keep), start, size)[:, None], own, log_p)

    def run(params):
        return sequential(case.sampling.merge(params), labels, images, case.feed, seed=0, filters=Filters(), scales=scales,
                          revise=revise)  # fmt: skip

    ids = np.asarray(jax.jit(run)(case.sampling_params).tokens.ids)
    np.testing.assert_array_equal(ids[:, keep], known[:, keep])
    # Every other token is what its distribution given all before it, known ones too, and its noise make it.
    conditional = case.generator.logits(case.inputs(jnp.asarray(ids)), labels)
    unconditional = case.generator.logits(case.inputs(jnp.asarray(ids)), jnp.full_like(labels, case.classes))
    log_probs = target_distribution(conditional, unconditional, 2.0, Filters())
    positions = jnp.broadcast_to(jnp.arange(case.spec.positions), ids.shape[:2])
    drawn = jnp.argmax(log_probs + gumbel_noise(0, images, positions, case.codes), axis=-1)
    np.testing.assert_array_equal(ids[:, ~keep, 0], np.asarray(drawn)[:, ~keep])


def test_an_image_depends_on_its_seed_and_index_alone(make):
    case, scales = make(), np.full(12, 2.0, np.float32)
    labels, images = jnp.arange(16) % 5, jnp.arange(16)
    together, _ = sample(case, labels, images, scales=scales)
    options = {"seed": 0, "filters": Filters(), "scales": scales}

    @jax.jit
    def run(params, labels, images):
        return sequential(case.sampling.merge(params), labels, images, TOKENS, **options).tokens.ids[..., 0]

    for size in (1, 4):
        parts = [run(case.sampling_params, labels[i : i + size], images[i : i + size]) for i in range(0, 16, size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(run(case.sampling_params, labels[order], images[order]), together[order])
    assert len(np.unique(together, axis=0)) == 16
    other, _ = sample(case, labels, images, scales=scales, seed=1)
    assert (other != together).any(axis=1).all()


@pytest.mark.parametrize(
    ("scale", "fields"),
    [(1.0, {}), (2.0, {"temperature": 1.3}), (1.5, {"top_p": 0.8})],
    ids=["plain", "guided", "top_p"],
)
def test_sampled_sequences_follow_the_exact_joint_distribution(make, scale, fields):
    case, count, filters = make(height=2, width=2, codes=3, classes=2, scale=0.5), 4096, Filters(**fields)
    scales = np.full(4, scale, np.float32)
    every = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
    tokens, labels = jnp.asarray(every)[..., None], jnp.ones(81, int)
    conditional, unconditional = (case.generator.logits(tokens, labels * label) for label in (1, 2))
    log_probs = np.asarray(
        target_distribution(conditional, unconditional, jnp.full((81, 4), scale), filters), np.float64
    )
    exact = np.exp(np.take_along_axis(log_probs, every[..., None], -1)[..., 0].sum(-1))
    np.testing.assert_allclose(exact.sum(), 1, atol=1e-5)
    ids, _ = sample(case, jnp.ones(count, int), jnp.arange(count), scales=scales, filters=filters)
    counts = np.bincount(ids @ np.array([27, 9, 3, 1]), minlength=81)
    assert (counts[exact == 0] == 0).all()
    common = exact * count >= 5
    assert common.sum() > 10
    rare = [counts[~common].sum()], [exact[~common].sum() * count]
    found, expected = np.append(counts[common], rare[0]), np.append(exact[common] * count, rare[1])
    found, expected = found[expected > 0], expected[expected > 0]
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 0.001


def test_a_config_section_builds_the_same_sampler(make):
    case = make()
    section = PLAIN | {
        "guidance_scale": 3.0,
        "guidance_schedule": "cosine",
        "guidance_interval": [0.2, 0.9],
        "guidance_power": 2.0,
        "top_k": 5,
        "top_k_entropy": 1.0,
        "min_p": 0.05,
    }
    sampler = build_sampler(section, 4, case.sampling_generator)
    labels, images = jnp.array([0, 3]), jnp.array([2, 6])
    out = jax.jit(lambda params: sampler(case.sampling.merge(params), labels, images, TOKENS))(case.sampling_params)
    scales = guidance_scales(12, scale=3.0, schedule="cosine", interval=(0.2, 0.9), power=2.0)
    filters = Filters(top_k=5, top_k_entropy=1.0, min_p=0.05)
    expected, calls = sample(case, labels, images, scales=scales, filters=filters, seed=4)
    np.testing.assert_array_equal(out.tokens.ids[..., 0], expected)
    np.testing.assert_array_equal(out.calls, calls)


def test_a_long_raster_is_drawn_in_several_loops_that_go_on_from_each_other(make, monkeypatch):
    case, labels, images = make(), jnp.array([1, 4]), jnp.array([7, 0])
    scales = np.array([1, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 3], np.float32)
    whole, calls = sample(case, labels, images, scales=scales)
    monkeypatch.setattr(module, "SHORTEST_LOOP", 2)
    assert [piece.read for piece in module.pieces(case.generator.layout, 0, 12)] == [3, 6, 9, 12]
    parts, called = sample(case, labels, images, scales=scales)
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(called, calls)


def test_greedy_sampling_is_the_argmax_of_every_step(make):
    case = make()
    labels, images = jnp.array([0, 3]), jnp.array([2, 6])
    scales = np.ones(12, np.float32)
    ids, _ = sample(case, labels, images, scales=scales, filters=Filters(temperature=0.0))
    rows = case.generator.logits(jnp.asarray(ids)[..., None], labels)
    np.testing.assert_array_equal(rows.argmax(-1), ids)
