"""Which crops of an image become tokens: one function a kind, one line each in `CROPS`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from jaxtyping import UInt8

from input_pipeline.pipeline import augmentation, middle, reading
from input_pipeline.sources import Source
from input_pipeline.transforms import Pixels, center_crop, to_channels
from models.errors import UserError, unknown

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Crops:
    """What is cut from every image.

    Attributes:
      number: n, crops an image.
      cut: (record of the source, its random numbers) -> uint8 (n, resolution, resolution, channels).
      settings: all that decides the pixels beside `data`'s dataset, resolution and channels; JSON, for the manifest.
    """

    number: int
    cut: Callable[[Record, np.random.Generator], UInt8[np.ndarray, "n h w c"]]
    settings: dict[str, Any]


def describe_crops(name: str, extract: Any, data: Any, seed: int) -> Crops:
    """The crops of that name.

    Args:
      name: in `CROPS`.
      extract: the config's section: `copies` of "augmented", `ranges` of "ten".
      data: the config's section (see `image_batches`).
      seed: of what is random.

    Raises:
      UserError: the name is unknown, or a field is out of its range.
    """
    if name not in CROPS:
        raise unknown("extract.crops", name, CROPS)
    return CROPS[name](extract, data, seed)


def crop_records(source: Source, data: Any, crops: Crops, seed: int) -> grain.MapDataset:
    """Random access to {"image": uint8 (n, resolution, resolution, channels), "label": int} of every image, in order.

    An image is read once for all of its crops, and they are the same whoever reads it; a corrupt one is None.
    """

    def cut(record: Record, rng: np.random.Generator) -> Record:
        return {"image": crops.cut(record, rng), "label": record["label"]}

    return grain.MapDataset.range(len(source)).seed(seed).map(reading(source, data.corrupt_limit)).random_map(cut)


def plain(extract: Any, data: Any, seed: int) -> Crops:
    """The middle square: what held-out images are judged by."""
    del extract, seed
    cut = middle(data)
    return Crops(1, lambda record, rng: cut(record)["image"][None], {"name": "plain", "number": 1})


def augmented(extract: Any, data: Any, seed: int) -> Crops:
    """The middle square, and `extract.copies` - 1 crops at random as `data` says."""
    if extract.copies < 1:
        raise UserError(f"extract.copies is {extract.copies}; it must be 1 (the middle square) or more.")
    cut, draw, number = middle(data), augmentation(data), extract.copies

    def all_of(record: Record, rng: np.random.Generator) -> UInt8[np.ndarray, "n h w c"]:
        return np.stack([cut(record)["image"], *(draw(record, rng)["image"] for _ in range(number - 1))])

    settings = {"crop_scale": list(data.crop_scale), "shift": data.shift, "flip": data.flip, "seed": seed}
    return Crops(number, all_of, {"name": "augmented", "number": number, **settings})


def ten(extract: Any, data: Any, seed: int) -> Crops:
    """LlamaGen's ten crops (arXiv:2406.06525, as in its `extract_codes_c2i.py`) of each of `extract.ranges`."""
    del seed
    resolution, channels, ranges = data.resolution, data.channels, [float(r) for r in extract.ranges]
    if not ranges or min(ranges) < 1:
        raise UserError(f"extract.ranges is {tuple(ranges)}; it must hold one number or more, each at least 1.")

    def all_of(record: Record, rng: np.random.Generator) -> UInt8[np.ndarray, "n h w c"]:
        image = to_channels(record["image"], channels)
        return np.concatenate([ten_crop(center_crop(image, int(resolution * r)), resolution) for r in ranges])

    return Crops(10 * len(ranges), all_of, {"name": "ten", "number": 10 * len(ranges), "ranges": ranges})


def ten_crop(image: Pixels, resolution: int) -> UInt8[np.ndarray, "10 {resolution} {resolution} c"]:
    """The corners (above left, above right, below left, below right) and the middle, then those of the mirror image."""
    down, right = (side - resolution for side in image.shape[:2])
    # Halves are rounded to even, as torchvision's `TenCrop` rounds them.
    places = ((0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2)))
    return np.stack(
        [seen[y : y + resolution, x : x + resolution] for seen in (image, image[:, ::-1]) for y, x in places]
    )


CROPS: dict[str, Callable[[Any, Any, int], Crops]] = {"plain": plain, "augmented": augmented, "ten": ten}
