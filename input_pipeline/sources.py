"""Where labelled images come from: one function a kind of dataset, one line each in `SOURCES`."""

import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.errors import UserError, unknown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Validation comes before test, because the test labels of many datasets (ImageNet's too) are secret.
TFDS_SPLITS = {"train": ("train",), "test": ("validation", "test")}
WEIGHED = 1000  # files of a folder whose sizes are looked at; those of millions would take minutes


class CorruptImage(Exception):
    """An image that cannot be decoded to the last row; its one argument is the image's name."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to labelled images: `source[i]` is {"image": uint8 (h, w, 1 or 3), "label": int}.

    Attributes:
      length: number of records.
      classes: number of classes; labels are in [0, classes).
      read: image and label of record i; raises `CorruptImage` with the record's name.
      digest: hex that tells these records, in their order, from others, wherever they lie.
      in_memory: whether reading costs nothing.
      labels: of all records, where they are known without reading the images.
    """

    length: int
    classes: int
    read: Callable[[int], tuple[np.ndarray, int]]
    digest: Callable[[], str]
    in_memory: bool = False
    labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Any]:
        image, label = self.read(i)
        if not 0 <= label < self.classes:
            raise UserError(f"record {i} of the dataset has label {label}; labels are 0 to {self.classes - 1}.")
        return {"image": image, "label": label}


def open_source(data: Any, split: str) -> Source:
    """Open one split of the dataset that the config's `data` section names.

    Args:
      data: `name` is an entry of `SOURCES` or the name of a TFDS dataset ("cifar10", "imagenette/160px-v2"); `path` is
        the file or folder that it lies in; `classes` overrides the dataset's number of classes unless it is 0.
      split: "train" or "test".

    Raises:
      UserError: the dataset or the split is unknown, missing, malformed or empty, or there are more classes than
        `data.classes`.
    """
    if split not in TFDS_SPLITS:
        raise unknown("split", split, TFDS_SPLITS)
    source = SOURCES.get(data.name, tfds_dataset)(data, split)
    if not len(source):
        raise UserError(f"dataset {data.name!r} at {data.path!r} has no {split} images; add some or change data.path.")
    if not data.classes:
        return source
    if source.classes > data.classes:
        raise UserError(f"data.classes is {data.classes} but {data.name!r} has {source.classes}; set it to 0 for all.")
    return dataclasses.replace(source, classes=data.classes)


