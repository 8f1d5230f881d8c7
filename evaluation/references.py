"""What a user may name as one side of a distance: a dataset's split, a folder or an npz of images, an npz of statistics."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.features import Extractor, Features, join, measure
from evaluation.image_sets import ImageSet, folder_images, npz_images, prepared, split_images
from evaluation.statistics import Gaussian, load_statistics
from interop.download import sha256
from models.errors import UserError
from models.files import Arrays


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

    @functools.cached_property
    def known(self) -> dict[str, Gaussian]:
        """The file's statistics, by features."""
        return load_statistics(self.statistics) if self.statistics else {}

    @property
    def count(self) -> int | None:
        """Images; of a file of statistics alone those that it says they are of, or None."""
        return self.images.count if self.images else next((known.count for known in self.known.values()), None)

    def features(self, extractors: Sequence[Extractor], folder: Path | None = None) -> Features:
        """What networks see in the images, and the file's statistics instead of those that it has.

        Args:
          extractors: of images.
          folder: see `evaluation.features.measure`.

        Raises:
          UserError: the images cannot be read, or there is nothing but statistics, and none of these features.
        """
        names = [name for extractor in extractors for name in extractor.names]
        if names and not self.images and not any(name in self.known for name in names):
            sizes = ", ".join(f"{name} ({len(gaussian.mean)})" for name, gaussian in self.known.items())
            raise UserError(f"{self.name} holds statistics of the features {sizes}; {', '.join(names)} were asked for.")
        found = join(measure(self.images, extractor, folder) for extractor in extractors if self.images)
        known = {name: gaussian for name, gaussian in self.known.items() if name in names}
        return dataclasses.replace(found, gaussians={**found.gaussians, **known})


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
    elif path.is_file():
        names = set(Arrays(path).names)
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
