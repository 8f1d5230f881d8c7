"""Features of image sets: which of them are kept, and that they are computed once."""

import jax.numpy as jnp
import numpy as np
import pytest

from evaluation import features
from evaluation.features import Extractor, gather, join, measure
from evaluation.image_sets import ImageSet
from evaluation.statistics import Statistics
from models.errors import UserError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (23, 4, 4, 1), np.uint8)


def network(params, images):
    """The two halves of the pixels."""
    flat = images.reshape(len(images), -1).astype(jnp.float32) * params
    return {"a": flat[:, :3], "spatial": flat[:, 3:5]}


@pytest.fixture
def extractor():
    return Extractor(network, jnp.float32(0.5), ("a", "spatial"), weights="w", batch_size=5)


@pytest.fixture
def images():
    return ImageSet("some", len(IMAGES), IMAGES.__getitem__)


def pieces(rows, size):
    return ({"a": rows[n : n + size], "spatial": rows[n : n + size]} for n in range(0, len(rows), size))


@pytest.mark.parametrize("size", [1, 4, 7, 23])
def test_rows_are_spread_and_statistics_are_of_all(monkeypatch, size):
    monkeypatch.setattr(features, "ROWS", 6)
    rows = RANDOM.normal(size=(23, 3)).astype(np.float32)
    found = gather(pieces(rows, size), 23)
    np.testing.assert_array_equal(found.rows["a"], rows[np.arange(6) * 23 // 6])
    assert found.rows.keys() == {"a"}  # nothing is taken of single spatial features
    for gaussian in found.gaussians.values():
        np.testing.assert_allclose(gaussian.covariance, np.cov(rows.T), rtol=1e-6)
        assert gaussian.count == 23


def test_features_that_are_not_finite_are_named():
    with pytest.raises(UserError, match="1 of 4 rows of the a features"):
        gather(pieces(np.array([[0, 0], [0, np.nan], [1, 1], [2, 2]], np.float32), 4), 4)


def test_a_set_is_looked_at_once(extractor, images, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(features, "BLOCK", 10)
    first = measure(images, extractor)
    flat = IMAGES.reshape(23, -1) * np.float32(0.5)
    np.testing.assert_array_equal(first.rows["a"], flat[:, :3])
    np.testing.assert_allclose(first.gaussians["spatial"].mean, flat[:, 3:5].mean(0), rtol=1e-6)
    assert first.images_per_second > 0
    (folder,) = (tmp_path / "tessera" / "features").iterdir()
    assert [path.name for path in folder.iterdir()] == ["whole.npz"]

    monkeypatch.setattr(Extractor, "__call__", lambda *_: pytest.fail("it was computed again"))
    again = measure(images, extractor)
    assert again.images_per_second == first.images_per_second
    np.testing.assert_array_equal(again.rows["a"], first.rows["a"])
    for name, gaussian in again.gaussians.items():
        np.testing.assert_array_equal(gaussian.covariance, first.gaussians[name].covariance)
        assert gaussian.count == 23


def test_other_weights_have_other_features(extractor, images, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = Extractor(network, jnp.float32(2), ("a", "spatial"), weights="v", batch_size=5)
    np.testing.assert_array_equal(4 * measure(images, extractor).rows["a"], measure(images, other).rows["a"])


def test_hosts_that_do_not_see_each_other_are_told(extractor, images, monkeypatch, tmp_path):
    monkeypatch.setattr(features, "BLOCK", 10)
    monkeypatch.setattr("evaluation.shards.jax.process_count", lambda: 2)
    monkeypatch.setattr("evaluation.shards.multihost_utils.sync_global_devices", lambda name: None)
    with pytest.raises(UserError, match=r"1 of 3 pieces are not in .* set XDG_CACHE_HOME"):
        measure(images, extractor, tmp_path)


def test_several_networks_see_the_same_images():
    rows = RANDOM.normal(size=(9, 2)).astype(np.float32)
    found = join([gather(({"a": rows} for _ in range(1)), 9), gather(({"b": 2 * rows} for _ in range(1)), 9)])
    assert found.rows.keys() == found.gaussians.keys() == {"a", "b"}
    np.testing.assert_allclose(found.gaussians["b"].mean, 2 * Statistics.of(rows).mean)
    assert join([]).rows == {}


def test_without_a_network_nothing_is_gathered():
    found = gather([{}, {}], 5)
    assert (found.gaussians, found.rows) == ({}, {})
