"""Files that are whole or not there: written under a temporary name, then renamed; and folders in buckets."""

import json
import math
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from etils import epath

from models.errors import UserError


def folder(address: str | os.PathLike) -> epath.Path:
    """A folder of this machine, by its absolute path, or one of a bucket of Google Cloud Storage.

    Args:
      address: a path, or gs://BUCKET/FOLDER.

    Raises:
      UserError: it is at another service, or what speaks to this one is not installed.
    """
    service, remote, _ = os.fspath(address).partition("://")
    if not remote:
        return epath.Path(Path(address).absolute())
    if service != "gs":
        raise UserError(
            f"{address} is neither a folder nor in a bucket of Google; give a folder, or gs://BUCKET/FOLDER."
        )
    if find_spec("gcsfs") is None:
        raise UserError(f"gcsfs, which reads {address}, is not installed; pip install gcsfs.")
    # tensorstore and other processes write what a kept listing would not show.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(address)


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A name beside `path`, renamed to it when the block ends without an error; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hosts that share the folder may agree in their names (containers) and in their processes' numbers.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file; what is no finite number is null, which JSON has."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_npz(path: Path, **arrays: Any) -> None:
    """Write a whole npz file."""
    with atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


class Arrays:
    """An npz file that a user brought: its arrays are read one by one, and never as pickled objects.

    Raises:
      UserError: it is not there, or no npz, or (on reading) an array is damaged or holds Python objects.
    """

    def __init__(self, path: str | Path):
        try:
            file = np.load(path)
        except FileNotFoundError:
            raise UserError(f"{path} is not there; give an npz file.") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            raise UserError(f"{path} is no readable npz file; save it with np.savez.") from None
        if not isinstance(file, np.lib.npyio.NpzFile) or not file.files:
            raise UserError(f"{path} holds no arrays by name; save it with np.savez.")
        self.path, self.file, self.names = path, file, tuple(file.files)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.file[name]
        except ValueError:
            raise UserError(f"{self.path}: {name} holds Python objects, which are not read.") from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
            raise UserError(f"{self.path}: {name} is damaged; bring the file again.") from None
