import numpy as np
import pytest

from input_pipeline import frequencies as module
from input_pipeline.frequencies import PAIRS_PRIOR, PRIOR, Frequencies, count_codes
from models.errors import UserError

CLASSES, POSITIONS, WIDTH, CODES = 3, 6, 3, 7


def batches(seed=0, images=40, size=16):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, CODES, (images, POSITIONS, 1)) ** 2 // CODES
    labels = rng.integers(0, CLASSES - 1, images)  # no image of the last class
    return [{"ids": ids[k : k + size], "label": labels[k : k + size]} for k in range(0, images, size)]


def by_hand(examples):
    counts = np.full((CLASSES, POSITIONS, CODES), PRIOR / CODES)
    for batch in examples:
        for ids, label in zip(batch["ids"], batch["label"]):
            counts[label, np.arange(POSITIONS), ids[:, 0]] += 1
    return np.log(counts / counts.sum(-1, keepdims=True))


@pytest.mark.parametrize("pending", [1 << 24, 10])
def test_shares_are_those_counted_one_by_one(tmp_path, monkeypatch, pending):
    monkeypatch.setattr(module, "PENDING", pending)
    count_codes(tmp_path / "f.npz", batches(), CODES, WIDTH)
    found = Frequencies(tmp_path / "f.npz").log_shares(np.array([2, 0, 1, 0]))
    np.testing.assert_allclose(found, by_hand(batches())[[2, 0, 1, 0]], atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-5)


def test_guidance_moves_a_class_half_as_far_away_from_all(tmp_path):
    count_codes(tmp_path / "f.npz", batches(), CODES, WIDTH)
    labels, scales = np.array([1, 0]), np.linspace(1, 4, POSITIONS)
    found = Frequencies(tmp_path / "f.npz").log_shares(labels, scales)
    ids = np.concatenate([batch["ids"][..., 0] for batch in batches()])
    for position, scale in enumerate(scales):
        every = np.log((np.bincount(ids[:, position], minlength=CODES) + PRIOR / CODES) / (len(ids) + PRIOR))
        of_class = by_hand(batches())[labels, position]
        moved = of_class + (scale - 1) / 2 * (of_class - every)
        moved -= np.log(np.exp(moved).sum(-1, keepdims=True))
        np.testing.assert_allclose(found[:, position], moved, atol=1e-5)


@pytest.mark.parametrize(("side", "distance"), [("left", 1), ("above", WIDTH)])
def test_pairs_are_those_counted_one_by_one(tmp_path, side, distance):
    count_codes(tmp_path / "f.npz", batches(), CODES, WIDTH)
    ids = np.concatenate([batch["ids"][..., 0] for batch in batches()])
    share = (np.bincount(ids.ravel(), minlength=CODES) + 1) / (ids.size + CODES)
    pairs = np.zeros((CODES, CODES))
    for image in ids:
        for position in range(distance, POSITIONS):
            if side == "above" or position % WIDTH:
                pairs[image[position - distance], image[position]] += 1
    shares = (pairs + PAIRS_PRIOR * share) / (pairs.sum(1, keepdims=True) + PAIRS_PRIOR)
    np.testing.assert_allclose(Frequencies(tmp_path / "f.npz").log_pairs(side), np.log(shares / share), atol=1e-5)


def test_too_many_codes_for_pairs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_CODES", CODES - 1)
    count_codes(tmp_path / "f.npz", batches(), CODES, WIDTH)
    with pytest.raises(UserError, match="first_drafts=frequency"):
        Frequencies(tmp_path / "f.npz").log_pairs("left")


def test_only_what_was_seen_is_kept(tmp_path):
    count_codes(tmp_path / "f.npz", batches(), CODES, WIDTH)
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["counts"].sum() == 40 * POSITIONS
        assert arrays["counts"].min() > 0
        assert (np.diff(arrays["keys"]) > 0).all()


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="--job=extract"):
        Frequencies(tmp_path / "f.npz")
    count_codes(tmp_path / "f.npz", batches(), CODES, WIDTH)
    (tmp_path / "f.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match="npz"):
        Frequencies(tmp_path / "f.npz")
