import numpy as np
import pytest
from fidelity import load_metric

from evaluation.kernel_distance import kernel_distance, squared_mmd
from models.errors import UserError


def features(count, seed, *, size=5, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(count, size)) + shift).astype(np.float32)


def double_loop(x, y):
    """1801.01401 eq. 4, pair by pair."""

    def kernel(a, b):
        return (float(np.dot(a.astype(np.float64), b.astype(np.float64))) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_one_subset_of_all_is_the_double_loop():
    x, y = features(20, 0), features(20, 1, shift=0.3)
    found = kernel_distance(x, y, seed=0, subsets=3, size=20)
    assert found.mean == pytest.approx(double_loop(x, y), rel=1e-12)
    assert found.std is None  # every subset is the whole set: the distance is one, and has no spread


def test_subsets_are_drawn_without_replacement_and_their_spread_is_given():
    x, y = features(30, 0), features(50, 1, shift=0.3)
    found = kernel_distance(x, y, seed=7, subsets=6, size=12)
    random = np.random.default_rng(7)
    each = [
        double_loop(x[random.choice(30, 12, replace=False)], y[random.choice(50, 12, replace=False)]) for _ in range(6)
    ]
    assert found.mean == pytest.approx(np.mean(each), rel=1e-12)
    assert found.std == pytest.approx(np.sqrt(np.mean((each - np.mean(each)) ** 2)), rel=1e-10)


def test_it_is_that_of_another_program():
    fidelity = load_metric("metric_kid")
    import torch

    x, y = features(300, 0, size=64), features(300, 1, size=64, shift=0.1)
    options = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False, "rng_seed": 0, "kid_kernel": "poly"}
    options |= {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    theirs = fidelity.kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **options)
    found = kernel_distance(x, y, seed=0, subsets=1, size=300).mean
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)  # theirs is float32


def test_small_sets_of_one_distribution_have_no_distance_on_average():
    random = np.random.default_rng(0)
    draws = [squared_mmd(random.normal(size=(8, 4)) + 1, random.normal(size=(8, 4)) + 1) for _ in range(4000)]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 3 * error
    # The biased estimate has E[k(x, x)] - E[k(x, y)], here about 14, divided by 4 on top: far outside.
    assert error < 0.1


def test_it_sees_a_shift_and_takes_no_more_than_there_are():
    x = features(60, 0)
    near, far = (kernel_distance(x, features(40, 1, shift=shift), seed=0) for shift in (0.0, 1.0))
    assert far.mean > 10 * abs(near.mean)


def test_what_has_no_distance():
    with pytest.raises(UserError, match="two or more"):
        kernel_distance(features(1, 0), features(9, 0), seed=0)
    with pytest.raises(UserError, match="size 5 against size 6"):
        kernel_distance(features(9, 0), features(9, 0, size=6), seed=0)
    broken = features(9, 0)
    broken[3] = np.inf
    with pytest.raises(UserError, match="1 of 9"):
        kernel_distance(broken, features(9, 0), seed=0)