def digits(data: Any, split: str) -> Source:
    """Scikit-learn's 1797 handwritten digits, 8 x 8 x 1; every fifth image of each class is test, the others train."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return _in_memory(images, bunch.target, _held_out(bunch.target, every=5) == (split == "test"))


def npz_file(data: Any, split: str) -> Source:
    """Arrays `images`, uint8 (N, H, W, 1 or 3), and `labels`, integers (N,), all held in memory.

    `data.path` is a directory with train.npz and test.npz, or one file; of one file every tenth image of each class is
    test and the others train.
    """
    path = Path(data.path)
    files = {name: path / f"{name}.npz" for name in ("train", "test")} if path.is_dir() else {split: path}
    labels = {name: _npz_array(file, "labels") for name, file in files.items()}
    images = _npz_array(files[split], "images")
    for name, ids in labels.items():
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"{files[name]}: labels is {_kind(ids)}; it must be integer (N,).")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"{files[split]}: images is {_kind(images)}; it must be uint8 (N, H, W, 1 or 3).")
    if len(images) != len(labels[split]):
        raise UserError(f"{files[split]}: {len(images)} images and {len(labels[split])} labels; there must be as many.")
    keep = np.ones(len(images), bool) if path.is_dir() else _held_out(labels[split], every=10) == (split == "test")
    source = _in_memory(images, labels[split], keep)
    return dataclasses.replace(source, classes=1 + max(int(ids.max(initial=-1)) for ids in labels.values()))


def image_folder(data: Any, split: str) -> Source:
    """Image files in one folder a class; the class ids follow the sorted folder names.

    The class folders lie in `data.path`/train and `data.path`/test (or val), or in `data.path` itself. Without a test
    folder every tenth image of each class is test and the others train.
    """
    root = Path(data.path)
    if not root.is_dir():
        raise UserError(f"data.path {data.path!r} is no folder; it must hold one folder of images a class.")
    train = root / "train" if (root / "train").is_dir() else root
    test = next((root / name for name in ("test", "val") if train != root and (root / name).is_dir()), None)
    names = _entries(train, os.DirEntry.is_dir)
    folder = test if test and split == "test" else train
    if strangers := set(_entries(folder, os.DirEntry.is_dir)) - set(names):
        raise UserError(f"{folder} has the class {min(strangers)!r}, which {train} lacks; both need the same folders.")
    files, labels = [], []
    for label, name in enumerate(names):
        found = [file for file in _entries(folder / name, os.DirEntry.is_file) if file.lower().endswith(SUFFIXES)]
        files += [f"{name}/{file}" for file in found]
        labels += [label] * len(found)
    if not files:
        raise UserError(f"{folder} holds no images; put {' '.join(SUFFIXES)} files into one folder a class.")
    if test is None:
        kept = np.flatnonzero(_held_out(np.array(labels), every=10) == (split == "test"))
        files, labels = [files[i] for i in kept], [labels[i] for i in kept]
    read = lambda i: (decode(path := str(folder / files[i]), path), labels[i])  # noqa: E731

    def digest() -> str:
        """Of all names, and some sizes: other files may have the same names."""
        some = files[:: -(-len(files) // WEIGHED)]
        return _digest(json.dumps([files, labels, [os.stat(folder / file).st_size for file in some]]).encode())

    return Source(len(files), len(names), read, digest, labels=labels)


def tfds_dataset(data: Any, split: str) -> Source:
    """A prepared TFDS dataset, read from its ArrayRecord files without TensorFlow.

    `data.path` is the data_dir, "" for TFDS's own. "test" is the validation split where there is one.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(data.name, data_dir=data.path or None)
    except (ValueError, AssertionError) as error:
        known = [*SOURCES, *tfds.list_builders(with_community_datasets=False)]
        if re.split("[/:]", data.name)[0] not in known:
            raise unknown("dataset", data.name, known) from None
        raise UserError(f"dataset {data.name!r}: {str(error).splitlines()[0]}") from None
    splits, features = builder.info.splits, builder.info.features
    if not splits or builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{builder.data_dir} holds no ArrayRecord files; prepare them with tfds.builder({data.name!r}, "
            f"data_dir={data.path or None!r}, file_format='array_record').download_and_prepare()."
        )
    chosen = next((name for name in TFDS_SPLITS[split] if name in splits), None)
    if chosen is None:
        raise UserError(f"dataset {data.name!r} has no {split} split; it has {', '.join(splits)}.")
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kind) for key, kind in kinds.items()):
        raise UserError(f"dataset {data.name!r} lacks an `image` or a class `label`; it has {', '.join(features)}.")
    records = builder.as_data_source(chosen, decoders={"image": tfds.decode.SkipDecoding()})

    def read(i: int) -> tuple[np.ndarray, int]:
        record = records[i]
        return decode(io.BytesIO(record["image"]), f"{data.name} {chosen} record {i}"), int(record["label"])

    prepared = [builder.info.full_name, chosen, splits[chosen].shard_lengths, splits[chosen].num_bytes]
    return Source(len(records), features["label"].num_classes, read, lambda: _digest(json.dumps(prepared).encode()))


SOURCES: dict[str, Callable[[Any, str], Source]] = {
    "digits": digits,
    "npz": npz_file,
    "folder": image_folder,
}


def _in_memory(images: np.ndarray, labels: np.ndarray, keep: np.ndarray) -> Source:
    images, ids = images[keep], labels[keep].tolist()
    digest = lambda: _digest(json.dumps([images.shape, ids]).encode(), np.ascontiguousarray(images))  # noqa: E731
    return Source(len(ids), int(labels.max(initial=-1)) + 1, lambda i: (images[i], ids[i]), digest, True, ids)


def _digest(*parts: Any) -> str:
    """Of bytes and arrays, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def _held_out(labels: np.ndarray, *, every: int) -> np.ndarray:
    """Marks every `every`-th image of each class: the test images of a dataset that names none. Bool (N,)."""
    marks = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        marks[np.flatnonzero(labels == label)[every - 1 :: every]] = True
    return marks


def _npz_array(file: Path, key: str) -> np.ndarray:
    try:
        with np.load(file) as archive:
            return archive[key]
    except FileNotFoundError:
        raise UserError(f"there is no {file}; it must be an npz with the arrays images and labels.") from None
    except KeyError:
        raise UserError(f"{file} lacks the array {key!r}; it must have images and labels.") from None
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is no npz with the arrays images and labels ({error}).") from None


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _entries(folder: Path, kind: Callable[[os.DirEntry], bool]) -> list[str]:
    """Sorted names of what lies in `folder` and is of that kind and not hidden; none if there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if kind(entry) and not entry.name.startswith("."))


def decode(file: str | io.BytesIO, name: str) -> np.ndarray:
    """The picture in a file as uint8 (h, w, 1) if it is grey, else (h, w, 3); transparency is dropped."""
    try:
        with Image.open(file) as image:
            if image.mode == "I;16":  # converting would clip to white everything above 255 of 65535
                return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))  # converting always copies
    # What PIL raises depends on the format; a size of gigapixels is a damaged header.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise CorruptImage(name) from error
    return pixels if pixels.ndim == 3 else pixels[..., None]
