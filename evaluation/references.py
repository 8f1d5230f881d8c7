"""What a user may name as one side of a distance: a dataset's split, a folder or an npz of images, an npz of statistics."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from evaluation.features import Extractor, Features, measure
from evaluation.image_sets import ImageSet, folder_images, npz_images, open_npz, prepared, split_images
from evaluation.statistics import load_statistics
from interop.download import sha256
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Reference:
    """One side of a distance.

    Attributes:
      name: as the user wrote it.
      images: none where a file holds statistics alone.
      statistics: path of the file where it holds statistics; they then stand for the images' own.
    """

    name: str
    images: ImageSet | None
    statistics: Path | None = None

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file of statistics, or of the pixels."""
        if self.statistics:
            return sha256(self.statistics)
        assert self.images, "a reference has images or statistics"
        return self.images.sha256

    @property
    def count(self) -> int | None:
        """Images, where there are images."""
        return self.images.count if self.images else None

    def features(self, extractor: Extractor, folder: Path | None = None) -> Features:
        """What the network sees in the images, and the file's statistics instead of theirs.

        Args:
          extractor: of images.
          folder: see `evaluation.features.measure`.

        Raises:
          UserError: the images cannot be read, or the statistics are none of these features.
        """
        found = measure(self.images, extractor, folder) if self.images else Features({}, {})
        if not self.statistics:
            return found
        known, names = load_statistics(self.statistics), extractor.names
        if not any(name in known for name in names):
            sizes = ", ".join(f"{name} ({len(gaussian.mean)})" for name, gaussian in known.items())
            raise UserError(f"{self.name} holds statistics of the features {sizes}; {', '.join(names)} were asked for.")
        gaussians = {**found.gaussians, **{name: known[name] for name in names if name in known}}
        return dataclasses.replace(found, gaussians=gaussians)


def open_reference(text: str, *, data: Any = None, channels: int = 3, resolution: int = 0) -> Reference:
    """Find what a user named.

    Args:
      text: `train` or `test` of the dataset in `data`; DATASET:SPLIT or DATASET:SPLIT:PATH; a folder; an npz file.
      data: a config's `data` section.
      channels: of the images, 1 or 3.
      resolution: images are cut to the middle square and brought to it, as training data are; 0 leaves them.

    Raises:
      UserError: it is none of these, or is empty.
    """
    path = Path(text)
    if data is not None and text in ("train", "test"):
        images = split_images(data, text)
    elif path.is_dir():
        images = folder_images(path)
    elif path.suffix == ".npz" and ":" not in text:
        with open_npz(path) as file:
            names = set(file.files)
        if "mu" in names or any(name.startswith("mu_") for name in names):
            if not names & {"arr_0", "images"}:
                return Reference(text, None, path)
            return Reference(text, prepared(npz_images(path), channels=channels, resolution=resolution), path)
        images = npz_images(path)
    elif ":" in text:
        name, split, *place = text.split(":")
        images = split_images(Dataset(name, place[0] if place else ""), split)
    else:
        raise UserError(
            f"{text} is not there; give a folder of images, an npz file, or a dataset's split (cifar10:test)."
        )
    return Reference(text, prepared(images, channels=channels, resolution=resolution))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The part of a config's `data` section that says where images come from."""

    name: str
    path: str
    classes: int = 0
    corrupt_limit: int = 0
