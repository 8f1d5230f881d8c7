"""What a distance is taken of: images from an npz, a folder or a dataset, named by a hash of their pixels."""

import dataclasses
import functools
import hashlib
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from input_pipeline.sources import SUFFIXES, CorruptImage, decode, open_source
from input_pipeline.transforms import center_crop, to_channels
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size, in an order.

    Attributes:
      name: as a user writes it.
      count: N.
      read: image i, uint8 (h, w, 1 or 3).
    """

    name: str
    count: int
    read: Callable[[int], np.ndarray]

    def block(self, start: int, stop: int) -> UInt8[np.ndarray, "n h w c"]:
        """Images `start` to `stop` - 1, fewer at the end.

        Raises:
          UserError: they differ in size or in channels, or one cannot be read.
        """
        try:
            with ThreadPoolExecutor() as threads:
                images = list(threads.map(self.read, range(start, min(stop, self.count))))
        except CorruptImage as error:
            raise UserError(f"{error} cannot be read; replace it or take it away.") from None
        for image in images:
            self.check_size(images[0].shape, image.shape)
        return np.stack(images)

    def blocks(self, size: int) -> Iterator[UInt8[np.ndarray, "n h w c"]]:
        """All images in order."""
        for start in range(0, self.count, size):
            yield self.block(start, start + size)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the pixels in their order, and their shape: the same for a folder of PNGs and an npz of what they show."""
        digest, shape = hashlib.sha256(), None
        for images in self.blocks(500):
            shape = shape or images.shape[1:]
            self.check_size(shape, images.shape[1:])
            digest.update(np.ascontiguousarray(images))
        digest.update(repr(shape).encode())
        return digest.hexdigest()

    def check_size(self, first: tuple[int, ...], other: tuple[int, ...]) -> None:
        """Refuse images of two sizes: bringing them to one is a choice that moves every distance."""
        if first != other:
            sizes = " and ".join("x".join(map(str, shape[:2])) for shape in (first, other))
            raise UserError(f"{self.name} holds images of mixed sizes ({sizes}); bring them to one size first.")


def npz_images(path: Path) -> ImageSet:
    """uint8 (N, h, w, 3), (N, h, w, 1) or (N, h, w), under `arr_0`, `images`, or as the only array.

    Raises:
      UserError: there is no such array, or it is no images.
    """
    with open_npz(path) as file:
        names = [name for name in ("arr_0", "images") if name in file.files] or file.files
        if len(names) > 1 and names[0] not in ("arr_0", "images"):
            raise UserError(f"{path} holds {', '.join(names)}; images must be `arr_0`, `images` or the only array.")
        try:
            images = file[names[0]]
        except ValueError:
            raise UserError(f"{path}: {names[0]} holds Python objects, which are not read; images are uint8.") from None
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise UserError(f"{path}: {names[0]} is {images.dtype} {images.shape}; images are uint8 (N, h, w, 1 or 3).")
    return ImageSet(str(path), len(images), images.__getitem__)


def open_npz(path: Path) -> Any:
    """An npz file, without pickled objects.

    Raises:
      UserError: it is not there, or no npz.
    """
    try:
        file = np.load(path)
    except FileNotFoundError:
        raise UserError(f"{path} is not there; give an npz file or a folder of images.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} is no readable npz file.") from None
    if not isinstance(file, np.lib.npyio.NpzFile) or not file.files:
        raise UserError(f"{path} holds no arrays by name; save it with np.savez.")
    return file


def folder_images(path: Path) -> ImageSet:
    """All image files below a folder, in the order of their paths.

    Raises:
      UserError: there are none.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no images ({' '.join(SUFFIXES)}).")
    return ImageSet(str(path), len(files), lambda i: decode(str(files[i]), str(files[i])))


def split_images(data: Any, split: str) -> ImageSet:
    """A split of the dataset of a config's `data` section, as it is."""
    source = open_source(data, split)
    return ImageSet(f"{data.name}:{split}", len(source), lambda i: source[i]["image"])


def read_labels(data: Any, split: str) -> Int[np.ndarray, "N"]:
    """The class of every image of a split; a TFDS dataset is read for it."""
    source = open_source(data, split)
    labels = source.labels if source.labels is not None else [source[i]["label"] for i in range(len(source))]
    return np.array(labels, np.int32)


def read_split(data: Any, split: str, most: int) -> dict[str, np.ndarray]:
    """Images of a split in memory, prepared as for training without augmentation, and their labels.

    Args:
      data: a config's `data` section.
      split: "train" or "test".
      most: of more images, so many are taken, evenly spread: files often lie in the order of their classes.

    Returns:
      {"image": uint8 (N, resolution, resolution, channels), "label": int32 (N,)}.
    """
    source = open_source(data, split)
    chosen = np.arange(min(most, len(source))) * len(source) // min(most, len(source))

    def read(i: int) -> tuple[np.ndarray, int]:
        record = source[i]
        return center_crop(to_channels(record["image"], data.channels), data.resolution), record["label"]

    with ThreadPoolExecutor() as threads:
        images, labels = zip(*threads.map(read, chosen.tolist()))
    return {"image": np.stack(images), "label": np.array(labels, np.int32)}


def prepared(images: ImageSet, *, channels: int, resolution: int = 0) -> ImageSet:
    """With 1 or 3 channels; where a resolution is given, the middle square brought to it as training data are."""

    def read(i: int) -> np.ndarray:
        image = to_channels(images.read(i), channels)
        return center_crop(image, resolution) if resolution else image

    return dataclasses.replace(images, read=read)
