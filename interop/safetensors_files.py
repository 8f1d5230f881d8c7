"""Files of safetensors, whose tensors are views of the mapped file: none is read before it is used.

The library checks the header: that it is one, and that the tensors cover the bytes behind it once and without holes, each
as many as its shape needs. Its own arrays would be copies.
"""

import math
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from interop.pickles import guarded
from models.errors import UserError
from models.files import atomically

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by its name (bfloat16 by ml_dtypes), read-only, in the order of their bytes.

    The file must not be changed in place while they live; one that is replaced by another stays what it was.

    Raises UserError where the file is missing, damaged or none of safetensors, and where a dtype is not in `DTYPES`.
    """
    return guarded(path, "a readable file of safetensors", lambda file, _: _read(file, Path(path)))


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a whole file of arrays by name; one that is not contiguous in C's order is copied on the way.

    Raises the library's SafetensorError where an array is of no dtype that the format has.
    """
    # The library writes the bytes as they lie, whatever the strides are.
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with atomically(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(contiguous, temporary)
        temporary.chmod(mode)  # the library's files are for the user alone


def _read(file: BufferedIOBase, path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    with safe_open(path, framework="np") as checked:
        start = 8 + int.from_bytes(file.read(8), "little")
        mapped = np.memmap(path, np.uint8, "r")
        for name in checked.offset_keys():  # without holes: each begins where the one before it ends
            header = checked.get_slice(name)
            dtype, shape = DTYPES.get(header.get_dtype()), header.get_shape()
            if dtype is None:
                raise UserError(
                    f"{path} holds {name!r} as {header.get_dtype()}, which is not read; convert it to {', '.join(DTYPES)}."
                )
            view = np.ndarray(shape, dtype, buffer=mapped, offset=start)
            tensors[name] = view if view.flags.aligned else _aligned(view)
            start += math.prod(shape) * dtype.itemsize
    return tensors


def _aligned(view: np.ndarray) -> np.ndarray:
    copy = view.copy()  # the format asks for no alignment, and code beneath numpy may
    copy.flags.writeable = False
    return copy
