"""Files of torch.save read without torch: what they hold, with numpy arrays in the place of tensors.

Both formats: the zip archive of torch 1.6 and later (`data.pkl` and one entry a storage), and the one before it (a magic
number, the protocol's number, facts about the machine, the pickle, the storages' keys, then each storage's length and
bytes). A tensor is a view of a storage: offset, size and strides, counted in elements.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from interop.pickles import Restricted, guarded

MAGIC = 0x1950A86A20F9469CFC6C  # what a file of the old format begins with, itself pickled
PROTOCOL = 1001
ZIP = b"PK\x03\x04"
LEGACY = pickle.dumps(MAGIC, 2)

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "ComplexFloatStorage": np.dtype(np.complex64),
}


class Namespace:
    """Stands in for argparse.Namespace, which training files hold: its attributes in a plain dict, and nothing else."""

    __slots__ = ("attributes",)
    attributes: dict[str, Any]

    def __new__(cls) -> "Namespace":
        namespace = super().__new__(cls)
        namespace.attributes = {}
        return namespace

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Defined for the class as well as its instances, so that a pickle can change neither.
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise TypeError("attributes are a dict by name")
        self.attributes = dict(state)


def read_torch(path: str | Path) -> Any:
    """What `torch.load` would give: the same containers, numpy arrays (bfloat16 by ml_dtypes), read-only.

    Nothing that the file names is executed, and arrays that share a storage share memory. An argparse.Namespace comes as
    a `Namespace`.

    Raises UserError where the file is missing, cut short or not torch's, and where its pickle wants to call anything
    but what rebuilds tensors, which is then not called.
    """
    return guarded(path, "a readable file of torch", lambda file, size: _read(file, size, Path(path)))


def is_torch(path: str | Path) -> bool:
    """Whether a file begins like one of torch.save, whatever it is called."""
    with Path(path).open("rb") as file:
        start = file.read(64)
    if not start.startswith(ZIP):
        return start.startswith(LEGACY)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_is_pickle(name) for name in archive.namelist())
    except Exception:  # a damaged archive may name any version, encoding or length
        return False


def _read(file: BufferedIOBase, size: int, path: Path) -> Any:
    start = file.read(len(ZIP))
    file.seek(0)
    return (_read_zip if start == ZIP else _read_legacy)(file, size, path)


def _read_zip(file: BufferedIOBase, size: int, path: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if _is_pickle(name))
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("a file of a big-endian machine")
        tensors = _Tensors(BytesIO(archive.read(name)), size, path)
        value = tensors.load()
        for key, storage in tensors.storages.items():
            tensors.fill(storage, archive.read(f"{folder}data/{key}"))
    return value


def _is_pickle(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _read_legacy(file: BufferedIOBase, size: int, path: Path) -> Any:
    magic, protocol, system = (Restricted(file, {}, path).load() for _ in range(3))
    if magic != MAGIC or protocol != PROTOCOL or not system["little_endian"]:
        raise ValueError("another format")
    tensors = _Tensors(file, size, path)
    value = tensors.read()
    for key in Restricted(file, {}, path).load():
        storage = tensors.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError("a storage of another length")
        tensors.fill(storage, file.read(storage.nbytes))
    return value


class _Parameter:
    """A parameter as torch 0.1 pickled it: its tensor comes at once, or first of the five parts of its state."""

    __slots__ = ("tensor",)

    def __new__(cls, tensor: Any = None, *_: Any) -> "_Parameter":
        parameter = super().__new__(cls)
        parameter.tensor = tensor
        return parameter

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # Defined for the class as well as its instances, so that a pickle can change neither.
        if len(state) == 5:
            self.tensor = state[0]


def _unwrapped(node: Any) -> Any:
    if isinstance(node, _Parameter):
        return node.tensor
    if isinstance(node, Namespace):
        _unwrapped(node.attributes)
    elif isinstance(node, dict):
        node.update({key: _unwrapped(value) for key, value in node.items()})
    elif isinstance(node, list):
        node[:] = map(_unwrapped, node)
    elif type(node) is tuple:
        return tuple(map(_unwrapped, node))
    return node


class _Tensors(Restricted):
    """The unpickler of both formats: tensors over storages that are empty until `fill`ed."""

    def __init__(self, file: BufferedIOBase, size: int, path: Path):
        # The dtype stands for a storage's class by name: a string, on which a pickle can set nothing.
        classes = {(module, name): name for name in STORAGES for module in ("torch", "torch.cuda")}
        super().__init__(
            file,
            {
                **classes,
                ("argparse", "Namespace"): Namespace,
                ("collections", "OrderedDict"): OrderedDict,
                ("torch._utils", "_rebuild_tensor"): self.tensor,  # of torch 0.1 to 0.3
                ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
                ("torch._utils", "_rebuild_parameter"): self.parameter,
                ("torch.nn.parameter", "Parameter"): _Parameter,
            },
            path,
        )
        self.room, self.storages = size, dict[str, np.ndarray]()

    def read(self) -> Any:
        """What is pickled, with every parameter as its tensor."""
        return _unwrapped(self.load())

    def persistent_load(self, identity: tuple[Any, ...]) -> np.ndarray:
        """The storage of ("storage", class, key, device, elements[, None])."""
        kind, name, key, _, elements, *view = identity
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError("neither a storage nor a whole one")
        if key not in self.storages:
            self.room -= elements * STORAGES[name].itemsize
            if elements < 0 or self.room < 0:
                raise EOFError("more numbers than the file is long")
            self.storages[key] = np.empty(elements, STORAGES[name])
        return self.storages[key]

    def tensor(self, storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...],
               *_: Any) -> np.ndarray:  # fmt: skip
        """A view of a storage, which must lie inside it."""
        if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
            raise ValueError("no view of a storage")
        if math.prod(size) and offset + sum((n - 1) * step for n, step in zip(size, stride)) >= storage.size:
            raise ValueError("a view beyond its storage")
        steps = [step * storage.itemsize for step in stride]
        start = storage[offset:] if math.prod(size) else storage[:0]
        return np.lib.stride_tricks.as_strided(start, size, steps, writeable=False)

    def parameter(self, data: np.ndarray, *_: Any) -> np.ndarray:
        """A parameter is its tensor."""
        return data

    @staticmethod
    def fill(storage: np.ndarray, raw: bytes) -> None:
        """Put the bytes of a storage into it."""
        if len(raw) != storage.nbytes:
            raise EOFError("a storage cut short")
        storage.view(np.uint8)[...] = np.frombuffer(raw, np.uint8)
