import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from generator.sampling.distribution import Filters, draw, target_distribution
from generator.sampling.noise import gumbel_noise
from models.errors import UserError


def reference(logits, *, temperature=1.0, top_k=0, top_k_entropy=0.0, top_p=1.0, min_p=0.0):
    """Probabilities in float64, one row, code after code: temperature, top-k with its ties, top-p, then min-p."""
    logits = np.asarray(logits, np.float64) / temperature
    kept = set(range(len(logits)))
    if top_k_entropy:
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        entropy = -sum(share * np.log(share) for share in shares if share > 0)
        top_k = round(1 + ((top_k or len(logits)) - 1) / (1 + np.exp(top_k_entropy - entropy)))
    if top_k:
        kth = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
        kept = {code for code in kept if logits[code] >= kth}
    weights = {code: np.exp(logits[code] - logits.max()) for code in kept}
    total, before, nucleus = sum(weights.values()), 0.0, set()
    for code in sorted(kept, key=lambda code: -logits[code]):
        if not nucleus or before <= top_p:
            nucleus.add(code)
        before += weights[code] / total
    nucleus = {code for code in nucleus if weights[code] >= min_p * max(weights.values())}
    share = sum(weights[code] for code in nucleus)
    return np.array([weights[code] / share if code in nucleus else 0.0 for code in range(len(logits))])


ROWS = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32) * 2


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 4}, {"top_k": 99}, {"top_p": 0.0},
     {"top_p": 0.55}, {"top_p": 0.95}, {"top_k": 5, "top_p": 0.8}, {"temperature": 2.5, "top_k": 7, "top_p": 0.6},
     {"min_p": 0.05}, {"min_p": 0.5}, {"min_p": 1.0}, {"temperature": 3.0, "min_p": 0.2}, {"top_p": 0.9, "min_p": 0.1},
     {"top_k_entropy": 1.0}, {"top_k": 8, "top_k_entropy": 1.5}, {"top_k": 99, "top_k_entropy": 4.0},
     {"temperature": 0.4, "top_k_entropy": 1.0}, {"top_k": 1, "top_k_entropy": 0.5},
     {"temperature": 1.5, "top_k": 9, "top_k_entropy": 1.0, "top_p": 0.9, "min_p": 0.3}],
)  # fmt: skip
def test_filters_follow_a_float64_reference_in_their_order(fields):
    found = np.exp(target_distribution(jnp.asarray(ROWS), None, 1.0, Filters(**fields)))
    for row, logits in zip(found, ROWS):
        np.testing.assert_allclose(row, reference(logits, **fields), atol=1e-6)


def test_top_p_is_a_share_of_what_top_k_left():
    logits = jnp.log(jnp.array([0.3, 0.25, 0.2, 0.15, 0.1]))
    found = np.exp(target_distribution(logits, None, 1.0, Filters(top_k=2, top_p=0.5)))
    np.testing.assert_allclose(
        found, [1, 0, 0, 0, 0], atol=1e-6
    )  # 0.3 is 0.55 of the two; alone it would need a second
    found = np.exp(target_distribution(logits, None, 1.0, Filters(top_p=0.5)))
    np.testing.assert_allclose(found, [0.3 / 0.55, 0.25 / 0.55, 0, 0, 0], atol=1e-6)


