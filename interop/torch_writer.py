"""Files that torch.load reads, of numpy arrays and without torch: the zip format of torch 1.6 and later.

`data.pkl` is a pickle in which each tensor is a call that makes a view of a storage, and `data/N` holds the bytes of storage
N. Python's pickler would import what the pickle names, torch first of all: so the opcodes are written here.
"""

import math
import pickle
import struct
import zipfile
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from interop.torch_files import STORAGES
from models.files import atomically

CLASSES = {dtype: name for name, dtype in STORAGES.items()}
ALIGNMENT = 64  # bytes: what torch gives its storages, so that those of a mapped file are aligned


def write_torch(path: str | Path, value: Any) -> None:
    """Write a whole file of which `torch.load(path, weights_only=True)` makes `value`, its arrays as tensors.

    `value` is of dicts, lists, tuples, strings, numbers, None and numpy arrays of the dtypes in `STORAGES`. The same
    value gives the same bytes. An array that is not contiguous in C's order is copied while it is written.

    Raises TypeError where anything else is in it, and an array of another dtype.
    """
    arrays: list[np.ndarray] = []
    pickled = pickle.PROTO + b"\x02" + b"".join(_opcodes(value, arrays)) + pickle.STOP
    with atomically(Path(path)) as temporary, temporary.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        # No .format_version: with it torch computes where storages lie, from what its own zip writer would have done.
        _store(archive, file, "data.pkl", pickled)
        _store(archive, file, "byteorder", b"little")
        for key, array in enumerate(arrays):
            native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
            _store(archive, file, f"data/{key}", memoryview(native.reshape(-1).view(np.uint8)))
        _store(archive, file, "version", b"3\n")


def _store(archive: zipfile.ZipFile, file: BufferedIOBase, name: str, content: bytes | memoryview) -> None:
    """One entry, uncompressed, its content at a multiple of `ALIGNMENT` by padding in the field that torch pads."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    large = len(content) > zipfile.ZIP64_LIMIT
    header = 30 + len(entry.filename) + 4 + (20 if large else 0)  # with the field's own, and the one of long sizes
    padding = -(file.tell() + header) % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(entry, "w", force_zip64=large) as opened:
        opened.write(content)


def _opcodes(value: Any, arrays: list[np.ndarray]) -> Iterator[bytes]:
    """What puts a value on the stack of an unpickler; an array goes to the end of `arrays`, where its storage is N."""
    match value:
        case None:
            yield pickle.NONE
        case bool():
            yield pickle.NEWTRUE if value else pickle.NEWFALSE
        case int() if -(2**31) <= value < 2**31:
            yield pickle.BININT + struct.pack("<i", value)
        case int():
            digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            yield pickle.LONG1 + bytes([len(digits)]) + digits
        case float():
            yield pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            text = value.encode()
            yield pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        case dict():
            yield pickle.EMPTY_DICT + pickle.MARK
            for pair in value.items():
                yield from _each(pair, arrays)
            yield pickle.SETITEMS
        case list():
            yield pickle.EMPTY_LIST + pickle.MARK
            yield from _each(value, arrays)
            yield pickle.APPENDS
        case tuple():
            yield pickle.MARK
            yield from _each(value, arrays)
            yield pickle.TUPLE
        case np.ndarray():
            yield from _tensor(value, arrays)
        case _:
            raise TypeError(f"{type(value)} is nothing that a file of tensors holds")


def _each(values: Any, arrays: list[np.ndarray]) -> Iterator[bytes]:
    for value in values:
        yield from _opcodes(value, arrays)


def _tensor(array: np.ndarray, arrays: list[np.ndarray]) -> Iterator[bytes]:
    """The call _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, no hooks)."""
    name = CLASSES.get(array.dtype.newbyteorder("="))
    if name is None:
        raise TypeError(f"torch has no storage of {array.dtype}")
    key, shape = str(len(arrays)), array.shape
    arrays.append(array)
    stride = tuple(math.prod(max(n, 1) for n in shape[axis + 1 :]) for axis in range(array.ndim))
    yield _named("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + pickle.MARK
    yield from _opcodes("storage", arrays)
    yield _named("torch", name)
    yield from _each((key, "cpu", array.size), arrays)
    yield pickle.TUPLE + pickle.BINPERSID
    yield from _each((0, shape, stride, False), arrays)
    yield _named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE


def _named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
