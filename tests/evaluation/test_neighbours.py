import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from evaluation.neighbours import near_copies, nearest, usual_distance


def brute_force(queries, references, exclude_self=False):
    squares = np.array([[((q.astype(float) - r) ** 2).sum() for r in references] for q in queries])
    if exclude_self:
        np.fill_diagonal(squares, np.inf)
    return np.sqrt(squares.min(1)) / 255, squares.argmin(1)


@pytest.mark.parametrize("block", [1, 7, 32, 33, 100])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_nearest_is_the_float64_loop_for_every_block_size(block, exclude_self):
    # Few grey levels: many references are equally near, so the choice among equals is tested too.
    random = np.random.default_rng(0)
    references = random.integers(0, 3, (33, 2, 2, 1), np.uint8)
    queries = references if exclude_self else random.integers(0, 3, (40, 2, 2, 1), np.uint8)
    distances, indices = nearest(queries, references, exclude_self=exclude_self, block=block)
    expected_distances, expected_indices = brute_force(queries, references, exclude_self)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-15)
    np.testing.assert_array_equal(indices, expected_indices)


def test_nearest_is_that_of_scikit_learn(digits):
    images, _, held_out = digits
    queries, references = images[held_out], images[~held_out]
    flat = [x.reshape(len(x), -1) / 255 for x in (references, queries)]
    expected = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(flat[0]).kneighbors(flat[1])
    distances, indices = nearest(queries, references, block=500)
    np.testing.assert_allclose(distances, expected[0][:, 0], rtol=1e-9)
    np.testing.assert_array_equal(indices, expected[1][:, 0])


def test_one_grey_level_in_a_bright_image_is_seen():
    # Without centring, the sums reach 5e7 and float32 keeps multiples of 4: it cannot tell 1 from 0.
    image = np.full((28, 28, 1), 254, np.uint8)
    references = np.stack([image] * 2)
    references[0, 0, 0], references[1, 3, 3] = 252, 253
    distances, indices = nearest(image[None], references)
    assert (distances[0], indices[0]) == (1 / 255, 1)


def test_colour_images_give_exact_distances():
    random = np.random.default_rng(1)
    references = random.integers(0, 256, (30, 32, 32, 3), np.uint8)
    queries = random.integers(0, 256, (9, 32, 32, 3), np.uint8)
    distances, indices = nearest(queries, references)
    expected_distances, expected_indices = brute_force(queries, references)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-15)
    np.testing.assert_array_equal(indices, expected_indices)


def test_a_duplicate_is_another_image(digits):
    images = digits[0][:20].copy()
    images[13] = images[4]
    distances, indices = nearest(images, images, exclude_self=True, block=6)
    assert (indices[4], indices[13]) == (13, 4)
    assert np.flatnonzero(distances == 0).tolist() == [4, 13]
    assert (indices != np.arange(20)).all()


def test_exclude_self_needs_the_same_images(digits):
    with pytest.raises(ValueError, match="3 queries"):
        nearest(digits[0][:3], digits[0][:4], exclude_self=True)


def test_near_copies_of_digits(digits, noise):
    images, _, held_out = digits
    train = images[~held_out]
    distance = usual_distance(train)
    assert near_copies(train[::7], train, distance) == 1
    assert 0.35 < near_copies(images[held_out], train, distance) < 0.65
    assert near_copies(noise, train, distance) == 0


def test_near_is_nearer_than_the_median_training_image():
    # On a line at 0, 1, 3, 6, 10: the nearest others are 1, 1, 2, 3, 4 away, their median is 2.
    train = np.array([0, 1, 3, 6, 10], np.uint8).reshape(-1, 1, 1, 1)
    samples = np.array([11, 12, 13, 8], np.uint8).reshape(-1, 1, 1, 1)  # 1, 2, 3 and 2 away
    assert usual_distance(train) == pytest.approx(2 / 255)
    assert near_copies(samples, train, usual_distance(train)) == 1 / 4
