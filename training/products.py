"""FLOPs of matrix products and convolutions of a compiled program, two for a multiply-add."""

import math
import re
from collections.abc import Sequence

from training.hlo import Computation, Instruction

Shape = tuple[int, ...]
# cuDNN's convolutions: which of (first operand, second, result) a forward convolution has as input, kernel and output.
CUDNN = {"Forward": (0, 1, 2), "BackwardInput": (2, 1, 0), "BackwardFilter": (0, 2, 1)}


def products(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a matrix product or convolution, or as a kernel says of itself; 0 of all else, which is not what limits."""
    if instruction.opcode == "dot":
        lhs = computation.operands(instruction)[0].arrays[0].shape
        contracted = [
            int(axis) for axis in instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}").split(",") if axis
        ]
        return 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(lhs[axis] for axis in contracted)
    if instruction.opcode == "convolution":
        lhs, rhs = (operand.arrays[0].shape for operand in computation.operands(instruction))
        return convolution_of(instruction, lhs, rhs, instruction.arrays[0].shape)
    if instruction.opcode == "custom-call":
        return custom_flops(computation, instruction)
    return 0.0


def convolution_of(instruction: Instruction, lhs: Shape, rhs: Shape, out: Shape) -> float:
    """Of an instruction with a window and labels of these three shapes' dimensions."""
    labels = re.split(r"_|->", instruction.attribute(r"dim_labels=([\w?>\-]+)"))
    window = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute(r"window=\{([^}]*)\}")))
    axes = [str(axis) for axis in range(len(out) - 2)]

    def places(label: str, first: str, second: str) -> list[int]:
        return [label.index(name) for name in (first, second, *axes)]

    def field(name: str, default: str) -> list[str]:
        return window[name].split("x") if name in window else [default] * len(axes)

    return convolution_flops(
        [lhs[place] for place in places(labels[0], "b", "f")], [rhs[place] for place in places(labels[1], "o", "i")],
        [out[place] for place in places(labels[2], "b", "f")],
        strides=[int(size) for size in field("stride", "1")], low=[int(pad.split("_")[0]) for pad in field("pad", "0_0")],
        spread=[int(size) for size in field("lhs_dilate", "1")], dilation=[int(size) for size in field("rhs_dilate", "1")],
    )  # fmt: skip


def convolution_flops(
    lhs: Sequence[int], rhs: Sequence[int], out: Sequence[int], *, strides: Sequence[int], low: Sequence[int],
    spread: Sequence[int], dilation: Sequence[int],
) -> float:  # fmt: skip
    """Two for each pair of a kernel's entry and an input's that is there: not of padding, nor between dilated ones.

    A TPU's compiler writes products of batches as convolutions that are dilated, which counted naively would be many times as
    much.

    Args:
      lhs: sizes (batch, features, spatial ...) of the input.
      rhs: (features out, features in of a group, spatial ...) of the kernel.
      out: (batch, features, spatial ...) of the result.
      strides: by spatial axis, as all that follows.
      low: padding before the first entry.
      spread: of the inputs, 1 where they are not dilated.
      dilation: of the kernel.
    """
    pairs = math.prod(
        window_pairs(
            size=lhs[2 + axis], kernel=rhs[2 + axis], out=out[2 + axis], stride=strides[axis], low=low[axis],
            spread=spread[axis], dilation=dilation[axis],
        )
        for axis in range(len(out) - 2)
    )  # fmt: skip
    return 2.0 * pairs * out[0] * out[1] * rhs[1]


def window_pairs(*, size: int, kernel: int, out: int, stride: int, low: int, spread: int, dilation: int) -> int:
    """Pairs of an output's and a kernel's position, of one axis, under which there is an input."""
    pairs = 0
    for tap in range(kernel):
        first = tap * dilation - low  # the place, among inputs spread apart, that output 0 sees through this tap
        last = (size - 1) * spread
        if spread == 1 or stride % spread == 0:
            if first % spread:
                continue
            begin, end = max(0, -(first // stride)), min(out - 1, (last - first) // stride)
            pairs += max(0, end - begin + 1)
        else:
            pairs += sum(0 <= (at := first + place * stride) <= last and at % spread == 0 for place in range(out))
    return pairs


def custom_flops(computation: Computation, instruction: Instruction) -> float:
    """What a kernel of Pallas says of itself, and products and convolutions that a GPU's library does.

    Raises:
      ValueError: a convolution of a kind that is not known.
    """
    if said := instruction.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)'):
        return float(said)
    if contracted := instruction.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]'):
        lhs = computation.operands(instruction)[0].arrays[0].shape
        axes = [int(axis) for axis in re.findall(r"\d+", contracted)]
        return 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(lhs[axis] for axis in axes)
    if "dim_labels=" in instruction.attributes:
        kind = instruction.attribute(r'custom_call_target="__cudnn\$conv\w*?(Forward|BackwardInput|BackwardFilter)')
        if kind not in CUDNN:
            raise ValueError(f"a convolution of unknown cost: {instruction.attributes[:200]}")
        shapes = [part.arrays[0].shape for part in (*computation.operands(instruction)[:2], instruction)]
        return convolution_of(instruction, *(shapes[place] for place in CUDNN[kind]))
    return 0.0


def arithmetic(computation: Computation, instruction: Instruction) -> str:
    """The name in `Chip.rates` of what a product is done in."""
    types = {array.dtype for operand in computation.operands(instruction)[:2] for array in operand.arrays}
    if "f32" not in types:
        return "bfloat16"
    precision = instruction.attribute(r"operand_precision=\{(\w+)")
    return precision if precision in ("high", "highest") else "float32"
