"""Public files of the FID Inception network -> the arrays of `evaluation/inception.py`, batch normalization folded in.

Three sources, told apart by what is in them: the state dict pt_inception-2015-12-05-6726825d.pth of pytorch-fid, the
pickle inception_v3_weights_fid.pickle of jax-fid, and an npz with our own names, which may end after Mixed_6e.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interop.pickles import guarded, read_pickle
from interop.torch_files import is_torch, read_torch
from models.errors import UserError

EPSILON = 0.001  # of the batch normalization
OPTIONAL = ("fc/", "Mixed_7")  # a file may end before these, the last first

Shapes = Mapping[str, tuple[int, ...]]

# What each source calls the parts of a layer: scale (x - mean) / sqrt(variance + EPSILON) + shift follows its kernel.
PYTORCH = {
    "kernel": "{layer}.conv.weight",
    "scale": "{layer}.bn.weight",
    "shift": "{layer}.bn.bias",
    "mean": "{layer}.bn.running_mean",
    "variance": "{layer}.bn.running_var",
}
JAX = {
    "kernel": "{layer}.conv.kernel",
    "scale": "{layer}.bn.scale",
    "shift": "{layer}.bn.bias",
    "mean": "{layer}.bn.mean",
    "variance": "{layer}.bn.var",
}
CLASSIFIER = {"fc.weight": "fc/kernel", "fc.kernel": "fc/kernel", "fc.bias": "fc/bias"}
NOT_IT = "it is no FID Inception network of 2015-12-05."
UNUSED = ("AuxLogits", "num_batches_tracked")  # of training only


def read_inception(path: str | Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """The arrays of a file: {"LAYER/kernel": HWIO, "LAYER/bias": (O,), "fc/kernel": (I, O), "fc/bias": (O,)}, float32.

    Args:
      path: of any of the three sources, whatever it is called.
      shapes: of the whole network. The file may lack the classifier, or all after Mixed_6e.

    Raises:
      UserError: where the file is missing or unreadable, wants to run anything, lacks an array, has one in another
        shape, or has one that the network does not.
    """
    kind = guarded(path, "a readable file", lambda file, size: _kind(Path(path)))
    arrays = _SOURCES[kind](path, shapes)
    missing = [name for name in _expected(arrays, shapes) if name not in arrays]
    left_over = sorted(set(arrays) - set(shapes))
    if missing or left_over:
        verb, names = ("lacks", missing) if missing else ("has, and the network has not,", left_over)
        raise UserError(f"{path} {verb} {names[0]!r}{_and_more(names)}; {NOT_IT}")
    for name, array in arrays.items():
        _check_shape(path, name, array.shape, shapes[name])
    return {name: np.ascontiguousarray(arrays[name], np.float32) for name in shapes if name in arrays}


def _expected(arrays: Mapping[str, Any], shapes: Shapes) -> list[str]:
    """The names that must be there: all of them, or all to the end of a file that stops earlier."""
    names = list(shapes)
    for prefix in OPTIONAL:
        if any(name.startswith(prefix) for name in arrays):
            break
        names = [name for name in names if not name.startswith(prefix)]
    return names


def _check_shape(path: str | Path, name: str, shape: tuple[int, ...], right: tuple[int, ...]) -> None:
    if shape != right:
        raise UserError(f"{path}: {name!r} has the shape {shape}; it should have {right}.")


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _kind(path: Path) -> str:
    if is_torch(path):
        return "torch"
    return "npz" if zipfile.is_zipfile(path) else "pickle"


def _from_npz(path: str | Path, shapes: Shapes) -> dict[str, np.ndarray]:
    return guarded(path, "a readable npz file", lambda file, size: dict(np.load(file)))


def _from_torch(path: str | Path, shapes: Shapes) -> dict[str, np.ndarray]:
    return _folded(_tensors(read_torch(path), path), PYTORCH, shapes, path)


def _from_pickle(path: str | Path, shapes: Shapes) -> dict[str, np.ndarray]:
    return _folded(_tensors(read_pickle(path), path), JAX, shapes, path)


_SOURCES = {"npz": _from_npz, "torch": _from_torch, "pickle": _from_pickle}


def _tensors(tree: Any, path: str | Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested names to names with dots, without what only training uses.

    A convolution before a normalization has no bias: where a file has an entry for one, it is None or zeros.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds no arrays by name; is it another file?")
    flat: dict[str, np.ndarray] = {}
    for key, node in tree.items():
        name = f"{prefix}{key}"
        if isinstance(node, np.ndarray):
            if not (name.endswith("conv.bias") and not node.any()):
                flat[name] = node
        elif node is not None:
            flat |= _tensors(node, path, f"{name}.")
    return {name: array for name, array in flat.items() if not any(part in name for part in UNUSED)}


def _folded(
    tensors: Mapping[str, np.ndarray], parts: Mapping[str, str], shapes: Shapes, path: str | Path
) -> dict[str, np.ndarray]:
    """Every layer's convolution and normalization as one kernel and bias; other arrays under their own names.

    UserError where a layer of which there is something is not whole.
    """
    last = _channels_last if parts is PYTORCH else np.asarray
    rest = {CLASSIFIER.get(name, name): last(tensor) for name, tensor in tensors.items()}
    folded = {}
    for layer in (name.removesuffix("/kernel") for name in shapes if name.endswith("/kernel")):
        names = {part: name.format(layer=layer.replace("/", ".")) for part, name in parts.items()}
        there = {part: rest.pop(name).astype(np.float64) for part, name in names.items() if name in rest}
        if there:
            if absent := [name for part, name in names.items() if part not in there]:
                raise UserError(f"{path} lacks {absent[0]!r}{_and_more(absent)}; {NOT_IT}")
            for part, array in there.items():
                right = shapes[f"{layer}/kernel"] if part == "kernel" else shapes[f"{layer}/bias"]
                _check_shape(path, names[part], array.shape, right)
            factor = there["scale"] / np.sqrt(there["variance"] + EPSILON)
            folded[f"{layer}/kernel"] = there["kernel"] * factor
            folded[f"{layer}/bias"] = there["shift"] - there["mean"] * factor
    return folded | rest


def _channels_last(tensor: np.ndarray) -> np.ndarray:
    """(O, I, h, w) to (h, w, I, O), (O, I) to (I, O)."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
