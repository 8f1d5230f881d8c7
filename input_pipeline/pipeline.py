"""Batches of images: every reader decodes, augments and stacks its own share of the dataset."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np

from input_pipeline.sources import CorruptImage, Source, open_source
from input_pipeline.transforms import center_crop, random_crop, random_flip, random_shift, to_channels, to_float
from models.errors import UserError
from models.sharding import Reader

# Handing a record from thread to thread takes about as long as reading and resizing a small one that lies in memory.
SMALL = 64
ALL = Reader((0,), 1)  # who reads whole batches
AT_ONCE = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def image_batches(
    data: Any,
    split: str,
    *,
    batch_size: int,
    seed: int,
    augment: bool,
    repeat: bool,
    reader: Reader = ALL,
) -> grain.IterDataset:
    """Batches {"image": float32 (B, resolution, resolution, channels) in [-1, 1], "label": int32 (B,)}, numpy arrays.

    The iterators' `get_state` and `set_state` resume bit for bit, at any batch.

    Args:
      data: the config's `data` section: `name`, `path`, `classes` (see `open_source`); `resolution` in pixels;
        `channels`, 1 or 3; `crop_scale`, `shift` (pixels) and `flip` for `augment`; `corrupt_limit`, the number of
        unreadable images that a reader skips with a warning before the next one is an error.
      split: "train" or "test".
      batch_size: B, images a reader.
      seed: decides the order and the augmentation of every epoch, whatever the number of readers.
      augment: crop (where `crop_scale` is not (1, 1)), shift and flip at random; otherwise cut the middle square.
      repeat: go on forever, in a new order every epoch; otherwise pass once and in order, so that the last batch may be
        smaller and one reader may have one batch more than another.
      reader: who reads; see `process_batches`.

    Raises:
      UserError: what `open_source` raises, or a field of `data` is out of its range; the iterator raises it too, for a
        label outside the classes and for too many corrupt images.
    """
    source = open_source(data, split)
    records = grain.MapDataset.range(len(source)).seed(seed)
    if repeat:
        records = records.shuffle().repeat(None)
    records = records.map(reading(source, data.corrupt_limit))
    records = records.random_map(augmentation(data)) if augment else records.map(middle(data))
    ahead = not source.in_memory or data.resolution > SMALL
    return process_batches(records, batch_size, drop_remainder=repeat, ahead=ahead, reader=reader).map(_normalised)


def process_batches(
    records: grain.MapDataset,
    batch_size: int,
    *,
    drop_remainder: bool,
    ahead: bool = True,
    reader: Reader = ALL,
) -> grain.IterDataset:
    """Stacked batches of one reader's share of the records; records that are None are left out.

    Shuffling and random maps belong before this: the share is taken of the final order, so that no two readers draw
    the same random numbers. A reader's batches are its rows of those that a single reader would have, as long as no record
    was left out.

    Args:
      records: what to batch, in the order of all readers together.
      batch_size: B, records a reader.
      drop_remainder: whether a smaller last batch is left out.
      ahead: read in threads, before the batch is asked for.
      reader: whose share (`models.sharding.reader_of` in training).
    """
    share = records if reader == ALL else shared(records, batch_size, reader)
    # Two batches ahead, but Grain counts the waiting records whenever it hands one out: a long queue is a slow one.
    threads = grain.ReadOptions(num_threads=min(os.cpu_count() or 1, 16), prefetch_buffer_size=min(2 * batch_size, 256))
    return share.to_iter_dataset(threads if ahead else AT_ONCE).batch(batch_size, drop_remainder=drop_remainder)


def shared(records: grain.MapDataset, batch_size: int, reader: Reader) -> grain.MapDataset:
    """A reader's rows of batches of all records, `batch_size` of each."""
    each = batch_size // len(reader.rows)
    whole, rest = divmod(len(records), each * reader.of)
    own = whole * batch_size + sum(min(max(rest - row * each, 0), each) for row in reader.rows)

    def record(i: int) -> Any:
        batch, place = divmod(i, batch_size)
        row, within = divmod(place, each)
        return records[(batch * reader.of + reader.rows[row]) * each + within]

    return grain.MapDataset.range(min(own, sys.maxsize)).map(record)


def records_read(state: Mapping[str, Any]) -> int:
    """How many records of its share a reader had taken, those left out included, when its iterator was in this state."""
    return int(state["next_index"])


def state_after(records: int, readers: int) -> dict[str, Any]:
    """The state of every reader's iterator when all of them together have taken so many records.

    They stand at the start of a batch, unless corrupt records were left out before: then the readers took unequal shares,
    and up to a batch of records may be seen again, or not in this epoch.
    """
    return {"next_index": records // readers}


def reading(source: Source, corrupt_limit: int) -> Callable[[int], dict[str, Any] | None]:
    """Record i of the source, or None where its image is corrupt and no more than the limit have been."""
    corrupt: set[str] = set()
    lock = threading.Lock()

    def read(i: int) -> dict[str, Any] | None:
        try:
            return source[i]
        except CorruptImage as error:
            name = str(error)
        with lock:
            seen_before = name in corrupt
            corrupt.add(name)
            # All of them corrupt is too many under any limit: there would never be a batch.
            if len(corrupt) > min(corrupt_limit, len(source) - 1):
                raise UserError(
                    f"{name} is corrupt, which makes {len(corrupt)}; "
                    f"replace it or raise data.corrupt_limit, which is {corrupt_limit}."
                )
        if not seen_before:
            logging.warning("Skipping the corrupt image %s (%d so far).", name, len(corrupt))
        return None

    return read


def augmentation(data: Any) -> Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]:
    """A record of the source at random as the config's `data` section says: crop, shift and flip."""
    # Reading a field of a ConfigDict takes microseconds: once here, not once an image.
    resolution, channels, shift, flip = data.resolution, data.channels, data.shift, data.flip
    low, high = map(float, data.crop_scale)
    if not 0 < low <= high <= 1:
        raise UserError(f"data.crop_scale is ({low}, {high}); it must be (low, high) with 0 < low <= high <= 1.")

    def transform(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = to_channels(record["image"], channels)
        if (low, high) == (1, 1):
            image = center_crop(image, resolution)
        else:
            image = random_crop(image, resolution, (low, high), rng)
        if shift:
            image = random_shift(image, shift, rng)
        if flip:
            image = random_flip(image, rng)
        return {"image": image, "label": record["label"]}

    return transform


def middle(data: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A record's middle square at the config's resolution."""
    resolution, channels = data.resolution, data.channels

    def transform(record: dict[str, Any]) -> dict[str, Any]:
        return {"image": center_crop(to_channels(record["image"], channels), resolution), "label": record["label"]}

    return transform


def _normalised(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"image": to_float(batch["image"]), "label": batch["label"].astype(np.int32)}
