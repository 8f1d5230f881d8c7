import tracemalloc

import numpy as np
import pytest
from fidelity import load_metric
from sklearn.neighbors import NearestNeighbors

from evaluation.manifold import manifold_scores
from models.errors import UserError


def by_scikit_learn(samples, reference, k=3, k_density=5):
    """The definitions, over the full matrix of float64 distances that are sums of squared differences."""
    samples, reference = samples.astype(np.float64), reference.astype(np.float64)

    def search(x):
        return NearestNeighbors(algorithm="kd_tree").fit(x)  # a tree compares differences, brute force products

    def radii(x, k):
        return search(x).kneighbors(n_neighbors=k)[0][:, -1]  # of no argument: the point itself is left out

    distances, columns = search(reference).kneighbors(samples, len(reference))
    square = np.empty_like(distances)
    np.put_along_axis(square, columns, distances, 1)
    wide = radii(reference, k_density)
    return {
        "precision": (square <= radii(reference, k)).any(1).mean(),
        "recall": (square <= radii(samples, k)[:, None]).any(0).mean(),
        "density": (square < wide).sum() / (k_density * len(samples)),
        "coverage": (square < wide).any(0).mean(),
    }


def gaussian(count, size, seed, *, scale=1.0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(count, size)) * scale + shift).astype(np.float32)


@pytest.mark.parametrize("block", [1, 32, 50, 1000])
def test_the_scores_are_those_of_scikit_learn_for_every_block_size(block):
    samples, reference = gaussian(90, 6, 0, scale=0.8, shift=0.4), gaussian(121, 6, 1)
    found = manifold_scores(samples, reference, block=block)
    assert found == pytest.approx(by_scikit_learn(samples, reference), abs=1e-12)
    assert 0.05 < found["recall"] < found["precision"] < 1  # neither trivial, nor swapped unseen


def test_other_numbers_of_neighbours():
    samples, reference = gaussian(90, 6, 0, scale=0.8, shift=0.4), gaussian(121, 6, 1)
    found = manifold_scores(samples, reference, neighbours=6, density_neighbours=2)
    assert found == pytest.approx(by_scikit_learn(samples, reference, 6, 2), abs=1e-12)


def test_precision_and_recall_are_those_of_another_program():
    fidelity = load_metric("metric_prc")
    import torch

    samples, reference = gaussian(300, 32, 0, scale=0.9), gaussian(200, 32, 1)
    theirs = fidelity.prc_features_to_metric(
        torch.from_numpy(samples), torch.from_numpy(reference), prc_neighborhood=3, verbose=False, save_cpu_ram=False
    )
    found = manifold_scores(samples, reference)
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


@pytest.mark.parametrize("block", [33, 4096])
def test_a_set_is_all_of_itself(block):
    # Each point is at the k-th radius of some other: a rounding error there would change the density.
    features = gaussian(300, 40, 0, shift=50)
    assert manifold_scores(features, features[::-1].copy(), block=block) == {
        "precision": 1,
        "recall": 1,
        "density": 1,
        "coverage": 1,
    }


def test_sets_far_apart_share_nothing():
    found = manifold_scores(gaussian(50, 4, 0), gaussian(60, 4, 1, shift=100))
    assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_samples_of_the_distribution_have_density_1():
    assert manifold_scores(gaussian(2000, 4, 0), gaussian(2000, 4, 1))["density"] == pytest.approx(1, abs=0.05)


def test_an_outlier_in_the_reference_inflates_precision_and_not_density():
    # 2002.09797 fig. 3: one reference image far off has a ball that holds everything between.
    reference = np.concatenate([gaussian(100, 8, 0, scale=0.1), np.full((1, 8), 10, np.float32)])
    between = gaussian(100, 8, 1, scale=0.1, shift=5)
    found = manifold_scores(between, reference)
    assert found["precision"] == 1
    assert found["density"] == pytest.approx(1 / 5)  # one ball of the expected five
    assert found["coverage"] == pytest.approx(1 / 101)


def test_a_generator_of_one_image_has_precision_and_no_recall():
    reference = gaussian(100, 8, 0)
    copies = np.repeat(reference[:1], 40, 0)  # their balls have no extent
    found = manifold_scores(copies, reference, block=16)
    assert found["precision"] == 1
    assert found["recall"] == 1 / 100  # the image itself
    assert found["coverage"] < 0.2


@pytest.mark.parametrize("shift", [0, 1000])
def test_near_ties_are_decided_by_exact_distances(shift):
    # Integers have exactly equal distances in many pairs, and a large mean takes float32 products beyond 2^24.
    random = np.random.default_rng(0)
    reference, samples = (random.integers(0, 3, (150, 5)).astype(np.float32) + shift for _ in range(2))
    assert manifold_scores(samples, reference, block=64) == pytest.approx(
        by_scikit_learn(samples, reference), abs=1e-12
    )
    random = np.random.default_rng(1)
    reference, samples = (
        (shift + 1e-3 * random.normal(size=(150, 5))).astype(np.float32) for _ in range(2)
    )  # what is left of the features are a few last bits
    assert manifold_scores(samples, reference) == pytest.approx(by_scikit_learn(samples, reference), abs=1e-12)


def test_memory_does_not_grow_with_pairs():
    samples, reference = gaussian(3000, 8, 0), gaussian(3000, 8, 1)
    tracemalloc.start()
    manifold_scores(samples, reference, block=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 3000**2 / 10
    # What it does need: the documented part for blocks, and lists that grow with the images.
    assert peak < 32 * 256 * (256 + 8) + 3000 * 8 * 40


def test_what_has_no_neighbours():
    with pytest.raises(UserError, match="5 images have no 5 nearest"):
        manifold_scores(gaussian(9, 4, 0), gaussian(5, 4, 1))
    with pytest.raises(UserError, match="3 images have no 3 nearest"):
        manifold_scores(gaussian(3, 4, 0), gaussian(9, 4, 1))
    with pytest.raises(UserError, match="size 4 against size 5"):
        manifold_scores(gaussian(9, 4, 0), gaussian(9, 5, 1))
    broken = gaussian(9, 4, 0)
    broken[:2] = np.nan
    with pytest.raises(UserError, match="2 of 9"):
        manifold_scores(gaussian(9, 4, 0), broken)
