"""Public files of LPIPS and of its network -> the npz that `tokenizer/perceptual.py` reads.

python -m interop.lpips vgg OUT.npz                              downloads both files, or takes them from the cache
python -m interop.lpips alex OUT.npz                             likewise, over AlexNet
python -m interop.lpips vgg16-397923af.pth vgg.pth OUT.npz       takes files that are there
python -m interop.lpips alexnet-owt-7be5be79.pth alex.pth OUT.npz

The first file is torchvision's VGG16 or AlexNet, from https://download.pytorch.org/models/; the second is LPIPS's
lpips/weights/v0.1/vgg.pth or alex.pth, from https://github.com/richzhang/PerceptualSimilarity. torch is not needed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interop.download import public_file
from interop.torch_files import read_torch
from models.errors import UserError, unknown
from models.files import write_npz
from tokenizer.perceptual import convolutions, shapes

# Names in `interop/download.py`: the network's own file, and LPIPS's.
FILES = {
    "vgg": ("vgg16-397923af.pth", "vgg.pth"),
    "alex": ("alexnet-owt-7be5be79.pth", "alex.pth"),
}

# Which of torchvision's `features` are the convolutions: activations and pools are counted too.
PLACES = {
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alex": (0, 3, 6, 8, 10),
}


def convert(network_file: str | Path, lpips_file: str | Path, out: str | Path) -> None:
    """Write `out` from torchvision's VGG16 or AlexNet and LPIPS's weights over it, or leave it as it is.

    Raises UserError where a file is missing or unreadable, lacks a tensor or has it in another shape.
    """
    state = read(network_file)
    network = recognise(state, network_file)
    expected, arrays = shapes(network), {}
    for place, (ours, *_) in zip(PLACES[network], convolutions(network)):
        height, width, inputs, outputs = expected[f"{ours}/kernel"]
        kernel = tensor(state, f"features.{place}.weight", (outputs, inputs, height, width), network_file)
        arrays[f"{ours}/kernel"] = kernel.transpose(2, 3, 1, 0)
        arrays[f"{ours}/bias"] = tensor(state, f"features.{place}.bias", (outputs,), network_file)
    state = read(lpips_file)
    for ours in (name for name in expected if name.startswith("lin")):
        (channels,) = expected[ours]
        # 1x1 convolutions, counted from 0, behind a dropout that is place 0 of the model.
        theirs = f"lin{int(ours.removeprefix('lin')) - 1}.model.1.weight"
        arrays[ours] = tensor(state, theirs, (1, channels, 1, 1), lpips_file).reshape(channels)
    write_npz(Path(out), **arrays)


def read(path: str | Path) -> Mapping[str, Any]:
    """The arrays by name in a file of torch."""
    state = read_torch(path)
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds no tensors by name; is it another file?")
    return state


def recognise(state: Mapping[str, Any], path: str | Path) -> str:
    """The network whose first convolution has the shape of the file's."""
    name = f"features.{PLACES['vgg'][0]}.weight"
    found = np.shape(state[name]) if name in state else None
    for network in PLACES:
        height, width, inputs, outputs = shapes(network)["conv1_1/kernel"]
        if found == (outputs, inputs, height, width):
            return network
    raise UserError(
        f"{path} is neither torchvision's VGG16 nor its AlexNet (the tensor {name!r} "
        f"{f'has shape {found}' if found else 'is missing'}); are the two files in the right order?"
    )


def tensor(state: Mapping[str, Any], name: str, shape: tuple[int, ...], path: str | Path) -> np.ndarray:
    """One tensor as float32, or a UserError where it is missing or has another shape."""
    if name not in state:
        raise UserError(f"{path} lacks the tensor {name!r}; are the two files of one network?")
    if (found := np.shape(state[name])) != shape:
        raise UserError(f"{path}: the tensor {name!r} has shape {found}; it should have {shape}.")
    return np.asarray(state[name], np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with one line about what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.lpips", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="vgg, alex, or the paths of the two files")
    parser.add_argument("out", metavar="OUT.npz", help="what to write")
    options = parser.parse_args(arguments)
    if len(options.source) > 2:
        parser.error(f"two files make one; there are {len(options.source)}")
    try:
        network_file, lpips_file = options.source if len(options.source) == 2 else download(options.source[0])
        convert(network_file, lpips_file, options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


def download(network: str) -> tuple[Path, Path]:
    """The paths of a network's two public files."""
    if network not in FILES:
        raise unknown("network of LPIPS", network, FILES)
    first, second = FILES[network]
    return public_file(first), public_file(second)


if __name__ == "__main__":
    sys.exit(main())
