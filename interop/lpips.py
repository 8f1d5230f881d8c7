"""LPIPS's two public files -> the npz that `tokenizer/perceptual.py` reads.

python -m interop.lpips vgg16-397923af.pth vgg.pth OUT.npz

The first is torchvision's VGG16, from https://download.pytorch.org/models/; the second is LPIPS's weights/v0.1/vgg.pth,
from https://github.com/richzhang/PerceptualSimilarity. Needs torch: pip install -e '.[import]'.
"""

import argparse
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UserError
from models.files import write_npz
from tokenizer.perceptual import SHAPES

# VGG16's layers are counted with its activations and pools; each has a .weight (O, I, 3, 3) and a .bias (O,).
VGG16 = {
    "features.0": "conv1_1",
    "features.2": "conv1_2",
    "features.5": "conv2_1",
    "features.7": "conv2_2",
    "features.10": "conv3_1",
    "features.12": "conv3_2",
    "features.14": "conv3_3",
    "features.17": "conv4_1",
    "features.19": "conv4_2",
    "features.21": "conv4_3",
    "features.24": "conv5_1",
    "features.26": "conv5_2",
    "features.28": "conv5_3",
}

# 1x1 convolutions (1, C, 1, 1) behind a dropout, which is place 0 of the model.
LPIPS = {
    "lin0.model.1.weight": "lin1",
    "lin1.model.1.weight": "lin2",
    "lin2.model.1.weight": "lin3",
    "lin3.model.1.weight": "lin4",
    "lin4.model.1.weight": "lin5",
}


def convert(vgg16: str | Path, lpips: str | Path, out: str | Path) -> None:
    """Write `out` from torchvision's VGG16 and LPIPS's weights, or leave it as it is.

    Raises UserError where torch or a file is missing, and where a file lacks a tensor or has it in another shape.
    """
    arrays = {}
    state = read(vgg16)
    for theirs, ours in VGG16.items():
        *size, inputs, outputs = SHAPES[f"{ours}/kernel"]
        kernel = tensor(state, f"{theirs}.weight", (outputs, inputs, *size), vgg16)
        arrays[f"{ours}/kernel"] = kernel.transpose(2, 3, 1, 0)
        arrays[f"{ours}/bias"] = tensor(state, f"{theirs}.bias", (outputs,), vgg16)
    state = read(lpips)
    for theirs, ours in LPIPS.items():
        (channels,) = SHAPES[ours]
        arrays[ours] = tensor(state, theirs, (1, channels, 1, 1), lpips).reshape(channels)
    write_npz(Path(out), **arrays)


def read(path: str | Path) -> Mapping[str, Any]:
    """The tensors by name in a file of torch."""
    try:
        import torch
    except ImportError:
        raise UserError("reading these files needs torch; pip install -e '.[import]'") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; `python -m interop.lpips --help` says where it is.") from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        raise UserError(f"{path} is not a readable file of torch; download it again.") from None
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds no tensors by name; is it another file?")
    return state


def tensor(state: Mapping[str, Any], name: str, shape: tuple[int, ...], path: str | Path) -> np.ndarray:
    """One tensor as float32, or a UserError where it is missing or has another shape."""
    if name not in state:
        raise UserError(f"{path} lacks the tensor {name!r}; are the two files in the right order?")
    if tuple(state[name].shape) != shape:
        raise UserError(f"{path}: the tensor {name!r} has shape {tuple(state[name].shape)}; it should have {shape}.")
    return state[name].detach().float().numpy()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with one line about what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.lpips", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vgg16", metavar="VGG16.pth", help="torchvision's vgg16-397923af.pth")
    parser.add_argument("lpips", metavar="LPIPS.pth", help="LPIPS's weights/v0.1/vgg.pth")
    parser.add_argument("out", metavar="OUT.npz", help="what to write")
    options = parser.parse_args(arguments)
    try:
        convert(options.vgg16, options.lpips, options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
