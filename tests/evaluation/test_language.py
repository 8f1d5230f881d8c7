import numpy as np
import pytest

from evaluation.language import codebook_usage, token_statistics


def test_uniform_ids_use_everything():
    usage = codebook_usage(np.arange(160).reshape(4, 40) % 16, 16)
    assert usage["usage"] == 1
    assert usage["perplexity"] == pytest.approx(16, rel=1e-12)


def test_a_constant_uses_one_code():
    usage = codebook_usage(np.full((3, 5, 1), 7), 8)
    assert usage == {"usage": 1 / 8, "perplexity": pytest.approx(1)}


def test_perplexity_of_unequal_shares():
    # Shares 1/2, 1/4, 1/4 of 5 codes: the entropy is 1.5 bits.
    usage = codebook_usage(np.array([0, 0, 3, 4]), 5)
    assert usage == {"usage": 3 / 5, "perplexity": pytest.approx(2**1.5)}


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_id_outside_the_codebook_is_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011
        codebook_usage(np.array([0, wrong]), 4)
    with pytest.raises(ValueError):  # noqa: PT011
        token_statistics(np.array([0, wrong]).reshape(1, 2, 1), (4,), 16)


def sentences(counts, positions, seed=0):
    """Every code as often as `counts` says, in random order: (N, T, 1)."""
    ids = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(ids).reshape(-1, positions, 1)


def markov(transitions, images, positions, seed=0):
    """A first-order source that starts from its stationary distribution, and that distribution."""
    values, vectors = np.linalg.eig(transitions.T)
    stationary = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    stationary /= stationary.sum()
    rng = np.random.default_rng(seed)
    ids = np.empty((images, positions), np.int64)
    ids[:, 0] = rng.choice(len(stationary), images, p=stationary)
    cumulative = transitions.cumsum(1)
    for t in range(1, positions):
        ids[:, t] = (rng.random((images, 1)) > cumulative[ids[:, t - 1]]).sum(1)
    return ids[..., None], stationary


TRANSITIONS = np.array([[0.90, 0.05, 0.05], [0.10, 0.30, 0.60], [0.25, 0.50, 0.25]])


def entropy_rate(transitions, stationary):
    return -(stationary[:, None] * transitions * np.log2(transitions)).sum()


def test_a_markov_source_has_its_entropy_rate():
    ids, stationary = markov(TRANSITIONS, 2000, 64)
    found = token_statistics(ids, (3,), 1024)
    assert found["entropy_bits"] == pytest.approx(-(stationary * np.log2(stationary)).sum(), abs=0.01)
    assert found["conditional_entropy_bits"] == pytest.approx(entropy_rate(TRANSITIONS, stationary), abs=0.01)
    assert found["unseen_pair_share"] == 0


def test_images_are_not_each_others_neighbours():
    """Within an image every code follows from the one before; the first ones are random."""
    starts = np.random.default_rng(0).integers(0, 5, 3000)
    ids = (starts[:, None] + np.arange(4)) % 5
    found = token_statistics(ids[..., None], (5,), 16)
    # The correction counts kinds of pairs less kinds of left halves, which are five each.
    assert found["conditional_entropy_bits"] == pytest.approx(0, abs=1e-12)
    assert found["entropy_bits"] == pytest.approx(np.log2(5), abs=1e-3)


def test_what_is_given_is_the_token_before():
    """A constant followed by anything; the other way round nothing would be left open."""
    ids = np.stack([np.zeros(64, np.int64), np.arange(64) % 4], axis=1)[..., None]
    found = token_statistics(ids, (4,), 4)["conditional_entropy_bits"]
    assert found == pytest.approx(2 + (4 - 1) / (2 * 64 * np.log(2)))  # four kinds of pairs, one of left halves


