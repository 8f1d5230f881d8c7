"""Features of images by the Inception network that FID is defined on (arXiv:1706.08500), in float32 throughout.

Weights are brought or downloaded (`load_inception`); `evaluation/inception_network.py` is the network.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from evaluation.convolutions import PRECISION
from evaluation.inception_network import SHAPES, STAGES, run_stage
from interop.download import cache_folder, public_file, sha256
from interop.inception import read_inception
from models.errors import UserError, unknown

SIZE = 299  # pixels a side of what the network sees
PUBLIC = "pt_inception-2015-12-05-6726825d.pth"
VARIABLE = "TESSERA_WEIGHTS"

# The stage behind which a feature is taken, in the order of depth.
TAPS = {
    "64": "pool1",
    "192": "pool2",
    "spatial": "Mixed_6d",
    "768": "Mixed_6e",
    "2048": "Mixed_7c",
    "logits": "Mixed_7c",
}
FEATURES = ("64", "192", "768", "2048", "spatial", "logits")
NEEDS = {"2048": "Mixed_7c/branch_pool/kernel", "logits": "fc/kernel"}  # that a file that ends earlier lacks


@dataclass(frozen=True)
class Inception:
    """The network's weights.

    Attributes:
      params: {name: float32 array}, named and shaped as in `SHAPES`.
      sha256: of the file that they are from, in hex.
      features: names out of `FEATURES` that they suffice for.
    """

    params: dict[str, Array]
    sha256: str
    features: tuple[str, ...]


ABSENT = (
    f"there are no weights of the Inception network; give a file such as {PUBLIC}, name it in the environment variable "
    f"{VARIABLE}, or give the word download."
)


def load_inception(weights: str | Path | None = None) -> Inception:
    """The weights in a file of any format that `interop/inception.py` reads.

    Args:
      weights: the file; "download" fetches the public one where it is not there yet; None takes the file that the
        environment variable TESSERA_WEIGHTS names, else the public one if it was downloaded before.

    Raises UserError where there is no file, saying what to bring, or where it is not of this network.
    """
    path = find_weights(weights)
    if path is None:
        raise UserError(ABSENT)
    arrays = read_inception(path, SHAPES)
    features = tuple(name for name in FEATURES if name not in NEEDS or NEEDS[name] in arrays)
    return Inception({name: jnp.asarray(array) for name, array in arrays.items()}, sha256(path), features)


def find_weights(weights: str | Path | None = None) -> Path | None:
    """The file that `load_inception` reads; None where nothing is named and nothing was downloaded."""
    if weights == "download":
        return public_file(PUBLIC)
    if weights := weights or os.environ.get(VARIABLE):
        return Path(weights)
    cached = cache_folder() / PUBLIC
    return cached if cached.exists() else None


def resize(images: UInt8[Array | np.ndarray, "B h w 3"]) -> Float[Array, "B 299 299 3"]:
    """Images at 299x299, float32 in [0, 255], as TensorFlow 1 resized: pixel i is taken from i * (size / 299).

    Bilinear between that pixel's two neighbours, without half-pixel centres and without smoothing, also where it shrinks.
    """
    low, high, part = _taps(images.shape[1])
    rows = images[:, low].astype(jnp.float32) * (1 - part)[:, None, None]
    rows += images[:, high].astype(jnp.float32) * part[:, None, None]
    low, high, part = _taps(images.shape[2])
    columns = np.zeros((images.shape[2], SIZE), np.float32)
    np.add.at(columns, (low, np.arange(SIZE)), 1 - part)
    np.add.at(columns, (high, np.arange(SIZE)), part)
    return jnp.einsum("byxc,xX->byXc", rows, columns, precision=PRECISION)


def _taps(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of 299 pixels the two that it is between, and how far it is from the first, float32."""
    position = np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)
    low = position.astype(np.int32)
    return low, np.minimum(low + 1, size - 1), position - low.astype(np.float32)


def inception_features(
    params: Mapping[str, Array], images: UInt8[Array | np.ndarray, "B h w 3"], wanted: tuple[str, ...]
) -> dict[str, Float[Array, "B _"]]:
    """Features of images of any size, as deep as `wanted` needs; to be jitted with `wanted` static.

    "64", "192", "768" and "2048" are means over space behind the first and the second max pooling, Mixed_6e and
    Mixed_7c; the last are what FID compares. "logits" (B, 1008) is the classifier without its bias, what the Inception
    score takes the softmax of. "spatial" (B, 2023) is what sFID compares (arXiv:2103.03841): the first seven channels of
    Mixed_6d at its 17x17 positions, in the order (height, width, channel).

    Args:
      params: as from `load_inception`.
      images: uint8 RGB.
      wanted: names out of `FEATURES`.

    Returns:
      {name: (B, features) float32}.

    Raises:
      UserError: for a name that is no feature, or one that the weights do not reach.
    """
    for name in wanted:
        if name not in FEATURES:
            raise unknown("feature", name, FEATURES)
        if name in NEEDS and NEEDS[name] not in params:
            raise UserError(
                f"these weights end before the features {name!r}; give a file of the whole network, {PUBLIC}."
            )
    x = (resize(images) - 128) / 128
    features: dict[str, Array] = {}
    for stage in STAGES:
        if len(features) == len(set(wanted)):
            break
        x = run_stage(params, stage, x)
        features |= {name: _read(params, name, x) for name in wanted if TAPS[name] == stage}
    return features


def _read(params: Mapping[str, Array], name: str, x: Array) -> Array:
    if name == "spatial":
        return x[..., :7].reshape(len(x), -1)
    mean = x.mean((1, 2))
    return jnp.dot(mean, params["fc/kernel"], precision=PRECISION) if name == "logits" else mean
