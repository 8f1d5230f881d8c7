"""LPIPS, the perceptual distance between images (arXiv:1801.03924, version 0.1), over VGG16's or AlexNet's features.

The weights are an npz of float32 arrays, named as in `shapes`: `conv1_1/kernel` (h, w, I, O) and `conv1_1/bias` (O,)
onwards, the network's convolutions by stage and place; `lin1` to `lin5` (C,), how much each channel counts of the
features that end a stage. `interop/lpips.py` makes it from two public files.
"""

import dataclasses
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Convolution:
    """Square, with a bias, before a ReLU."""

    outputs: int
    size: int = 3
    stride: int = 1
    padding: int = 1


@dataclasses.dataclass(frozen=True)
class Stage:
    """Convolutions whose last ReLU LPIPS looks at; `pool` is the window of a max pool of stride 2 before them, or 0."""

    pool: int
    convolutions: tuple[Convolution, ...]


# By the names that LPIPS gives them; AlexNet is that of one tower (arXiv:1404.5997).
NETWORKS = {
    "vgg": (
        Stage(0, (Convolution(64),) * 2),
        Stage(2, (Convolution(128),) * 2),
        Stage(2, (Convolution(256),) * 3),
        Stage(2, (Convolution(512),) * 3),
        Stage(2, (Convolution(512),) * 3),
    ),
    "alex": (
        Stage(0, (Convolution(64, size=11, stride=4, padding=2),)),
        Stage(3, (Convolution(192, size=5, padding=2),)),
        Stage(3, (Convolution(384),)),
        Stage(0, (Convolution(256),)),
        Stage(0, (Convolution(256),)),
    ),
}

# What takes images from [-1, 1] to how both networks were trained, as LPIPS rounds it.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


def convolutions(network: str) -> Iterator[tuple[str, int, Convolution]]:
    """Name, input channels and description of a network's convolutions, in their order."""
    inputs = 3
    for number, stage in enumerate(NETWORKS[network], start=1):
        for place, convolution in enumerate(stage.convolutions, start=1):
            yield f"conv{number}_{place}", inputs, convolution
            inputs = convolution.outputs


def shapes(network: str) -> dict[str, tuple[int, ...]]:
    """The arrays of a network's LPIPS weights: {name: shape}."""
    found: dict[str, tuple[int, ...]] = {}
    for name, inputs, convolution in convolutions(network):
        found[f"{name}/kernel"] = (convolution.size, convolution.size, inputs, convolution.outputs)
        found[f"{name}/bias"] = (convolution.outputs,)
    for number, stage in enumerate(NETWORKS[network], start=1):
        found[f"lin{number}"] = (stage.convolutions[-1].outputs,)
    return found


def smallest(network: str) -> int:
    """Pixels a side of which the last stage sees one."""
    side = 1
    for stage in reversed(NETWORKS[network]):
        for convolution in reversed(stage.convolutions):
            side = (side - 1) * convolution.stride + convolution.size - 2 * convolution.padding
        side = (side - 1) * 2 + stage.pool if stage.pool else side
    return side


def network_of(weights: Mapping[str, Any]) -> str:
    """The name of the network with which the most arrays agree in name and shape; they need not be complete."""

    def agreeing(network: str) -> int:
        return sum(name in weights and weights[name].shape == shape for name, shape in shapes(network).items())

    return max(NETWORKS, key=agreeing)


def load_lpips(path: str | Path) -> dict[str, Array]:
    """The weights in an npz: {name: float32 array}, named and shaped as in `shapes` of the network that they are of.

    Raises UserError where the file is missing (saying how to make it), is no npz, or where an array is missing or has
    another shape.
    """
    known = set().union(*map(shapes, NETWORKS))
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in known if name in file}
    except FileNotFoundError:
        raise UserError(
            f"there are no LPIPS weights at {path}; `python -m interop.lpips vgg {path}` makes them from the public files "
            "of https://download.pytorch.org/models/ and https://github.com/richzhang/PerceptualSimilarity."
        ) from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile):
        raise UserError(f"{path} is not a readable npz file; make it again with `python -m interop.lpips`.") from None
    expected = shapes(network_of(arrays))
    for name, shape in expected.items():
        if name not in arrays:
            raise UserError(f"{path} lacks the array {name!r}; make it again with `python -m interop.lpips`.")
        if arrays[name].shape != shape:
            raise UserError(f"{path}: the array {name!r} has the shape {arrays[name].shape}; it should have {shape}.")
    return {name: jnp.asarray(arrays[name], jnp.float32) for name in expected}


def lpips(
    weights: Mapping[str, Array], images: Float[Array, "B H W C"], references: Float[Array, "B H W C"]
) -> Float[Array, "B"]:
    """The distance of each image to its reference: 0 for equal ones, float32 (equation 1 of arXiv:1801.03924).

    Args:
      weights: as from `load_lpips`; they say which network it is.
      images: float32 in [-1, 1], 3 channels, or 1 that counts as grey.
      references: alike.

    Raises:
      UserError: for images of which the network's last stage sees nothing: fewer than 16 pixels a side for VGG16,
        31 for AlexNet.
    """
    network = network_of(weights)
    height, width = images.shape[1:3]
    if min(height, width) < smallest(network):
        raise UserError(
            f"images of {height}x{width} pixels are too small for LPIPS over {network!r}, which needs "
            f"{smallest(network)} a side; do without it (as a loss: set its weight lpips to 0)."
        )
    distance = jnp.zeros(len(images))
    for number, (x, y) in enumerate(zip(features(weights, images), features(weights, references)), start=1):
        distance += jnp.sum((unit(x) - unit(y)) ** 2 * weights[f"lin{number}"], axis=-1).mean(axis=(1, 2))
    return distance


def features(weights: Mapping[str, Array], images: Float[Array, "B H W C"]) -> list[Float[Array, "B _h _w _F"]]:
    """What the five stages end with: VGG16's relu1_2, relu2_2, relu3_3, relu4_3, relu5_3, or AlexNet's relu1 to relu5."""
    x = (images - jnp.array(SHIFT)) / jnp.array(SCALE)  # grey broadcasts to three channels
    taps: list[Array] = []
    for number, stage in enumerate(NETWORKS[network_of(weights)], start=1):
        if stage.pool:
            x = nnx.max_pool(x, (stage.pool, stage.pool), strides=(2, 2))
        for place, convolution in enumerate(stage.convolutions, start=1):
            kernel, bias = weights[f"conv{number}_{place}/kernel"], weights[f"conv{number}_{place}/bias"]
            strides, padding = (convolution.stride,) * 2, [(convolution.padding,) * 2] * 2
            x = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + bias)
        taps.append(x)
    return taps


def unit(x: Float[Array, "B h w F"], *, epsilon: float = 1e-10) -> Float[Array, "B h w F"]:
    """x / (|x| + epsilon) over the channels, with the gradient 0 where x is 0."""
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    # A root's gradient at 0 is infinite, and times 0 it would be no number even where the result is not taken.
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(squares > 0, x / (norm + epsilon), 0)
