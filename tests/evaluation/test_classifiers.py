from functools import partial

import jax
import numpy as np
import pytest

from evaluation.classifiers import augment, fit
from evaluation.features import Extractor


def looker(images, labels, **how):
    classifier = fit(images, labels, classes=int(labels.max()) + 1, **how)
    return Extractor(classifier, classifier.params, ("classifier",), weights="", batch_size=500)


@pytest.fixture(scope="module")
def seen(digits):
    """What a classifier of the digits sees in those held out."""
    images, labels, held_out = digits
    return looker(images[~held_out], labels[~held_out], seed=0, epochs=30)(images[held_out])


def test_it_learns_digits(digits, seen):
    _, labels, held_out = digits
    assert seen["class"].shape == (held_out.sum(),)
    assert (seen["class"] == labels[held_out]).mean() >= 0.985


def hardly_trained(digits, seed):
    images, labels, _ = digits
    return looker(images[:300], labels[:300], seed=seed, width=4, epochs=1)


@pytest.fixture(scope="module")
def hardly(digits):
    return hardly_trained(digits, seed=3)


def test_it_is_the_same_for_the_same_seed(digits, noise, hardly):
    np.testing.assert_array_equal(hardly_trained(digits, seed=3)(noise)["classifier"], hardly(noise)["classifier"])
    assert (hardly_trained(digits, seed=4)(noise)["classifier"] != hardly(noise)["classifier"]).any()


def test_features_tell_classes_apart_and_are_averages_over_positions(digits, seen):
    _, labels, held_out = digits
    features = seen["classifier"]
    assert features.shape == (held_out.sum(), 128)
    means = np.stack([features[labels[held_out] == label].mean(0) for label in range(10)])
    nearest = ((features[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == labels[held_out]).mean() > 0.8


def test_augmented_images_are_shifts_and_mirrors():
    image = np.arange(25, dtype=np.uint8).reshape(5, 5, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = {padded[y : y + 5, x : x + 5].tobytes() for y in range(3) for x in range(3)}
    mirrors = {np.frombuffer(s, np.uint8).reshape(5, 5)[:, ::-1].tobytes() for s in shifts}
    many = np.stack([image] * 400)

    def found(**how):
        augmented = jax.jit(partial(augment, **how))(many, jax.random.key(0))
        return {x.tobytes() for x in np.asarray(augmented)}

    assert found(shift=0, flip=False) == {image.tobytes()}
    assert found(shift=1, flip=False) == shifts
    assert found(shift=1, flip=True) == shifts | mirrors


def test_it_tells_dark_from_bright():
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = (random.integers(0, 100, (200, 8, 8, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8)
    np.testing.assert_array_equal(looker(images, labels, seed=0)(images)["class"], labels)
