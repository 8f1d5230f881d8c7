"""Resizing of grids of latents as PyTorch does it, each as two small matrix products."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.tokens import Grid

CUBIC = -0.75  # the free parameter of the cubic kernel, PyTorch's; -0.5 in Pillow and jax.image


def area(x: Float[Array, "B h w D"], to: Grid) -> Float[Array, "B h2 w2 D"]:
    """Averages over the cells that each cell of the result covers, overlapping where the sizes do not divide.

    PyTorch's `interpolate(mode="area")`, which is its adaptive average pooling.
    """
    return resized(x, area_matrix(x.shape[1], to.height), area_matrix(x.shape[2], to.width))


def bicubic(x: Float[Array, "B h w D"], to: Grid) -> Float[Array, "B h2 w2 D"]:
    """Cubic convolution with half-pixel centres and repeated borders, without antialiasing: `interpolate(mode="bicubic")`."""
    return resized(x, cubic_matrix(x.shape[1], to.height), cubic_matrix(x.shape[2], to.width))


def resized(
    x: Float[Array, "B h w D"], rows: Float[np.ndarray, "h2 h"], columns: Float[np.ndarray, "w2 w"]
) -> Float[Array, "B h2 w2 D"]:
    """rows x columns^T of every channel; the identity is left out."""
    if rows.shape[0] != rows.shape[1]:
        x = jnp.einsum("ah,bhwd->bawd", rows, x)
    if columns.shape[0] != columns.shape[1]:
        x = jnp.einsum("cw,bawd->bacd", columns, x)
    return x


def area_matrix(size: int, to: int) -> Float[np.ndarray, "to size"]:
    """Row i averages the cells from floor(i size / to) to ceil((i + 1) size / to)."""
    matrix = np.zeros((to, size), np.float32)
    for i in range(to):
        start, stop = i * size // to, -(-(i + 1) * size // to)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def cubic_matrix(size: int, to: int) -> Float[np.ndarray, "to size"]:
    """Row i holds the four weights (fewer where borders repeat) around (i + 1/2) size / to - 1/2."""
    matrix = np.zeros((to, size))
    for i in range(to):
        centre = (i + 0.5) * size / to - 0.5
        first = math.floor(centre) - 1
        for j in range(first, first + 4):
            matrix[i, min(max(j, 0), size - 1)] += cubic(abs(centre - j))
    return matrix.astype(np.float32)


def cubic(distance: float) -> float:
    """Keys' kernel of cubic convolution (IEEE Transactions on Acoustics, Speech, and Signal Processing 29, 1981)."""
    x, a = distance, CUBIC
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0
