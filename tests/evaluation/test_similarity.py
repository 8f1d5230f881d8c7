import numpy as np
import pytest
from scipy.signal import convolve2d

from evaluation.similarity import ms_ssim, psnr, ssim
from models.errors import UserError


def test_psnr_by_hand():
    references = np.full((3, 2, 2, 3), 10, np.uint8)
    images = references.copy()
    images[0] = 5  # below the reference: a difference in uint8 would wrap round to 251
    images[1, 0, 0, 0] = 22  # a mean squared error of 144 / 12 = 12
    expected = [20 * np.log10(255 / 5), 10 * np.log10(65025 / 12), np.inf]
    np.testing.assert_allclose(psnr(images, references), expected, rtol=1e-14)


def test_psnr_is_zero_at_worst_and_float64():
    black, white = np.zeros((1, 4, 4, 1), np.uint8), np.full((1, 4, 4, 1), 255, np.uint8)
    assert psnr(black, white) == psnr(white, black) == [0.0]
    assert psnr(black, white).dtype == np.float64


def pairs(*shape, seed=0):
    """Smooth pictures, and each with another amount of noise."""
    rng = np.random.default_rng(seed)
    waves = np.cumsum(rng.normal(0, 4, shape), axis=1) + np.cumsum(rng.normal(0, 4, shape), axis=2)
    references = np.clip(128 + waves, 0, 255)
    noise = rng.normal(0, 1, shape) * np.linspace(3, 60, shape[0])[:, None, None, None]
    return np.clip(references + noise, 0, 255).astype(np.uint8), references.astype(np.uint8)


def factors(x, y):
    """Luminance and contrast-structure of two float64 channels, as the papers write them, with a window in 2-D."""
    d = np.arange(11) - 5.0
    window = np.exp(-(d[:, None] ** 2 + d**2) / 4.5)
    window /= window.sum()
    mean = lambda values: convolve2d(values, window, mode="valid")  # noqa: E731
    mx, my = mean(x), mean(y)
    variance_x, variance_y, covariance = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 6.5025, 58.5225
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    contrast = (2 * np.sqrt(variance_x) * np.sqrt(variance_y) + c2) / (variance_x + variance_y + c2)
    structure = (covariance + c2 / 2) / (np.sqrt(variance_x) * np.sqrt(variance_y) + c2 / 2)
    return luminance, contrast * structure


def channels(image):
    return np.moveaxis(image.astype(np.float64), -1, 0)


@pytest.mark.parametrize("shape", [(40, 11, 29, 3), (3, 64, 48, 1), (2, 300, 200, 3)])
def test_ssim_as_the_paper_writes_it(shape):
    images, references = pairs(*shape)
    expected = [
        np.mean([np.prod(factors(x, y), axis=0).mean() for x, y in zip(channels(image), channels(reference))])
        for image, reference in zip(images, references)
    ]
    found = ssim(images, references)
    assert (found.shape, found.dtype) == (shape[:1], np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(ssim(references, images), found, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 176, 203, 3), (3, 208, 176, 1)])
def test_ms_ssim_as_the_paper_writes_it(shape):
    images, references = pairs(*shape)
    images[0, ..., 0] = 255 - references[0, ..., 0]  # structure below 0, which counts as 0
    expected = []
    for image, reference in zip(images, references):
        values = []
        for x, y in zip(channels(image), channels(reference)):
            product = 1.0
            for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
                if scale:
                    x, y = (convolve2d(z, np.full((2, 2), 0.25), mode="valid")[::2, ::2] for z in (x, y))
                luminance, structure = factors(x, y)
                product *= max(0, (luminance * structure if scale == 4 else structure).mean()) ** weight
            values.append(product)
        expected.append(np.mean(values))
    found = ms_ssim(images, references)
    assert (found.shape, found.dtype) == (shape[:1], np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert expected[0] < expected[-1] < 1


def test_equal_images_are_1():
    images = pairs(2, 176, 176, 3)[0]
    np.testing.assert_allclose(ssim(images, images), [1, 1], rtol=1e-12)
    np.testing.assert_allclose(ms_ssim(images, images), [1, 1], rtol=1e-12)


def test_a_constant_against_a_constant_is_its_luminance():
    """Without structure SSIM is (2ab + C1) / (a^2 + b^2 + C1), and MS-SSIM that to the last scale's power."""
    a, b = np.full((1, 180, 180, 1), 40, np.uint8), np.full((1, 180, 180, 1), 200, np.uint8)
    luminance = (2 * 40 * 200 + 6.5025) / (40**2 + 200**2 + 6.5025)
    np.testing.assert_allclose(ssim(a, b), luminance, rtol=1e-9)
    np.testing.assert_allclose(ms_ssim(a, b), luminance**0.1333, rtol=1e-9)


def test_a_shift_of_all_pixels_leaves_contrast_and_structure():
    reference = pairs(1, 32, 32, 1, seed=1)[1] // 2
    x = reference[0, ..., 0].astype(np.float64)
    luminance, structure = factors(x + 60, x)
    np.testing.assert_allclose(structure, 1, rtol=1e-9)
    np.testing.assert_allclose(ssim(reference + np.uint8(60), reference), luminance.mean(), rtol=1e-10)


def test_a_negative_is_below_zero():
    reference = pairs(1, 32, 32, 3, seed=2)[1]
    assert ssim(255 - reference, reference)[0] < 0


@pytest.mark.parametrize("shape", [(1, 10, 40, 1), (1, 40, 10, 3)])
def test_no_window_fits_in_ten_pixels(shape):
    with pytest.raises(UserError, match="too small for SSIM, which needs 11"):
        ssim(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(1, 175, 256, 1), (1, 256, 175, 3)])
def test_five_scales_need_176_pixels(shape):
    with pytest.raises(UserError, match="too small for MS-SSIM, which needs 176"):
        ms_ssim(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


def test_no_images_have_no_similarities():
    assert ssim(*np.zeros((2, 0, 16, 16, 3), np.uint8)).shape == (0,)