def test_top_k_keeps_the_ties_of_the_last():
    logits = jnp.array([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    found = np.exp(target_distribution(logits, None, 1.0, Filters(top_k=2)))
    np.testing.assert_allclose(found, reference(logits, top_k=2), atol=1e-6)
    assert (found > 0).sum() == 4


@pytest.mark.parametrize("top_p", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_top_p_keeps_enough_and_no_more_where_logits_tie(top_p):
    for seed in range(20):
        logits = np.random.default_rng(seed).integers(0, 4, 10) / 2
        p = np.exp(logits) / np.exp(logits).sum()
        log_probs = np.asarray(target_distribution(jnp.asarray(logits, jnp.float32), None, 1.0, Filters(top_p=top_p)))
        kept = np.isfinite(log_probs)
        assert p[kept].sum() >= top_p - 1e-6
        assert logits[kept].min() >= logits[~kept].max(initial=-np.inf)
        assert p[kept & (logits > logits[kept].min())].sum() <= top_p + 1e-6
        np.testing.assert_allclose(np.exp(log_probs[kept]), p[kept] / p[kept].sum(), atol=1e-6)


def test_of_equal_logits_top_p_keeps_as_many_as_it_needs():
    logits = jnp.array([1.5, 0.0, 1.5, 3.0, 1.5, 1.5])  # shares 0.515, four times 0.115, 0.026
    for top_p, kept in ((0.5, [3]), (0.6, [0, 3]), (0.7, [0, 2, 3]), (0.9, [0, 2, 3, 4, 5])):
        found = np.exp(target_distribution(logits, None, 1.0, Filters(top_p=top_p)))
        np.testing.assert_array_equal(np.flatnonzero(found), kept)
        np.testing.assert_allclose(found, reference(logits, top_p=top_p), atol=1e-6)


def test_top_p_of_zero_keeps_the_most_probable_code():
    found = np.asarray(target_distribution(jnp.asarray(ROWS), None, 1.0, Filters(top_p=0.0)))
    np.testing.assert_array_equal(np.isfinite(found), np.eye(12, dtype=bool)[ROWS.argmax(-1)])


def kept(logits, **fields):
    return np.isfinite(np.asarray(target_distribution(jnp.asarray(logits), None, 1.0, Filters(**fields))))


def test_min_p_keeps_what_has_its_share_of_the_best_and_with_1_the_best_and_its_equals():
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.4, 0.05], np.float32))
    for min_p, codes in ((0.0, [0, 1, 2, 3, 4]), (0.12, [0, 1, 2, 3, 4]), (0.13, [0, 1, 3]), (1.0, [1, 3])):
        np.testing.assert_array_equal(np.flatnonzero(kept(logits, min_p=min_p)), codes)


def test_min_p_takes_of_what_top_p_left():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert kept(logits, top_p=0.75, min_p=0.2).tolist() == [True, True, False, False]
    assert kept(logits, top_p=0.9, min_p=0.2).tolist() == [True, True, True, False]
    # The other way round, top-p would be a share of the first three and keep two.
    assert kept(logits, top_p=0.82, min_p=0.2).tolist() == [True, True, True, False]


def test_the_numbers_of_pure_keep_few_of_a_sure_distribution_and_many_of_a_flat_one():
    order = np.random.default_rng(0).permutation(4096).astype(np.float32)
    sure = np.where(order == 0, 50, -order / 4096)  # H = 0: 1 + 1999 / (1 + e^5) = 14.4
    some = np.where(order < 148, 0, -30) - order / 1e6  # H = ln 148 = 4.997: 1 + 1999 / (1 + e^0.003) = 999.0
    flat = -order / 1e6  # H = ln 4096 = 8.318: 1 + 1999 / (1 + e^-3.318) = 1930.2
    for logits, count in ((sure, 14), (some, 999), (flat, 1930)):
        found = kept(logits.astype(np.float32), top_k=2000, top_k_entropy=5.0)
        np.testing.assert_array_equal(found, order < count)


def test_top_k_by_entropy_keeps_ties_and_at_least_the_best():
    assert kept(np.zeros(10, np.float32), top_k=4, top_k_entropy=1.0).all()
    certain = np.array([-np.inf, 0, -np.inf], np.float32)  # its entropy is 0
    assert kept(certain, top_k_entropy=9.0).tolist() == [False, True, False]
    logits = np.array([0, 2, 2, -1, 2], np.float32)
    assert kept(logits, top_k=5, top_k_entropy=99.0).tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("fields", [{"min_p": 0.2}, {"top_k": 9, "top_k_entropy": 1.5}, {"top_k": 5, "top_p": 0.8}])
def test_what_is_kept_at_a_position_depends_on_that_position_alone(fields):
    logits = np.random.default_rng(1).normal(size=(2, 5, 12)).astype(np.float32) * np.arange(5)[:, None]
    filtered = jax.jit(lambda logits: target_distribution(logits, None, 1.0, Filters(**fields)))
    together = np.asarray(filtered(logits))
    for row, position in np.ndindex(2, 5):
        np.testing.assert_array_equal(kept(logits[row, position], **fields), np.isfinite(together[row, position]))
        others = np.random.default_rng(2).normal(size=logits.shape).astype(np.float32) * 9
        others[row, position] = logits[row, position]
        np.testing.assert_array_equal(np.asarray(filtered(others))[row, position], together[row, position])


