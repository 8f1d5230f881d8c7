import itertools
from functools import reduce

import numpy as np
import pytest
from fidelity import load_metric
from scipy.linalg import sqrtm

from evaluation import statistics
from evaluation.statistics import Gaussian, Statistics, frechet_distance, load_statistics, merge, save_statistics
from models.errors import UserError


def correlated(count, size, *, seed, shift=0.0):
    """Features like Inception's: not negative, correlated, most of the variance in few directions."""
    mixing = np.random.default_rng(99).normal(size=(size, size)) / np.arange(1, size + 1)[:, None]
    noise = np.random.default_rng(seed).normal(size=(count, size))
    return np.maximum(0.3 + 0.15 * (noise @ mixing + shift), 0).astype(np.float32)


def two_pass(features):
    x = features.astype(np.longdouble)
    return x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0))


def from_features(x, y):
    """The Frechet distance without covariances: (A B)^(1/2) has the singular values of the centred X Y^T as eigenvalues."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    of_means = ((x.mean(0) - y.mean(0)) ** 2).sum()
    x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    return of_means + (x**2).sum() + (y**2).sum() - 2 * np.linalg.norm(x @ y.T, "nuc")


@pytest.mark.parametrize("cuts", [(), (1,), (0, 500), (3, 3, 64, 999), tuple(range(0, 1000, 7))])
def test_blocks_merged_are_the_two_pass_statistics_with_a_large_mean(cuts):
    # float64 sums of squares would lose (1e4 / 1)^2 = 8 of their 16 digits, float32 sums all of theirs.
    features = (np.random.default_rng(0).normal(size=(1000, 6)) + 1e4).astype(np.float32)
    mean, scatter = two_pass(features)
    found = reduce(merge, map(Statistics.of, np.split(features, cuts)))
    assert found.count == 1000
    np.testing.assert_allclose(found.mean, mean.astype(float), rtol=1e-14)
    np.testing.assert_allclose(found.scatter, scatter.astype(float), rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)


def test_one_call_cuts_itself_into_blocks(monkeypatch):
    features = correlated(100, 5, seed=0)
    whole = Statistics.of(features)
    monkeypatch.setattr(statistics, "BLOCK", 7)
    np.testing.assert_allclose(Statistics.of(features).scatter, whole.scatter, rtol=1e-12)


def test_merge_is_associative_and_commutative():
    blocks = [Statistics.of(correlated(count, 4, seed=count) + 5 * count) for count in (1, 2, 30)]
    expected = Statistics.of(np.concatenate([correlated(count, 4, seed=count) + 5 * count for count in (1, 2, 30)]))
    for a, b, c in itertools.permutations(blocks):
        for found in (merge(merge(a, b), c), merge(a, merge(b, c))):
            np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
            np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-12)


def test_an_empty_block_changes_nothing():
    some, none = Statistics.of(correlated(9, 3, seed=0)), Statistics.of(np.zeros((0, 3), np.float32))
    for found in (merge(some, none), merge(none, some)):
        assert found.count == 9
        np.testing.assert_array_equal(found.mean, some.mean)
        np.testing.assert_array_equal(found.scatter, some.scatter)
    assert merge(none, none).count == 0


def test_what_statistics_cannot_be_of():
    features = correlated(9, 3, seed=0)
    features[[2, 5], [0, 1]] = np.nan, -np.inf
    with pytest.raises(UserError, match="2 of 9 rows"):
        Statistics.of(features)
    with pytest.raises(UserError, match="size 3 against size 4"):
        merge(Statistics.of(features[:1]), Statistics.of(np.zeros((1, 4))))
    with pytest.raises(UserError, match="two or more"):
        _ = Statistics.of(features[:1]).covariance


def test_statistics_are_read_as_they_were_written(tmp_path):
    sets = {
        name: Statistics.of(correlated(30, size, seed=size))
        for name, size in {"2048": 2048, "768": 768, "spatial": 12, "classifier": 5}.items()
    }
    save_statistics(tmp_path / "s.npz", sets)
    found = load_statistics(tmp_path / "s.npz")
    assert found.keys() == sets.keys()
    for name, expected in sets.items():
        assert found[name].count == 30
        np.testing.assert_array_equal(found[name].mean, expected.mean)
        np.testing.assert_array_equal(found[name].covariance, expected.covariance)
    with np.load(tmp_path / "s.npz") as file:
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(file.files)


def test_the_layout_of_adm(tmp_path):
    """Images first, then statistics of something larger, without a count; in float32 here."""
    pool, spatial = (Statistics.of(correlated(50, size, seed=size)) for size in (2048, 2023))
    arrays = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), **arrays)
    found = load_statistics(tmp_path / "adm.npz")
    assert found.keys() == {"2048", "spatial"}
    assert found["2048"].count is None
    assert found["2048"].covariance.dtype == np.float64
    np.testing.assert_allclose(found["spatial"].covariance, spatial.covariance, rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros(3)}, "holds arr_0 and no mu"),
        ({"mu": np.zeros(3)}, "without sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"\(3, 4\)"),
        ({"mu": np.array([0.0, np.nan]), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "no mean"),
        ({"mu": np.array([{"code": 1}]), "sigma": np.eye(1)}, "Python objects"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "n": np.array([1, 2])}, "one whole number"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "n": np.array("many")}, "one whole number"),
    ],
)
def test_files_that_are_no_statistics(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_statistics(tmp_path / "s.npz")


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        load_statistics(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("mu")
    with pytest.raises(UserError, match="no readable npz"):
        load_statistics(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match="no arrays by name"):
        load_statistics(tmp_path / "one.npy")


def test_commuting_gaussians_have_the_distance_of_their_deviations():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    a, b = np.array([4.0, 1, 9, 0.25, 1e-6]), np.array([1.0, 1, 4, 16, 1e-2])
    mean = np.arange(5.0)
    found = frechet_distance(
        Gaussian(mean, (rotation * a) @ rotation.T, None), Gaussian(-mean, (rotation * b) @ rotation.T, None)
    )
    assert found.of_means == 4 * 30
    assert found.of_covariances == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)
    assert found.value == found.of_means + found.of_covariances
    assert found.warnings == ()


def test_covariances_that_do_not_commute():
    # 2x2: the trace of (A B)^(1/2) is sqrt(tr AB + 2 sqrt(det AB)).
    a, b = np.array([[2.0, 1], [1, 2]]), np.array([[5.0, 0], [0, 1]])
    expected = 4 + 6 - 2 * np.sqrt(12 + 2 * np.sqrt(15))
    assert not np.allclose(a @ b, b @ a)
    assert expected != pytest.approx(((sqrtm(a) - sqrtm(b)) ** 2).sum(), rel=1e-2)  # what holds for those that do
    assert frechet_distance(Gaussian(np.zeros(2), a, None), Gaussian(np.zeros(2), b, None)).value == pytest.approx(
        expected, rel=1e-14
    )


def test_the_distance_is_that_of_a_matrix_square_root():
    a, b = (Statistics.of(correlated(400, 60, seed=seed, shift=seed / 10)) for seed in (0, 1))
    root = sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    found = frechet_distance(a, b)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.residual < 1e-13
    assert found.warnings == ()


def test_a_set_of_768_features_has_no_distance_from_itself():
    a = Statistics.of(correlated(3000, 768, seed=0))
    found = frechet_distance(a, a)
    assert abs(found.value) < 1e-9
    assert found.of_means == 0


@pytest.mark.slow
def test_a_set_of_2048_features_has_no_distance_from_itself():
    a = Statistics.of(correlated(3000, 2048, seed=0))
    assert abs(frechet_distance(a, a).value) < 1e-9


@pytest.mark.parametrize("counts", [(100, 100), (100, 150), (100, 400)])
def test_singular_covariances_give_the_distance_of_the_features_themselves(counts):
    # Roots of A B's rounding errors, where it should be 0, would be 1e-8 each and make the distance wrong by 1e-5.
    x, y = (correlated(count, 160, seed=seed, shift=seed / 10) for seed, count in enumerate(counts))
    expected = from_features(x, y)
    a, b = Statistics.of(x), Statistics.of(y)
    found = frechet_distance(a, b)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert any("100 samples" in warning and "160 features" in warning for warning in found.warnings)
    root = sqrtm(a.covariance @ b.covariance).real  # which has these errors: as near as it comes
    assert found.value == pytest.approx(
        ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root), rel=1e-4
    )
    assert abs(frechet_distance(a, a).value) < 1e-12


@pytest.mark.parametrize("count", [100, 1000])
def test_noise_in_the_last_bits_moves_the_distance_by_no_more(count):
    x, y = (correlated(count, 160, seed=seed, shift=seed / 10) for seed in (0, 1))
    random = np.random.default_rng(2)
    noisy = [z * (1 + 1e-7 * random.normal(size=z.shape)) for z in (x, y)]
    assert not np.array_equal(noisy[0], x)
    before = frechet_distance(Statistics.of(x), Statistics.of(y)).value
    assert frechet_distance(*map(Statistics.of, noisy)).value == pytest.approx(before, rel=1e-7)


def test_a_covariance_that_is_none_warns():
    bad = Gaussian(np.zeros(2), np.diag([3.0, -0.5]), None)
    found = frechet_distance(bad, Gaussian(np.zeros(2), np.eye(2), None))
    assert found.smallest_eigenvalue == pytest.approx(-0.5 / 2.5)
    assert found.residual == pytest.approx(0.5 / np.hypot(3, 0.5))
    assert "-2.0e-01 of its trace" in found.warnings[0]


def test_two_sizes_have_no_distance():
    with pytest.raises(UserError, match="size 3 against size 2"):
        frechet_distance(Gaussian(np.zeros(3), np.eye(3), None), Gaussian(np.zeros(2), np.eye(2), None))


def test_distances_of_images_are_those_of_another_program():
    """torch-fidelity's, which takes the eigenvalues of A B."""
    fidelity = load_metric("metric_fid")
    x, y = (correlated(500, 64, seed=seed, shift=seed / 10).astype(np.float64) for seed in (0, 1))
    theirs = [{"mu": z.mean(0), "sigma": np.cov(z, rowvar=False)} for z in (x, y)]
    expected = fidelity.fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(Statistics.of(x), Statistics.of(y)).value == pytest.approx(expected, rel=1e-8)
