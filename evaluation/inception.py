"""The Inception-v3 network that FID is defined on: the TensorFlow graph of 2015-12-05 (arXiv:1512.00567, 1706.08500).

It differs from other Inception-v3s: the classifier has 1008 outputs, an average pooling divides by the pixels inside the
image alone, and Mixed_7c pools by the maximum. Batch normalization is folded in, so that a layer is
relu(convolution + bias). The parameters are a flat dict of float32 arrays named as in `SHAPES`; everything is computed
in float32, with the highest precision that a device has.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from interop.download import cache_folder, public_file, sha256
from interop.inception import read_inception
from models.errors import UserError, unknown

SIZE = 299  # pixels a side of what the network sees
CLASSES = 1008
PUBLIC = "pt_inception-2015-12-05-6726825d.pth"
VARIABLE = "TESSERA_WEIGHTS"


class Conv(NamedTuple):
    """A convolution: its name within its block, output channels, (height, width), stride, whether it keeps the size."""

    name: str
    outputs: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True


class Branch(NamedTuple):
    """A way through a block: a 3x3 pooling or none, convolutions one after another, then some side by side or none."""

    convs: tuple[Conv, ...] = ()
    fork: tuple[Conv, ...] = ()
    pool: str | None = None
    stride: int = 1


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        Branch((Conv("branch1x1", 64),)),
        Branch((Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5)))),
        Branch((Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3)))),
        Branch((Conv("branch_pool", pooled),), pool="average"),
    )


def _block_b() -> tuple[Branch, ...]:
    return (
        Branch((Conv("branch3x3", 384, (3, 3), 2, same=False),)),
        Branch((Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)),
                Conv("branch3x3dbl_3", 96, (3, 3), 2, same=False))),
        Branch(pool="max", stride=2),
    )  # fmt: skip


def _block_c(width: int) -> tuple[Branch, ...]:
    return (
        Branch((Conv("branch1x1", 192),)),
        Branch((Conv("branch7x7_1", width), Conv("branch7x7_2", width, (1, 7)), Conv("branch7x7_3", 192, (7, 1)))),
        Branch((Conv("branch7x7dbl_1", width), Conv("branch7x7dbl_2", width, (7, 1)),
                Conv("branch7x7dbl_3", width, (1, 7)), Conv("branch7x7dbl_4", width, (7, 1)),
                Conv("branch7x7dbl_5", 192, (1, 7)))),
        Branch((Conv("branch_pool", 192),), pool="average"),
    )  # fmt: skip


def _block_d() -> tuple[Branch, ...]:
    return (
        Branch((Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, same=False))),
        Branch((Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)), Conv("branch7x7x3_3", 192, (7, 1)),
                Conv("branch7x7x3_4", 192, (3, 3), 2, same=False))),
        Branch(pool="max", stride=2),
    )  # fmt: skip


def _block_e(pool: str) -> tuple[Branch, ...]:
    return (
        Branch((Conv("branch1x1", 320),)),
        Branch((Conv("branch3x3_1", 384),),
               fork=(Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))),
        Branch((Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3))),
               fork=(Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1)))),
        Branch((Conv("branch_pool", 192),), pool=pool),
    )  # fmt: skip


# The network: named stages one after another, each of branches side by side.
STAGES = {
    "Conv2d_1a_3x3": (Branch((Conv("", 32, (3, 3), 2, same=False),)),),
    "Conv2d_2a_3x3": (Branch((Conv("", 32, (3, 3), same=False),)),),
    "Conv2d_2b_3x3": (Branch((Conv("", 64, (3, 3)),)),),
    "pool1": (Branch(pool="max", stride=2),),
    "Conv2d_3b_1x1": (Branch((Conv("", 80),)),),
    "Conv2d_4a_3x3": (Branch((Conv("", 192, (3, 3), same=False),)),),
    "pool2": (Branch(pool="max", stride=2),),
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("max"),
}

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


def _layers() -> Iterator[tuple[str, Conv, int]]:
    """Every convolution's full name, description and input channels."""
    channels = 3
    for stage, branches in STAGES.items():
        outputs = 0
        for branch in branches:
            inputs = channels
            for conv in branch.convs:
                yield _name(stage, conv), conv, inputs
                inputs = conv.outputs
            for conv in branch.fork:
                yield _name(stage, conv), conv, inputs
            outputs += sum(conv.outputs for conv in branch.fork) or inputs
        channels = outputs


