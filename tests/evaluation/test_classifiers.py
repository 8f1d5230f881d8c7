from functools import partial

import jax
import numpy as np
import pytest

from evaluation.classifiers import CLASSIFIERS, augment, convnet, svc


def test_svc_reads_held_out_digits(digits):
    images, labels, held_out = digits
    predict = svc(images[~held_out], labels[~held_out], seed=0)
    assert (predict(images[held_out]) == labels[held_out]).mean() >= 0.98


def test_convnet_learns_digits(digits):
    images, labels, held_out = digits
    predict = convnet(images[~held_out], labels[~held_out], seed=0, width=16, epochs=12, batch=64)
    found = predict(images[held_out])
    assert found.shape == (held_out.sum(),)
    assert np.issubdtype(found.dtype, np.integer)
    assert (found == labels[held_out]).mean() >= 0.95


def hardly_trained(digits, seed):
    images, labels, _ = digits
    return convnet(images[:300], labels[:300], seed=seed, width=4, epochs=1)


@pytest.fixture(scope="module")
def predict(digits):
    return hardly_trained(digits, seed=3)


def test_convnet_is_the_same_for_the_same_seed(digits, noise, predict):
    # What a hardly trained network says about noise are near ties: any difference in the weights shows.
    np.testing.assert_array_equal(hardly_trained(digits, seed=3)(noise), predict(noise))
    assert (hardly_trained(digits, seed=4)(noise) != predict(noise)).any()


def test_prediction_is_one_image_at_a_time(digits, predict):
    images = digits[0][:1203]  # more than one block, the last one short
    found = predict(images)
    assert found.shape == (1203,)
    np.testing.assert_array_equal(found[998:1005], np.concatenate([predict(x[None]) for x in images[998:1005]]))


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


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_tells_dark_from_bright(name):
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = (random.integers(0, 100, (200, 8, 8, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8)
    predict = CLASSIFIERS[name](images, labels, seed=0)
    np.testing.assert_array_equal(predict(images), labels)
