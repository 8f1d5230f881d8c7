"""The Inception-v3 that FID is defined on, as a table: the TensorFlow graph of 2015-12-05 (arXiv:1512.00567).

It differs from other Inception-v3s: the classifier has 1008 outputs, an average pooling divides by the pixels inside the
image alone, and Mixed_7c pools by the maximum. Batch normalization is folded in, so that a layer is
relu(convolution + bias). Parameters are a flat dict of float32 arrays, named and shaped as in `SHAPES`.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from evaluation.convolutions import convolution

CLASSES = 1008
POOL = (1, 3, 3, 1)  # the window of every pooling


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


def run_stage(params: Mapping[str, Array], stage: str, x: Float[Array, "B h w C"]) -> Float[Array, "B _h _w _C"]:
    """One of `STAGES` on what the stage before it gave.

    The 1x1 convolutions that branches begin with have the same input and are one matrix product. An average pooling
    comes after its convolution, with which it commutes, rather than before: it then has a tenth of the channels.
    """
    outputs = []
    first = _first_convolutions(params, stage, x)
    for branch in STAGES[stage]:
        convs, y = branch.convs, x
        if _begins_linear(branch):
            y = first[convs[0].name]
            y = average_pool(y) if branch.pool else y
            y = jax.nn.relu(y + params[f"{_name(stage, convs[0])}/bias"])
            convs = convs[1:]
        elif branch.pool:
            y = max_pool(x, stride=branch.stride)
        for conv in convs:
            y = _layer(params, stage, conv, y)
        outputs += [_layer(params, stage, conv, y) for conv in branch.fork] or [y]
    return jnp.concatenate(outputs, axis=-1)


def _begins_linear(branch: Branch) -> bool:
    """Whether a branch begins with a 1x1 convolution of the block's input, or of its averages."""
    return branch.pool != "max" and branch.convs[0].size == (1, 1)


def _first_convolutions(params: Mapping[str, Array], stage: str, x: Array) -> dict[str, Array]:
    """The 1x1 convolutions of the same input by name, without their biases."""
    convs = [branch.convs[0] for branch in STAGES[stage] if _begins_linear(branch)]
    if not convs:
        return {}
    kernels = [params[f"{_name(stage, conv)}/kernel"] for conv in convs]
    y = convolution(x, jnp.concatenate(kernels, axis=-1))
    ends = np.cumsum([conv.outputs for conv in convs])
    return {conv.name: y[..., end - conv.outputs : end] for conv, end in zip(convs, ends)}


def _layer(params: Mapping[str, Array], stage: str, conv: Conv, x: Array) -> Array:
    name = _name(stage, conv)
    y = convolution(x, params[f"{name}/kernel"], stride=conv.stride, same=conv.same)
    return jax.nn.relu(y + params[f"{name}/bias"])


def max_pool(x: Float[Array, "B h w C"], *, stride: int) -> Float[Array, "B _h _w C"]:
    """The largest of 3x3 pixels: padded to the same size with stride 1, whole windows only with stride 2."""
    padding = "SAME" if stride == 1 else "VALID"
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, POOL, (1, stride, stride, 1), padding)


def average_pool(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """The mean of those of 3x3 pixels that are inside the image."""
    total, count = (
        jax.lax.reduce_window(y, 0.0, jax.lax.add, POOL, (1, 1, 1, 1), "SAME")
        for y in (x, jnp.ones((1, *x.shape[1:3], 1)))
    )
    return total / count
