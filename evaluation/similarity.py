"""How far a reconstruction is from its original, image by image."""

import numpy as np
from jaxtyping import Float, UInt8


def psnr(images: UInt8[np.ndarray, "N H W C"], references: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N"]:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared error), in dB, float64; inf where images are equal."""
    difference = images.astype(np.float64) - references
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / (difference**2).mean((1, 2, 3)))
