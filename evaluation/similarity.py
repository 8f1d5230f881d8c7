"""How far a reconstruction is from its original, image by image: PSNR, SSIM and MS-SSIM."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import correlate1d

from models.errors import UserError

# Wang et al. 2004: a Gaussian window of 11x11 pixels and standard deviation 1.5; C1 = (K1 L)^2 and C2 = (K2 L)^2.
RADIUS = 5
WINDOW = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * 1.5**2))
WINDOW /= WINDOW.sum()
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

# Wang et al. 2003: how much each scale counts, from the finest to the coarsest.
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

SMALLEST = len(WINDOW)  # pixels a side, of which a window sees all
SMALLEST_MULTI = SMALLEST * 2 ** (len(SCALES) - 1)


def psnr(images: UInt8[np.ndarray, "N H W C"], references: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N"]:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared error), in dB, float64; inf where images are equal."""
    difference = images.astype(np.float64) - references
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / (difference**2).mean((1, 2, 3)))


def ssim(images: UInt8[np.ndarray, "N H W C"], references: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N"]:
    """Structural similarity, float64: 1 for equal images, at least -1 (Wang et al. 2004, equation 13).

    K1 = 0.01, K2 = 0.03, L = 255; the window's weights sum to 1 and so do those of the variances (no N / (N - 1));
    only windows that lie within the image count. Their mean is taken of each channel by itself, then over the channels.
    Images are not made smaller first.

    Raises:
      UserError: for images of fewer than 11 pixels a side, in which no window fits.
    """
    check_side("SSIM", images, SMALLEST)
    return in_blocks(lambda x, y: np.prod(luminance_and_structure(x, y), axis=0).mean((1, 2, 3)), images, references)


def ms_ssim(images: UInt8[np.ndarray, "N H W C"], references: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N"]:
    """Structural similarity over five scales, float64 in [0, 1] (Wang et al. 2003, equation 7).

    The product of contrast and structure at the first four scales and of SSIM at the fifth, each the mean over the
    windows of `ssim`, to the powers 0.0448, 0.2856, 0.3001, 0.2363 and 0.1333; a negative mean counts as 0. Each scale
    averages 2x2 pixels of the one before, without an odd last row or column. The product is taken of each channel by
    itself, then its mean over the channels.

    Raises:
      UserError: for images of fewer than 176 pixels a side, in which no window fits at the fifth scale. (Fewer scales
        would be another measure.)
    """
    check_side("MS-SSIM", images, SMALLEST_MULTI)
    return in_blocks(_ms_ssim, images, references)


def _ms_ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    product = np.ones((len(x), x.shape[-1]))
    for scale, weight in enumerate(SCALES):
        if scale:
            x, y = halve(x), halve(y)
        luminance, structure = luminance_and_structure(x, y)
        similarity = luminance * structure if scale == len(SCALES) - 1 else structure
        product *= np.maximum(similarity.mean((1, 2)), 0) ** weight
    return product.mean(1)


def luminance_and_structure(
    x: Float[np.ndarray, "N H W C"], y: Float[np.ndarray, "N H W C"]
) -> tuple[Float[np.ndarray, "N h w C"], Float[np.ndarray, "N h w C"]]:
    """The two factors of SSIM at every window, h = H - 10 and w = W - 10: equations 6, and 9 times 10, of the paper."""
    mean_x, mean_y = smooth(x), smooth(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance, variances = smooth(x * y) - product, smooth(x**2 + y**2) - squares
    return (2 * product + C1) / (squares + C1), (2 * covariance + C2) / (variances + C2)


def smooth(x: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N h w C"]:
    """The weighted mean of every window that lies within the image."""
    inside = slice(RADIUS, -RADIUS)
    return correlate1d(correlate1d(x, WINDOW, axis=1)[:, inside], WINDOW, axis=2)[:, :, inside]


def halve(x: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N h w C"]:
    """The mean of every 2x2 pixels; an odd last row or column is left out."""
    n, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def in_blocks(
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray], images: np.ndarray, references: np.ndarray
) -> Float[np.ndarray, "N"]:
    """`similarity` of as many float64 images at a time as stay near the processor."""
    block = max(1, 2**17 // images[0].size) if len(images) else 1
    values = np.empty(len(images))
    for start in range(0, len(images), block):
        x, y = (array[start : start + block].astype(np.float64) for array in (images, references))
        values[start : start + block] = similarity(x, y)
    return values


def check_side(name: str, images: np.ndarray, smallest: int) -> None:
    """A UserError where the images' shorter side has fewer than `smallest` pixels."""
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        raise UserError(f"images of {height}x{width} pixels are too small for {name}, which needs {smallest} a side.")
