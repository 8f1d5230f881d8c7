import numpy as np
import pytest
from PIL import Image

from input_pipeline.transforms import (
    center_crop,
    random_crop,
    random_flip,
    random_shift,
    to_channels,
    to_float,
    to_uint8,
)
from models.errors import UserError


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def box_means(image):
    """Means of 2 x 2 blocks as PIL's 8-bit arithmetic has them: along the rows, then the columns, a half rounded up."""
    rows = (image[:, ::2].astype(int) + image[:, 1::2] + 1) // 2
    return (rows[::2] + rows[1::2] + 1) // 2


@pytest.mark.parametrize("channels", [1, 3])
def test_center_crop_halves_powers_of_two_with_exact_box_means(channels):
    image = noise(64, 64, channels)
    np.testing.assert_array_equal(center_crop(image, 16), box_means(box_means(image)))


def test_center_crop_cuts_the_middle_of_a_wide_and_of_a_tall_image():
    image = noise(16, 29)
    np.testing.assert_array_equal(center_crop(image, 16), image[:, 6:22])
    np.testing.assert_array_equal(center_crop(image.transpose(1, 0, 2), 16), image.transpose(1, 0, 2)[6:22])


def test_center_crop_is_what_adm_does_for_odd_sizes():
    image = noise(75, 130)
    halved = Image.fromarray(image).resize((65, 37), Image.Resampling.BOX)  # 75 >= 2 * 32, 37 < 2 * 32
    resized = np.asarray(halved.resize((56, 32), Image.Resampling.BICUBIC))  # round(65 * 32 / 37) = 56
    np.testing.assert_array_equal(center_crop(image, 32), resized[:, 12:44])


@pytest.mark.parametrize(("size", "resolution"), [(8, 16), (28, 32)])
def test_center_crop_enlarges_small_images_with_a_bicubic_filter(size, resolution):
    image = noise(size, size, 1)
    expected = Image.fromarray(image[..., 0]).resize((resolution, resolution), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(center_crop(image, resolution)[..., 0], np.asarray(expected))


@pytest.mark.parametrize("size", [16, 28, 75, 128])
def test_random_crop_of_all_of_a_square_is_center_crop(size):
    image = noise(size, size)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(random_crop(image, 16, (1.0, 1.0), rng), center_crop(image, 16))


def test_random_crop_stays_inside_and_reaches_every_edge():
    rows, columns = np.mgrid[0:40, 0:60]
    image = np.stack([rows * 4, columns * 4, rows * 0], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(0)
    crops = np.stack([random_crop(image, 8, (0.5, 1.0), rng) for _ in range(500)]).astype(float)
    heights = crops[:, -1, 0, 0] - crops[:, 0, 0, 0]
    widths = crops[:, 0, -1, 1] - crops[:, 0, 0, 1]
    np.testing.assert_allclose(heights, widths, atol=14)  # squares, up to the filter at the border
    assert (heights.min(), heights.max()) == pytest.approx((0.5 * 160 * 7 / 8, 160 * 7 / 8), abs=12)
    assert crops[:, 0, 0, 0].min() < 12
    assert crops[:, -1, 0, 0].max() > 144
    assert crops[:, 0, 0, 1].min() < 12
    assert crops[:, 0, -1, 1].max() > 224


def test_random_crop_never_leaves_an_image_of_awkward_size():
    rng = np.random.default_rng(1)
    for height, width in [(7, 7), (13, 29), (31, 17), (333, 201)]:
        for scale in [(0.999999, 1.0), (1.0, 1.0), (0.1, 0.2)]:
            for _ in range(20):
                assert random_crop(noise(height, width), 8, scale, rng).shape == (8, 8, 3)


def test_random_crop_halves_before_it_reduces_much():
    image = np.zeros((256, 256, 1), np.uint8)
    image[1::2] = 255  # stripes of a pixel: their mean is grey
    crop = random_crop(image, 16, (0.9, 0.9), np.random.default_rng(0))
    assert np.abs(crop.astype(int) - 128).max() <= 1


def test_random_crop_halves_no_further_than_the_crop_allows():
    image = np.zeros((64, 64, 1), np.uint8)
    image[np.arange(64) % 4 < 2] = 255  # halved once the stripes are a pixel wide, halved twice they are gone
    rng = np.random.default_rng(0)
    assert max(np.ptp(random_crop(image, 16, (0.5, 0.5), rng)) for _ in range(20)) > 200


def test_random_shift_moves_by_every_offset_and_repeats_the_edge():
    image = noise(6, 7, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    expected = {padded[y : y + 6, x : x + 7].tobytes() for y in range(5) for x in range(5)}
    rng = np.random.default_rng(0)
    assert {random_shift(image, 2, rng).tobytes() for _ in range(400)} == expected


def test_random_flip_mirrors_the_columns_half_of_the_time():
    image, rng = noise(4, 5), np.random.default_rng(0)
    flips = [random_flip(image, rng) for _ in range(400)]
    mirrored = sum(np.array_equal(flip, np.fliplr(image)) for flip in flips)
    kept = sum(np.array_equal(flip, image) for flip in flips)
    assert mirrored + kept == 400
    assert 160 < mirrored < 240


def test_channels_are_repeated_and_weighted():
    grey, colour = noise(4, 4, 1), noise(4, 4, 3)
    assert (to_channels(grey, 3) == grey).all()
    assert to_channels(grey, 3).shape == (4, 4, 3)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(to_channels(colour, 1)[..., 0], luma, atol=1)
    assert to_channels(colour, 3) is colour
    with pytest.raises(UserError, match=r"data\.channels is 4"):
        to_channels(grey, 4)


def test_bytes_survive_the_way_to_floats_and_back():
    values = np.arange(256, dtype=np.uint8)
    floats = to_float(values)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_allclose(floats, np.arange(256) / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(to_uint8(floats), values)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, -1.001, 1.001, 3.0])), [0, 0, 255, 255])
    np.testing.assert_array_equal(to_uint8((np.array([100.4, 100.6]) / 127.5) - 1), [100, 101])
