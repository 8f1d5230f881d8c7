"""Long work in pieces that outlive their process: what is on disk is not computed again, and processes share the rest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from models.files import write_npz
from models.progress import Progress

Arrays = dict[str, np.ndarray]


def compute_shards(
    folder: Path, count: int, compute: Callable[[int], Mapping[str, Any]], *, title: str, images_per_shard: int = 1
) -> None:
    """Write `compute(0)` to `compute(count - 1)` to `folder`/00000.npz and so on, leaving alone what is there.

    Piece k belongs to process k modulo their number; the call returns when all of them are done. Several processes need
    a folder that they all see.

    Args:
      folder: bound to what is computed; the caller gives another folder to other settings.
      count: pieces.
      compute: deterministic, so that an interrupted run ends as an undisturbed one does.
      title: of the progress bar.
      images_per_shard: what the progress bar counts.
    """
    own = range(jax.process_index(), count, jax.process_count())
    missing = [k for k in own if not shard(folder, k).exists()]
    progress = Progress(title, len(own), start=len(own) - len(missing), images_per_step=images_per_shard)
    for done, k in enumerate(missing, len(own) - len(missing) + 1):
        write_npz(shard(folder, k), **compute(k))
        progress.update(done)
    progress.close()
    at_once(title)


def at_once(moment: str) -> None:
    """Wait until every process has come to this moment."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(moment)


def read_shards(folder: Path, count: int, names: Sequence[str]) -> Iterator[Arrays]:
    """These arrays of the pieces in order, one piece in memory at a time."""
    for k in range(count):
        with np.load(shard(folder, k)) as file:
            yield {name: file[name] for name in names}


def read_all(folder: Path, count: int, names: Sequence[str]) -> Arrays:
    """These arrays of all pieces as one, {name: their rows one below the other}."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for piece in read_shards(folder, count, names):
        for name, array in piece.items():
            parts[name].append(np.atleast_1d(array))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def shard(folder: Path, k: int) -> Path:
    """Where piece k lies."""
    return folder / f"{k:05d}.npz"