def test_the_correction_makes_up_for_most_of_the_bias():
    """Independent even codes: the conditional entropy is log2 16, of which few samples show too little."""
    true, found, plain = np.log2(16), [], []
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(0, 16, (80, 17, 1))  # 1280 pairs of 256 kinds
        found.append(token_statistics(ids, (16,), 256)["conditional_entropy_bits"])
        pairs = np.unique(ids[:, :-1] * 16 + ids[:, 1:], return_counts=True)[1] / 1280
        lefts = np.unique(ids[:, :-1], return_counts=True)[1] / 1280
        plain.append(-(pairs * np.log2(pairs)).sum() + (lefts * np.log2(lefts)).sum())
    assert true - np.mean(plain) > 0.1
    assert abs(true - np.mean(found)) < 0.03


def test_too_few_samples_are_told_by_the_unseen_pairs():
    ids = np.random.default_rng(0).integers(0, 1024, (20, 50, 1))  # 980 pairs of a million kinds
    found = token_statistics(ids, (1024,), 2500)
    assert found["conditional_entropy_bits"] < 2
    assert found["unseen_pair_share"] > 0.99


def test_zipfs_law_has_slope_minus_one():
    found = token_statistics(sentences(2520 // np.arange(1, 11), 1), (10,), 1)  # 2520 / rank, without rounding
    assert found["zipf_slope"] == pytest.approx(-1, abs=1e-12)
    assert found["zipf_r2"] == pytest.approx(1, abs=1e-12)


def test_a_sample_of_zipfs_law():
    shares = 1 / np.arange(1, 1001)
    ids = np.random.default_rng(0).choice(1000, (1000, 500, 1), p=shares / shares.sum())
    shuffled = np.random.default_rng(1).permutation(1000)[ids]
    found = token_statistics(shuffled, (1000,), 1)
    assert found["zipf_slope"] == pytest.approx(-1, abs=0.02)
    assert found["zipf_r2"] > 0.99


def test_the_slope_is_of_the_head_alone():
    """Shares 0.4, 0.2, 0.2 reach 80 %; the tail of single tokens does not count."""
    found = token_statistics(sentences([400, 200, 200] + [1] * 200, 10), (203,), 100)
    x, y = np.log([1, 2, 3]), np.log([400, 200, 200])
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    correlation = np.corrcoef(x, y)[0, 1]
    assert found["zipf_slope"] == pytest.approx(slope)
    assert found["zipf_r2"] == pytest.approx(correlation**2)


def test_even_shares_have_no_slope():
    found = token_statistics(sentences([30] * 64, 64), (64,), 1024)
    assert found["zipf_slope"] == pytest.approx(0, abs=1e-12)
    assert found["zipf_r2"] == 1
    assert found["perplexity"] == pytest.approx(64)
    assert found["entropy_bits"] == pytest.approx(6)
    assert found["bits_per_pixel"] == found["coded_bits_per_pixel"] == pytest.approx(64 * 6 / 1024)


def test_what_cannot_be_told_is_left_out():
    found = token_statistics(np.zeros((5, 1, 1), np.int32), (8,), 4)
    assert found == {"usage": 1 / 8, "perplexity": 1, "entropy_bits": 0, "bits_per_pixel": 3 / 4,
                     "coded_bits_per_pixel": 0}  # fmt: skip


def test_sub_codes_are_taken_by_themselves():
    """The second repeats the first, which a joint entropy would see; means of shares, sums of bits."""
    one = sentences([8, 4, 2, 2], 4)
    single, even = token_statistics(one, (4,), 16), token_statistics(one % 2, (2,), 16)
    both = token_statistics(np.concatenate([one, one % 2], axis=2), (4, 2), 16)
    assert single["entropy_bits"] == pytest.approx(1.75)
    for name in ("usage", "perplexity", "unseen_pair_share"):
        assert both[name] == pytest.approx((single[name] + even[name]) / 2)
    for name in ("entropy_bits", "conditional_entropy_bits", "bits_per_pixel", "coded_bits_per_pixel"):
        assert both[name] == pytest.approx(single[name] + even[name])
    assert both["bits_per_pixel"] == 4 * 3 / 16
    assert "zipf_slope" in single
    assert "zipf_slope" not in both  # one sub-code has two codes, too few for a line
    with pytest.raises(ValueError, match="2 sub-codes"):
        token_statistics(np.concatenate([one, one], axis=2), (4,), 16)
