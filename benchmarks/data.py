"""Images/s of the input pipeline as training reads it: extracted tokens, and JPEG files cropped at random to 256 pixels.

python -m benchmarks.data [--turns=5] [--batch=64] [--json]

All files are made in a temporary folder first, so that they come from memory and not from a disk. Rows take turns; each
opens its own iterator within its turn, is warm before it is timed, and closes it, so that none pays for what another reads
ahead. Medians of the turns. `core ms` are milliseconds that all threads together worked, an image.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline import records
from input_pipeline.pipeline import image_batches

PHOTOS = {"jpeg_500x375": (500, 375), "jpeg_1365x1024": (1365, 1024)}  # width, height
FILES = 64  # of each size
IMAGES, CROPS, POSITIONS, CODES = 4096, 10, 256, 16384  # of the tokens
WARM = 4  # batches; no more are read ahead
TIMED = {"tokens": 256, "jpeg_500x375": 10, "jpeg_1365x1024": 4}  # batches of a turn


def photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Noise of many scales, the coarse ones the strongest, as in photographs."""
    picture = 0.02 * rng.normal(size=(height, width, 3))
    for k in range(2, 9):
        coarse = 2.0 ** (-0.9 * k) * rng.normal(size=(2**k, 2**k, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        picture += np.stack([np.asarray(layer) for layer in layers], -1)
    low, high = np.quantile(picture, (0.005, 0.995))
    return Image.fromarray(np.uint8(255 * np.clip((picture - low) / (high - low), 0, 1)))


def write_photos(folder: Path, width: int, height: int) -> float:
    """JPEG files of one class; returns their mean size in kB."""
    (folder / "train" / "all").mkdir(parents=True)
    (folder / "test" / "all").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(FILES):
        photo(width, height, rng).save(folder / "train" / "all" / f"{i:03d}.jpg", quality=90)
    return statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg")) / 1000


def write_tokens(directory: Path) -> None:
    """Tokens as ten crops of LlamaGen's tokenizer have them."""
    plan = {"vocabulary": [CODES], "positions": POSITIONS, "crops": {"number": CROPS}, "shards": 1}
    rng = np.random.default_rng(0)
    whole = {"ids": rng.integers(0, CODES, (IMAGES, CROPS, POSITIONS, 1)), "label": np.arange(IMAGES) % 1000}
    records.begin(directory, plan)
    records.write_shard(directory, plan, 0, [whole])
    records.finish(directory, plan)


def open_row(name: str, root: Path, batch: int, seed: int) -> grain.IterDataset:
    """Batches as training gets them."""
    if name == "tokens":
        return records.token_batches(root / name, batch_size=batch, seed=seed, repeat=True)
    data = ConfigDict(
        {"name": "folder", "path": str(root / name), "resolution": 256, "channels": 3, "classes": 0,
         "crop_scale": (0.8, 1.0), "shift": 0, "flip": True, "corrupt_limit": 0}
    )  # fmt: skip
    return image_batches(data, "train", batch_size=batch, seed=seed, augment=True, repeat=True)


def turn(name: str, root: Path, batch: int, seed: int) -> tuple[float, float]:
    """(images/s, core milliseconds an image) of one turn."""
    with contextlib.closing(iter(open_row(name, root, batch, seed))) as batches:
        for _ in range(WARM):
            next(batches)
        wall, worked = time.perf_counter(), time.process_time()
        for _ in range(TIMED[name]):
            next(batches)
        wall, worked = time.perf_counter() - wall, time.process_time() - worked
    images = TIMED[name] * batch
    return images / wall, 1000 * worked / images


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, found = Path(folder), {name: {} for name in TIMED}
        write_tokens(root / "tokens")
        for name, size in PHOTOS.items():
            found[name]["kilobytes_a_file"] = round(write_photos(root / name, *size), 1)
        turns = [{name: turn(name, root, options.batch, seed) for name in TIMED} for seed in range(options.turns)]
    for name, row in found.items():
        rates, worked = zip(*(measured[name] for measured in turns))
        row["images_per_second"] = round(statistics.median(rates), 1)
        row["images_per_second_of_turns"] = [round(rate, 1) for rate in rates]
        row["core_ms_per_image"] = round(statistics.median(worked), 3)
    report(found, options)


def report(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table, or the JSON."""
    if options.json:
        machine = {"cores": len(os.sched_getaffinity(0)), "load_average": round(os.getloadavg()[0], 2)}
        print(json.dumps({"batch": options.batch, **machine, "rows": found}))
        return
    print(f"{'':16} {'images/s':>10} {'lowest':>10} {'highest':>10} {'core ms':>8}")
    for name, row in found.items():
        rates = row["images_per_second_of_turns"]
        print(f"{name:16} {row['images_per_second']:10,.0f} {min(rates):10,.0f} {max(rates):10,.0f} "
              f"{row['core_ms_per_image']:8.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
