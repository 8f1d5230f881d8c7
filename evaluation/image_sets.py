"""What a distance is taken of: images from an npz, a folder or a dataset, named by a hash of their pixels."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from input_pipeline.pipeline import augmentation, middle, reading
from input_pipeline.sources import SUFFIXES, CorruptImage, decode, open_source
from input_pipeline.transforms import center_crop, to_channels
from models.errors import UserError
from models.files import Arrays


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
    file = Arrays(path)
    names = [name for name in ("arr_0", "images") if name in file.names] or file.names
    if len(names) > 1 and names[0] not in ("arr_0", "images"):
        raise UserError(f"{path} holds {', '.join(names)}; images must be `arr_0`, `images` or the only array.")
    images = file[names[0]]
    grey = images.ndim == 3 and images.shape[-1] not in (1, 3)  # (h, w, 3) is one image, not h of them
    images = images[..., None] if grey else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise UserError(f"{path}: {names[0]} is {images.dtype} {images.shape}; images are uint8 (N, h, w, 1 or 3).")
    return ImageSet(str(path), len(images), images.__getitem__)


def folder_images(path: Path) -> ImageSet:
    """All image files below a folder, hidden ones left out, in the order of their paths.

    Raises:
      UserError: there are none.
    """
    files = sorted(
        file for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )  # fmt: skip
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


def spread(count: int, most: int) -> Int[np.ndarray, "n"]:
    """Numbers below `count`, `most` of them or all, evenly spread: files often lie in the order of their classes."""
    most = min(most, count)
    return np.arange(most) * count // max(most, 1)


def read_split(data: Any, split: str, most: int, *, augment: int | None = None) -> dict[str, np.ndarray]:
    """Images of a split in memory, prepared as for training, and their labels.

    Args:
      data: a config's `data` section; as many unreadable images as it allows are left out.
      split: "train" or "test".
      most: of more images, so many are taken, evenly spread.
      augment: seed of random crops, shifts and flips as in training; None takes the middle squares.

    Returns:
      {"image": uint8 (N, resolution, resolution, channels), "label": int32 (N,)}.
    """
    source = open_source(data, split)
    read, square, augmented = reading(source, data.corrupt_limit), middle(data), augmentation(data)

    def prepare(i: int) -> dict[str, Any] | None:
        record = read(i)
        if record is None:
            return None
        return square(record) if augment is None else augmented(record, np.random.default_rng((augment, i)))

    with ThreadPoolExecutor() as threads:
        found = [record for record in threads.map(prepare, spread(len(source), most).tolist()) if record]
    return {"image": np.stack([one["image"] for one in found]),
            "label": np.array([one["label"] for one in found], np.int32)}  # fmt: skip


def prepared(images: ImageSet, *, channels: int, resolution: int = 0) -> ImageSet:
    """With 1 or 3 channels; where a resolution is given, the middle square brought to it as training data are."""

    def read(i: int) -> np.ndarray:
        image = to_channels(images.read(i), channels)
        return center_crop(image, resolution) if resolution else image

    return dataclasses.replace(images, read=read)
