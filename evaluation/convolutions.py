"""Convolutions in float32, in the form that is fastest where they run.

Accelerators take the one instruction. On a CPU (XLA of jax 0.10.2, one AVX-512 core, whose matrix products reach 105
GFLOP/s) the form follows from the size, each by what it measured, in GFLOP/s of the plain convolution's arithmetic:

| layer | one instruction | here |
|---|---|---|
| 1x1 | 63 to 89 | 80 to 102, a matrix product |
| 3x3 of stride 1 without padding, 147 and 71 pixels | 18 and 29 | 96 and 139, Winograd's |
| 3x3 of stride 1 with padding, 35 pixels | 101 | 140, Winograd's |
| 3x3 of stride 2 | 63 to 76 | 71 to 92, a matrix product of the windows |
| 1x7, 7x1 | 85 | 95, padded by a column more than is needed |

Windows and Winograd's tiles are several times the image's size: they are made one image at a time, to stay in the cache.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PRECISION = jax.lax.Precision.HIGHEST
TILED = 32  # pixels a side from which Winograd's form is the faster one

# Winograd's minimal filtering F(2, 3) (arXiv:1509.09308): the kernel's three numbers to four products a tile.
KERNEL_TO_TILE = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def convolution(
    x: Float[Array, "B h w I"], kernel: Float[Array, "kh kw I O"], *, stride: int = 1, same: bool = True
) -> Float[Array, "B _h _w O"]:
    """A convolution of float32 with the highest precision.

    Args:
      x: images or features.
      kernel: of any odd size.
      stride: in both directions.
      same: pad by half the kernel on every side, or not at all.
    """
    size = kernel.shape[:2]
    if size == (1, 1) and stride == 1:
        return jnp.dot(x, kernel[0, 0], precision=PRECISION)
    pads = tuple((length // 2,) * 2 if same else (0, 0) for length in size)

    def on_cpu(x: Array, kernel: Array) -> Array:
        form = _form(size, stride, x.shape[1])
        if form is _instruction:
            # Without a column too many XLA takes a path that is 1.1 (1x7) to 4 times (3x3 without padding) slower.
            columns = (x.shape[2] + sum(pads[1]) - size[1]) // stride + 1
            return _instruction(x, kernel, stride, (pads[0], (pads[1][0], pads[1][1] + 1)))[:, :, :columns]
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        return jax.lax.map(lambda image: form(image, kernel), padded)

    return jax.lax.platform_dependent(
        x, kernel, cpu=on_cpu, default=lambda x, kernel: _instruction(x, kernel, stride, pads)
    )


def _form(size: tuple[int, ...], stride: int, height: int) -> Callable[..., Array]:
    if stride == 2:
        return windows
    return winograd if size == (3, 3) and stride == 1 and height >= TILED else _instruction


def _instruction(x: Array, kernel: Array, stride: int, pads: tuple[tuple[int, int], ...]) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=PRECISION
    )


def windows(
    image: Float[Array, "h w I"], kernel: Float[Array, "kh kw I O"], *, stride: int = 2
) -> Float[Array, "_h _w O"]:
    """A convolution without padding as one matrix product of all windows."""
    height, width, _, outputs = kernel.shape
    rows, columns = ((length - side) // stride + 1 for length, side in zip(image.shape, (height, width)))
    slices = [
        image[i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.dot(jnp.concatenate(slices, axis=-1), kernel.reshape(-1, outputs), precision=PRECISION)


def winograd(image: Float[Array, "h w I"], kernel: Float[Array, "3 3 I O"]) -> Float[Array, "_h _w O"]:
    """A 3x3 convolution without padding by tiles of 2x2 outputs: 16 products in the place of 36 (arXiv:1509.09308)."""
    height, width = (length - 2 for length in image.shape[:2])
    rows, columns = -(-height // 2), -(-width // 2)
    image = jnp.pad(image, ((0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))
    products = jnp.einsum("ai,bj,ijco->abco", KERNEL_TO_TILE, KERNEL_TO_TILE, kernel, precision=PRECISION)
    tiles = [_to_tile(row, 1, columns) for row in _to_tile(image, 0, rows)]
    found = [
        [jnp.dot(tile, products[a, b], precision=PRECISION) for b, tile in enumerate(row)]
        for a, row in enumerate(tiles)
    ]
    halves = [_from_tile([row[b] for row in found]) for b in range(4)]
    pixels = [jnp.stack(_from_tile([half[side] for half in halves]), axis=2) for side in range(2)]
    return jnp.stack(pixels, axis=1).reshape(2 * rows, 2 * columns, -1)[:height, :width]


def _to_tile(x: Array, axis: int, count: int) -> list[Array]:
    """Along an axis the four sums that enter the products, of overlapping tiles of four."""
    a, b, c, d = (jax.lax.slice_in_dim(x, k, k + 2 * count - 1, 2, axis) for k in range(4))
    return [a - c, b + c, c - b, b - d]


def _from_tile(products: list[Array]) -> list[Array]:
    """The two outputs of a tile from its four products."""
    a, b, c, d = products
    return [a + b + c, b - c - d]
