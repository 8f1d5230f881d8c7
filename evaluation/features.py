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

from evaluation.image_sets import ImageSet
from evaluation.inception import Inception, inception_features
from evaluation.shards import compute_shards, read_all, read_shards
from evaluation.statistics import Gaussian, Statistics, merge
from interop.download import cache_folder
from models import sharding

Network = Callable[[Any, jax.Array], Mapping[str, jax.Array]]
BLOCK = 500  # images a piece on disk
ROWS = 50_000  # features that neighbours are looked for among, at most; statistics are of all


class Extractor:
    """uint8 images (N, H, W, C) -> {name: (N, ...)} by one compiled program a batch.

    Args:
      network: pure, (params, images) -> {name: (B, ...)}.
      params: its parameters, passed to the program so that they are no constants of it.
      names: of its arrays, those that are features.
      key: names the network and its weights; features on disk are found by it.
      batch_size: images a program, rounded up to what the devices divide. The last batch of a call is filled up, so that
        one program serves all; images of another size compile another.
    """

    def __init__(self, network: Network, params: Any, names: tuple[str, ...], *, key: str, batch_size: int = 50):
        mesh = sharding.local_mesh()
        self.names, self.key, self.batch_size = names, key, batch_size + -batch_size % mesh.size
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
      rows: float32 (N, D), of the first 50,000 images; none where only statistics are known.
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

    return Extractor(network, inception.params, names, key=f"{inception.sha256} {names}", batch_size=batch_size)


def measure(images: ImageSet, extractor: Extractor, folder: Path | None = None) -> Features:
    """The features of a set of images.

    Args:
      images: of one size.
      extractor: of features.
      folder: where finished pieces are kept and found; by default in the cache ($XDG_CACHE_HOME or ~/.cache, /tessera),
        by a hash of the pixels and the extractor's key. Several processes share the work through it.
    """
    if folder is None:
        key = hashlib.sha256(f"{images.sha256} {extractor.key}".encode()).hexdigest()
        folder = cache_folder() / "features" / key[:32]
    pieces = -(-images.count // BLOCK)

    def piece(k: int) -> dict[str, Any]:
        block = images.block(k * BLOCK, (k + 1) * BLOCK)
        began = time.monotonic()
        return {**extractor(block), "seconds": time.monotonic() - began}

    compute_shards(folder, pieces, piece, title=f"features of {images.name}", images_per_shard=BLOCK)
    seconds = read_all(folder, pieces, ["seconds"])["seconds"]
    return dataclasses.replace(
        gather(read_shards(folder, pieces, extractor.names)), images_per_second=float(images.count / seconds.sum())
    )


def gather(pieces: Iterable[Mapping[str, Float[np.ndarray, "_ _"]]]) -> Features:
    """Statistics of all pieces, and their first rows, with one piece in memory at a time."""
    rows: dict[str, list[np.ndarray]] = {}
    sums: dict[str, Statistics] = {}
    for piece in pieces:
        for name, features in piece.items():
            found = Statistics.of(features)
            sums[name] = merge(sums[name], found) if name in sums else found
            if sum(map(len, rows.setdefault(name, []))) < ROWS:
                rows[name].append(features)
    return Features(
        {name: Gaussian(found.mean, found.covariance, found.count) for name, found in sums.items()},
        {name: np.concatenate(parts)[:ROWS] for name, parts in rows.items()},
    )


def join(parts: Iterable[Features]) -> Features:
    """What several networks see in the same images."""
    gaussians: dict[str, Gaussian] = {}
    rows: dict[str, np.ndarray] = {}
    for part in parts:
        gaussians |= part.gaussians
        rows |= part.rows
    return Features(gaussians, rows)