def test_temperature_zero_is_greedy_whatever_the_noise():
    filters = Filters(temperature=0.0, min_p=0.1, top_k_entropy=2.0)
    log_probs = target_distribution(jnp.asarray(ROWS), None, 1.0, filters)
    noise = gumbel_noise(0, jnp.arange(6), jnp.arange(50)[None].repeat(6, 0), 12)
    tokens = draw(jnp.broadcast_to(log_probs[:, None], noise.shape), noise)
    np.testing.assert_array_equal(tokens, np.tile(ROWS.argmax(-1)[:, None], (1, 50)))


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.0, 1.75, 4.0])
def test_guidance_is_unconditional_plus_scale_times_the_difference(scale):
    conditional, unconditional = ROWS[:3], ROWS[3:]
    found = np.exp(target_distribution(jnp.asarray(conditional), jnp.asarray(unconditional), scale, Filters()))
    var = scale - 1  # VAR's t: (1 + t) c - t u
    for row, c, u in zip(found, conditional.astype(np.float64), unconditional.astype(np.float64)):
        np.testing.assert_allclose(row, reference((1 + var) * c - var * u), atol=2e-6)
    if scale in (0.0, 1.0):
        only = target_distribution(jnp.asarray(conditional if scale else unconditional), None, 1.0, Filters())
        np.testing.assert_allclose(found, np.exp(only), atol=1e-6)


def test_guidance_comes_before_the_filters_and_may_differ_by_row():
    conditional, unconditional, scales = ROWS[:3], ROWS[3:], np.array([0.5, 2.0, 3.0], np.float32)
    fields = {"temperature": 1.5, "top_k": 6, "top_p": 0.7}
    found = target_distribution(
        jnp.asarray(conditional), jnp.asarray(unconditional), jnp.asarray(scales), Filters(**fields)
    )
    for row, c, u, scale in zip(np.exp(found), conditional, unconditional, scales):
        np.testing.assert_allclose(row, reference(u + scale * (c - u), **fields), atol=2e-6)


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1.0}, {"top_k": -1}, {"top_k_entropy": -1.0}, {"top_p": 1.1}, {"top_p": -0.1}, {"min_p": 1.1},
     {"min_p": -0.1}, {"min_p": float("nan")}],
)  # fmt: skip
def test_impossible_filters_are_the_users_mistake(fields):
    with pytest.raises(UserError, match=r"{} {}\b".format(*next(iter(fields.items())))):
        Filters(**fields)


def test_noise_belongs_to_the_seed_the_image_and_the_position():
    images, positions = jnp.array([5, 3, 9]), jnp.array([[0, 4], [7, 4], [2, 2]])
    noise = np.asarray(gumbel_noise(1, images, positions, 6))
    for i, j in np.ndindex(3, 2):
        alone = gumbel_noise(1, images[i : i + 1], positions[i : i + 1, j : j + 1], 6)[0, 0]
        np.testing.assert_array_equal(noise[i, j], alone)
    np.testing.assert_array_equal(noise[2, 0], noise[2, 1])
    others = [gumbel_noise(2, images, positions, 6), gumbel_noise(1, images + 1, positions, 6),
              gumbel_noise(1, images, positions + 1, 6)]  # fmt: skip
    for other in others:
        assert (np.asarray(other) != noise).all()
    swapped = gumbel_noise(1, jnp.array([4]), jnp.array([[5]]), 6)
    assert (gumbel_noise(1, jnp.array([5]), jnp.array([[4]]), 6) != swapped).all()


@pytest.mark.parametrize("vary", ["images", "positions"])
def test_draws_follow_the_distribution(vary):
    p = np.array([0.4, 0.25, 0.2, 0.1, 0.05, 0.0])
    count = 20_000
    index = jnp.arange(count)
    images, positions = (index, jnp.zeros((count, 1), int)) if vary == "images" else (index[:1], index[None])
    noise = jax.jit(lambda: gumbel_noise(0, images, positions, 6))().reshape(count, 6)
    tokens = np.asarray(draw(jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32)), noise.shape), noise))
    counts = np.bincount(tokens, minlength=6)
    assert counts[5] == 0
    assert stats.chisquare(counts[:5], p[:5] * count).pvalue > 0.001
    pairs = np.zeros((5, 5))  # neighbours in the index are independent
    np.add.at(pairs, (tokens[0::2], tokens[1::2]), 1)
    assert stats.chi2_contingency(pairs).pvalue > 0.001
