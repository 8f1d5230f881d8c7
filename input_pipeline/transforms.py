"""What happens to one image, uint8 (h, w, c), between the file and the batch."""

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike
from PIL import Image

from models.errors import UserError

Pixels = UInt8[np.ndarray, "h w c"]


def center_crop(image: Pixels, resolution: int) -> UInt8[np.ndarray, "{resolution} {resolution} c"]:
    """The middle square, resized as ADM does it (Dhariwal and Nichol, 2021, `guided_diffusion/image_datasets.py`).

    The image is halved with a box filter while its short side is at least twice the resolution, brought to it with a
    bicubic filter (which also enlarges smaller images), and cut.

    Args:
      image: uint8 (h, w, c), c = 1 or 3.
      resolution: side of the result, in pixels.

    Returns:
      uint8 (resolution, resolution, c).
    """
    if image.shape[:2] == (resolution, resolution):
        return image
    picture = _halved(_to_pil(image), resolution)
    scale = resolution / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    pixels = _to_array(picture.resize((width, height), Image.Resampling.BICUBIC))
    return pixels[top : top + resolution, left : left + resolution]


def random_crop(
    image: Pixels, resolution: int, scale: tuple[float, float], rng: np.random.Generator
) -> UInt8[np.ndarray, "{resolution} {resolution} c"]:
    """A square at a uniform place, resized with box-halving and a bicubic filter as `center_crop` does.

    Args:
      image: uint8 (h, w, c), c = 1 or 3.
      resolution: side of the result, in pixels.
      scale: bounds of the square's side, drawn uniformly, as fractions of the image's short side; 0 < low <= high <= 1.
      rng: where the side and the place are drawn from.

    Returns:
      uint8 (resolution, resolution, c).
    """
    fraction = rng.uniform(*scale)
    picture = _halved(_to_pil(image), resolution / fraction)
    side = fraction * min(picture.size)
    left, top = (rng.uniform(0, length - side) for length in picture.size)
    box = (left, top, left + side, top + side)
    return _to_array(picture.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box))


def random_shift(image: Pixels, pixels: int, rng: np.random.Generator) -> Pixels:
    """The image moved by up to `pixels` down or up and right or left; its edge fills what that uncovers."""
    down, right = rng.integers(-pixels, pixels + 1, size=2)
    rows, columns = np.arange(image.shape[0]) - down, np.arange(image.shape[1]) - right
    return image.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")


def random_flip(image: Pixels, rng: np.random.Generator) -> Pixels:
    """The image, or its mirror image, left and right exchanged, with equal probability."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def to_channels(image: Pixels, channels: int) -> UInt8[np.ndarray, "h w {channels}"]:
    """The image, uint8 (h, w, 1 or 3), in grey (1 channel, PIL's luma) or RGB (3 channels).

    Raises:
      UserError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise UserError(f"data.channels is {channels}; it must be 1 (grey) or 3 (RGB).")
    if image.shape[-1] == channels:
        return image
    return np.repeat(image, 3, axis=-1) if channels == 3 else _to_array(_to_pil(image).convert("L"))


def to_float(image: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Values 0 to 255, uint8, as float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: ArrayLike) -> UInt8[np.ndarray, "..."]:
    """The inverse of `to_float`: float in [-1, 1] to uint8, rounded to the nearest; what lies outside is clipped."""
    return np.clip(np.rint(127.5 * (np.asarray(image, np.float32) + 1)), 0, 255).astype(np.uint8)


def _halved(picture: Image.Image, short_side: int | float) -> Image.Image:
    """Averages blocks of 2 x 2 while the short side stays at least `short_side`: bicubic alone would alias."""
    while min(picture.size) >= 2 * short_side:
        width, height = picture.size
        picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
    return picture


def _to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _to_array(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]
