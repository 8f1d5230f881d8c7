"""Images through networks: uint8 images in, named arrays out, on all devices of this process, and kept for the next time."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from evaluation.image_sets import ImageSet, spread
from evaluation.inception import Inception, inception_features
from evaluation.shards import at_once, compute_shards, read_all, read_shards, shard
from evaluation.statistics import Gaussian, Statistics, load_statistics, merge, save_statistics
from interop.download import cache_folder
from models import sharding
from models.errors import UserError
from models.files import Arrays

Network = Callable[[Any, jax.Array], Mapping[str, jax.Array]]
BLOCK = 500  # images a piece on disk
ROWS = 50_000  # images whose features are kept one by one, at most, evenly spread; statistics are of all
STATISTICS_ALONE = ("spatial",)  # features that nothing but a Frechet distance is taken of


class Extractor:
    """uint8 images (N, H, W, C) -> {name: (N, ...)} by one compiled program a batch.

    Args:
      network: pure, (params, images) -> {name: (B, ...)}.
      params: its parameters, passed to the program so that they are no constants of it.
      names: of its arrays, those that are features.
      weights: hash of the network's weights; with the names, features on disk are found by it.
      batch_size: images a program, rounded up to what the devices divide. The last batch of a call is filled up, so that
        one program serves all; images of another size compile another.
    """

    def __init__(self, network: Network, params: Any, names: tuple[str, ...], *, weights: str, batch_size: int = 50):
        mesh = sharding.local_mesh()
        self.names, self.weights, self.batch_size = names, weights, batch_size + -batch_size % mesh.size
        self.place = sharding.batch_sharding(mesh)
        self.params = jax.device_put(params, sharding.replicated(mesh))
        self.program = jax.jit(network)

    def __call__(self, images: UInt8[np.ndarray, "N H W C"]) -> dict[str, np.ndarray]:
        """The arrays of all images, in their order."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            rows = np.arange(start, start + self.batch_size)
            batch = jax.device_put(np.take(images, rows, axis=0, mode="clip"), self.place)
            parts.append(self.program(self.params, batch))
        return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in parts[0]}


@dataclasses.dataclass(frozen=True)
class Features:
    """What networks see in a set of images, one entry of the dicts a kind of features.

    Attributes:
      gaussians: mean and covariance of all images.
      rows: float32 (N, D), of 50,000 images at most; none where only statistics are known.
      images_per_second: of the network, compilation included, when they were computed.
    """

    gaussians: Mapping[str, Gaussian]
    rows: Mapping[str, Float[np.ndarray, "_ _"]]
    images_per_second: float | None = None


def inception_extractor(inception: Inception, names: tuple[str, ...], *, batch_size: int = 50) -> Extractor:
    """The features `names` (of `evaluation.inception.FEATURES`) of images of 1 or 3 channels."""

    def network(params: Any, images: jax.Array) -> Mapping[str, jax.Array]:
        colour = images if images.shape[-1] == 3 else images.repeat(3, axis=-1)
        return inception_features(params, colour, names)

    return Extractor(network, inception.params, names, weights=inception.sha256, batch_size=batch_size)


def measure(images: ImageSet, extractor: Extractor, folder: Path | None = None) -> Features:
    """The features of a set of images.

    Args:
      images: of one size.
      extractor: of features.
      folder: where finished pieces are kept and, in the end, what is made of them; by default in the cache
        ($XDG_CACHE_HOME or ~/.cache, /tessera), by a hash of pixels, network and names. Several processes share the work.

    Raises:
      UserError: the images cannot be read, or several processes do not see each other's pieces.
    """
    if folder is None:
        key = hashlib.sha256(f"{images.sha256} {extractor.weights} {extractor.names}".encode()).hexdigest()
        folder = cache_folder() / "features" / key[:32]
    whole, pieces = folder / "whole.npz", -(-images.count // BLOCK)
    if not whole.exists():

        def piece(k: int) -> dict[str, Any]:
            block = images.block(k * BLOCK, (k + 1) * BLOCK)
            began = time.monotonic()
            return {**extractor(block), "seconds": time.monotonic() - began}

        compute_shards(folder, pieces, piece, title=f"features of {images.name}", images_per_shard=BLOCK)
        if absent := [k for k in range(pieces) if not shard(folder, k).exists()]:
            raise UserError(
                f"{len(absent)} of {pieces} pieces are not in {folder}: processes on several hosts need a folder that all "
                f"see; set XDG_CACHE_HOME to one."
            )
        found = gather(read_shards(folder, pieces, extractor.names), images.count)
        seconds = read_all(folder, pieces, ["seconds"])["seconds"].sum()
        keep(folder, whole, found, images.count / seconds)
    return read_features(whole)


def keep(folder: Path, path: Path, features: Features, images_per_second: float) -> None:
    """Write features to `path`, in the layout of `save_statistics` with `rows_NAME` beside, and drop the pieces."""
    at_once(f"pieces read {path}")
    if jax.process_index() == 0:
        rows = {f"rows_{name}": rows for name, rows in features.rows.items()}
        save_statistics(path, features.gaussians, images_per_second=images_per_second, **rows)
        for piece in folder.glob("[0-9]*.npz"):
            piece.unlink()
    at_once(f"written {path}")


def read_features(path: Path) -> Features:
    """What `keep` wrote."""
    file = Arrays(path)
    rows = {name.removeprefix("rows_"): file[name] for name in file.names if name.startswith("rows_")}
    return Features(load_statistics(path), rows, float(file["images_per_second"]))


def gather(pieces: Iterable[Mapping[str, Float[np.ndarray, "_ _"]]], count: int) -> Features:
    """Statistics of all of `count` images, and some of their rows, with one piece in memory at a time."""
    rows: dict[str, list[np.ndarray]] = {}
    sums: dict[str, Statistics] = {}
    chosen, start = spread(count, ROWS), 0
    for piece in pieces:
        for name, features in piece.items():
            found = Statistics.of(features, f"the {name} features")
            sums[name] = merge(sums[name], found) if name in sums else found
            if name not in STATISTICS_ALONE:
                own = chosen[(chosen >= start) & (chosen < start + len(features))] - start
                rows.setdefault(name, []).append(features[own])
        start += len(next(iter(piece.values()), ()))  # no network, no features
    return Features(
        {name: Gaussian(found.mean, found.covariance, found.count) for name, found in sums.items()},
        {name: np.concatenate(parts) for name, parts in rows.items()},
    )


def join(parts: Iterable[Features]) -> Features:
    """What several networks see in the same images; the speed is the first one's."""
    parts = list(parts)
    return Features(
        {name: known for part in parts for name, known in part.gaussians.items()},
        {name: rows for part in parts for name, rows in part.rows.items()},
        parts[0].images_per_second if parts else None,
    )
