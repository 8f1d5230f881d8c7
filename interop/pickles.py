"""Pickles read as data: nothing that a file names is called, except what stands in a table here."""

import pickle
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.errors import UserError

KINDS = "biufc"  # of numpy's dtypes those whose bytes are numbers
NUMPY = ("numpy.core", "numpy._core")  # before and since numpy 2


class Restricted(pickle.Unpickler):
    """An unpickler that knows the globals of a table and refuses every other, before anything runs.

    What the table offers should have no state of its own: a pickle may try to change what it has been given.
    """

    def __init__(self, file: BufferedIOBase, known: Mapping[tuple[str, str], Any], path: Path):
        super().__init__(file)
        self.known, self.path = known, path

    def find_class(self, module: str, name: str) -> Any:
        """What the table has for a global; UserError for any other."""
        if (module, name) not in self.known:
            raise UserError(
                f"{self.path} wants to use {module}.{name}, which no file of numbers needs; "
                "nothing of it was run, get the file from its first source."
            )
        return self.known[module, name]


def read_pickle(path: str | Path) -> Any:
    """The dicts, lists and tuples of numpy arrays in a pickle; numpy's own pickling code is not run either.

    Raises UserError where the file is missing or no readable pickle, where it holds anything else than containers,
    arrays, numbers, strings and None, and where it names any other global, which is then not called.
    """
    return guarded(path, "a readable pickle", lambda file, size: plain(Restricted(file, _TABLE, Path(path)).load()))


def guarded(path: str | Path, what: str, read: Callable[[BufferedIOBase, int], Any]) -> Any:
    """`read(file, its size in bytes)`, with every error of a damaged file told as a UserError: it is not `what`."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return read(file, size)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path.") from None
    except UserError:
        raise
    except Exception:  # bytes at random may ask a pickle for anything
        raise UserError(f"{path} is not {what}; it may be cut short: get it again.") from None


def plain(node: Any) -> Any:
    """Containers with arrays in the place of what stood in for them."""
    if isinstance(node, _Array):
        return node.array()
    if isinstance(node, dict):
        return {key: plain(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(plain(child) for child in node)
    if node is None or isinstance(node, bool | int | float | str | bytes):
        return node
    raise TypeError(f"{type(node)} is no content of a file of arrays")


class _Dtype:
    """Stands in for numpy.dtype: its code, and the byte order that its state brings."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in KINDS:
            raise TypeError(f"arrays of {code} hold no numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder({"|": "="}.get(state[1], state[1]))


class _Array:
    """Stands in for numpy.ndarray: raw bytes, what they are, and in which order."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, fortran, self.raw = state
        self.order: Literal["C", "F"] = "F" if fortran else "C"

    def array(self) -> np.ndarray:
        """The array, in the machine's byte order."""
        flat = np.frombuffer(self.raw, self.dtype.dtype)
        return flat.reshape(self.shape, order=self.order).astype(self.dtype.dtype.newbyteorder("="))


def _filled(shape: tuple[int, ...], dtype: _Dtype, raw: bytes | bytearray, order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", raw))
    return array


class _Numpy:
    """All that a pickle may call. It can hang attributes on them, which nothing reads, and change none of what they do."""

    def reconstruct(self, subtype: Any, shape: Any, code: Any) -> _Array:
        return _Array()

    def frombuffer(self, raw: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
        return _filled(shape, dtype, raw, order)

    def scalar(self, dtype: _Dtype, raw: bytes) -> _Array:
        return _filled((), dtype, raw, "C")

    def dtype(self, code: str, *_: Any) -> _Dtype:
        return _Dtype(code)

    def encode(self, text: str = "", encoding: str = "latin1") -> bytes:
        # How protocols 0 to 2 write bytes; those of length 0 as a call without arguments.
        return text.encode("latin1")


_CALLS = _Numpy()
_TABLE = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _CALLS.dtype,
    ("_codecs", "encode"): _CALLS.encode,
    ("__builtin__", "bytes"): _CALLS.encode,
    **{(f"{core}.multiarray", "_reconstruct"): _CALLS.reconstruct for core in NUMPY},
    **{(f"{core}.multiarray", "scalar"): _CALLS.scalar for core in NUMPY},
    **{(f"{core}.numeric", "_frombuffer"): _CALLS.frombuffer for core in NUMPY},
}
