"""What one side of a distance may be."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evaluation.features import Extractor
from evaluation.references import open_reference
from models.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def extractor(name):
    return Extractor(
        lambda params, images: {name: images.reshape(len(images), -1)[:, :2].astype(jnp.float32)},
        jnp.zeros(()), (name,), weights=name,
    )  # fmt: skip


def statistics(path, name, **arrays):
    np.savez(path, **{f"mu_{name}": np.ones(2), f"sigma_{name}": np.eye(2)}, **arrays)
    return str(path)


def test_statistics_serve_the_network_that_they_are_of(tmp_path):
    """A published file has nothing for the classifier that is fitted here, and must not be refused for it."""
    reference = open_reference(statistics(tmp_path / "s.npz", "a"))
    found = reference.features([extractor("a"), extractor("b")])
    assert found.gaussians.keys() == {"a"}
    assert found.rows == {}
    assert reference.count is None
    with pytest.raises(UserError, match=r"statistics of the features a \(2\); b were asked for"):
        reference.features([extractor("b")])
    assert reference.features([]).gaussians == {}


def test_a_batch_with_statistics_gives_both(tmp_path):
    """ADM's layout: the statistics are of all training images, the images are some of them."""
    reference = open_reference(statistics(tmp_path / "s.npz", "a", arr_0=IMAGES))
    found = reference.features([extractor("a"), extractor("b")])
    np.testing.assert_array_equal(found.gaussians["a"].mean, 1)
    np.testing.assert_allclose(found.gaussians["b"].mean, IMAGES.reshape(9, -1)[:, :2].mean(0))
    assert len(found.rows["a"]) == len(found.rows["b"]) == reference.count == 9


def test_the_file_says_of_how_many_images_its_statistics_are(tmp_path):
    assert open_reference(statistics(tmp_path / "s.npz", "a", n_a=50)).count == 50


def test_a_file_is_a_file_whatever_its_name(tmp_path):
    path = tmp_path / "a:b.npz"
    np.savez(path, images=IMAGES)
    assert open_reference(str(path)).count == 9
    np.save(tmp_path / "c.npy", IMAGES)
    with pytest.raises(UserError, match="no arrays by name"):
        open_reference(str(tmp_path / "c.npy"))
    Image.fromarray(IMAGES[0]).save(tmp_path / "d.png")
    with pytest.raises(UserError, match="no readable npz"):
        open_reference(str(tmp_path / "d.png"))
    with pytest.raises(UserError, match="is not there"):
        open_reference(str(tmp_path / "none.npz"))


def test_images_are_brought_to_the_size_asked_for(tmp_path):
    np.savez(tmp_path / "a.npz", IMAGES)
    assert open_reference(str(tmp_path / "a.npz"), resolution=2, channels=1).images.block(0, 9).shape == (9, 2, 2, 1)
