import numpy as np

from evaluation.similarity import psnr


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