def _name(stage: str, conv: Conv) -> str:
    return f"{stage}/{conv.name}" if conv.name else stage


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, conv, inputs in _layers():
        shapes[f"{name}/kernel"] = (*conv.size, inputs, conv.outputs)
        shapes[f"{name}/bias"] = (conv.outputs,)
    return shapes | {"fc/kernel": (2048, CLASSES), "fc/bias": (CLASSES,)}


SHAPES = _shapes()


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


def load_inception(weights: str | Path | None = None) -> Inception:
    """The weights in a file of any format that `interop/inception.py` reads.

    Args:
      weights: the file; "download" fetches the public one where it is not there yet; None takes the file that the
        environment variable TESSERA_WEIGHTS names, else the public one if it was downloaded before.

    Raises UserError where there is no file, saying what to bring, or where it is not of this network.
    """
    path = _find(weights)
    arrays = read_inception(path, SHAPES)
    features = tuple(name for name in FEATURES if name not in NEEDS or NEEDS[name] in arrays)
    return Inception({name: jnp.asarray(array) for name, array in arrays.items()}, sha256(path), features)


def _find(weights: str | Path | None) -> Path:
    if weights == "download":
        return public_file(PUBLIC)
    if weights := weights or os.environ.get(VARIABLE):
        return Path(weights)
    if (cached := cache_folder() / PUBLIC).exists():
        return cached
    raise UserError(
        f"there are no weights of the Inception network; give a file such as {PUBLIC}, name it in the environment "
        f"variable {VARIABLE}, or give the word download."
    )


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
    return jnp.einsum("byxc,xX->byXc", rows, columns, precision="highest")


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
    for stage, branches in STAGES.items():
        if len(features) == len(set(wanted)):
            break
        x = _stage(params, stage, branches, x)
        features |= {name: _read(params, name, x) for name in wanted if TAPS[name] == stage}
    return features


def _read(params: Mapping[str, Array], name: str, x: Array) -> Array:
    if name == "spatial":
        return x[..., :7].reshape(len(x), -1)
    mean = x.mean((1, 2))
    return jnp.dot(mean, params["fc/kernel"], precision="highest") if name == "logits" else mean


def _stage(params: Mapping[str, Array], stage: str, branches: tuple[Branch, ...], x: Array) -> Array:
    outputs = []
    for branch in branches:
        y = x
        if branch.pool:
            y = _POOLS[branch.pool](y, branch.stride)
        for conv in branch.convs:
            y = _layer(params, stage, conv, y)
        outputs += [_layer(params, stage, conv, y) for conv in branch.fork] or [y]
    return jnp.concatenate(outputs, axis=-1)


def _layer(params: Mapping[str, Array], stage: str, conv: Conv, x: Array) -> Array:
    name = _name(stage, conv)
    y = jax.lax.conv_general_dilated(
        x, params[f"{name}/kernel"], (conv.stride, conv.stride), "SAME" if conv.same else "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip
    return jax.nn.relu(y + params[f"{name}/bias"])


def _max_pool(x: Array, stride: int) -> Array:
    """The largest of 3x3: with stride 1 the size stays, else only whole windows count."""
    pad = ((0, 0), *((((1, 1),) * 2) if stride == 1 else ((0, 0),) * 2), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), pad)


def _average_pool(x: Array, stride: int) -> Array:
    """The mean of those of 3x3 pixels that are inside the image."""
    pad = ((0, 0), (1, 1), (1, 1), (0, 0))
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pad)
    count = jax.lax.reduce_window(jnp.ones_like(x[:1, :, :, :1]), 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pad)
    return total / count


_POOLS = {"max": _max_pool, "average": _average_pool}
