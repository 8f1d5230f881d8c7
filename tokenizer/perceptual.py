"""LPIPS, the perceptual distance between images (arXiv:1801.03924, version 0.1), over the features of VGG16.

The weights are an npz of float32 arrays, named as in `SHAPES`: `conv1_1/kernel` (3, 3, I, O) and `conv1_1/bias` (O,)
to `conv5_3`, VGG16's convolutions by stage and place; `lin1` to `lin5` (C,), how much each channel counts of the
features that end a stage. `interop/lpips.py` makes it from the two public files.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from models.errors import UserError

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # output channels; pooled between
SMALLEST = 2 ** (len(STAGES) - 1)  # pixels, of which the last stage sees one

# What takes images from [-1, 1] to how VGG16 was trained, as LPIPS rounds it.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for stage, widths in enumerate(STAGES, start=1):
        for place, outputs in enumerate(widths, start=1):
            shapes[f"conv{stage}_{place}/kernel"] = (3, 3, inputs, outputs)
            shapes[f"conv{stage}_{place}/bias"] = (outputs,)
            inputs = outputs
        shapes[f"lin{stage}"] = (inputs,)
    return shapes


SHAPES = _shapes()


def load_lpips(path: str | Path) -> dict[str, Array]:
    """The weights in an npz: {name: float32 array}, named and shaped as in `SHAPES`.

    Raises UserError where the file is missing (saying how to make it), is no npz, or where an array is missing or has
    another shape.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in SHAPES if name in file}
    except FileNotFoundError:
        raise UserError(
            f"there are no LPIPS weights at {path}; download vgg16-397923af.pth from "
            "https://download.pytorch.org/models/ and lpips/weights/v0.1/vgg.pth from "
            "https://github.com/richzhang/PerceptualSimilarity, then run "
            f"`python -m interop.lpips vgg16-397923af.pth vgg.pth {path}`."
        ) from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile):
        raise UserError(f"{path} is not a readable npz file; make it again with `python -m interop.lpips`.") from None
    for name, shape in SHAPES.items():
        if name not in arrays:
            raise UserError(f"{path} lacks the array {name!r}; make it again with `python -m interop.lpips`.")
        if arrays[name].shape != shape:
            raise UserError(f"{path}: the array {name!r} has the shape {arrays[name].shape}; it should have {shape}.")
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def lpips(
    weights: Mapping[str, Array], images: Float[Array, "B H W C"], references: Float[Array, "B H W C"]
) -> Float[Array, "B"]:
    """The distance of each image to its reference: 0 for equal ones, float32 (equation 1 of arXiv:1801.03924).

    Args:
      weights: as from `load_lpips`.
      images: float32 in [-1, 1], 3 channels, or 1 that counts as grey.
      references: alike.

    Raises:
      UserError: for images of fewer than 16 pixels a side, of which VGG16's last stage sees nothing.
    """
    if min(images.shape[1:3]) < SMALLEST:
        raise UserError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels are too small for LPIPS, which needs {SMALLEST}; "
            "set the loss weight lpips to 0."
        )
    distance = jnp.zeros(len(images))
    for stage, (x, y) in enumerate(zip(features(weights, images), features(weights, references)), start=1):
        distance += jnp.sum((unit(x) - unit(y)) ** 2 * weights[f"lin{stage}"], axis=-1).mean(axis=(1, 2))
    return distance


def features(weights: Mapping[str, Array], images: Float[Array, "B H W C"]) -> list[Float[Array, "B _h _w _F"]]:
    """What VGG16's stages end with: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, each half the size of the last."""
    x = (images - jnp.array(SHIFT)) / jnp.array(SCALE)  # grey broadcasts to three channels
    taps: list[Array] = []
    for stage, widths in enumerate(STAGES, start=1):
        if taps:
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        for place in range(1, len(widths) + 1):
            kernel, bias = weights[f"conv{stage}_{place}/kernel"], weights[f"conv{stage}_{place}/bias"]
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + bias)
        taps.append(x)
    return taps


def unit(x: Float[Array, "B h w F"], *, epsilon: float = 1e-10) -> Float[Array, "B h w F"]:
    """x / (|x| + epsilon) over the channels, with the gradient 0 where x is 0."""
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    # A root's gradient at 0 is infinite, and times 0 it would be no number even where the result is not taken.
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(squares > 0, x / (norm + epsilon), 0)
