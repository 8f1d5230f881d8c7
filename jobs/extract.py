"""Turn the dataset into tokens, once: W/tokens/train and W/tokens/test."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import records
from input_pipeline.crops import crop_records, describe_crops
from input_pipeline.frequencies import FREQUENCIES, count_codes
from input_pipeline.pipeline import process_batches
from input_pipeline.prefetch import prefetch
from input_pipeline.sources import open_source
from input_pipeline.transforms import to_float
from jobs.workdir import agreed, load
from models import distributed, sharding
from models.errors import UserError
from models.progress import Progress
from models.tokens import Grid
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.step import checksum

Encode = Callable[[jax.Array], jax.Array]
# How the work was cut and rounded, which decides between codes that are as good: the same in one set of tokens, and free
# to be another in what reads them.
INCIDENTAL = ("shards", "at_a_time", "device")
MOST_COUNTED = 1 << 28  # tokens whose frequencies are counted, where that is not less than one crop an image


def run(config: ConfigDict, workdir: Path) -> None:
    """Extract what is missing.

    Processes share the work by shards, whose number and contents do not depend on how many they are; all must see the
    workdir.

    Raises:
      UserError: a field is out of its range; or tokens are there that another tokenizer, dataset or choice of crops made; or
        processes differ in what they read, or do not see the same workdir.
    """
    description = describe_tokenizer(config)
    params, step = load("tokenizer", description, config, workdir)
    spec = token_spec(description)
    maker = {"tokenizer": checksum(params), "tokenizer_step": step, "vocabulary": list(spec.sizes),
             "positions": spec.positions}  # fmt: skip
    encode = jax.jit(lambda params, images: description.merge(params).encode(images).ids)
    for split, crops in (("train", config.extract.crops), ("test", "plain")):
        extract_split(config, split, crops, maker, functools.partial(encode, params), workdir / "tokens" / split)
    if isinstance(spec.shape, Grid) and len(spec.sizes) == 1:
        count_frequencies(workdir / "tokens", spec.sizes[0], spec.shape.width)
    distributed.wait()


def extract_split(
    config: ConfigDict, split: str, crops_name: str, maker: Mapping[str, Any], encode: Encode, directory: Path
) -> None:
    """Write a split's tokens, or go on where an interrupted extraction stopped; check those that are there."""
    data, extract = config.data, config.extract
    source, crops = open_source(data, split), describe_crops(crops_name, extract, data, config.seed)
    if min(extract.shard_size, extract.batch_size) < 1:
        raise UserError("extract.shard_size and extract.batch_size must be at least 1.")
    shards = -(-len(source) // extract.shard_size)
    # A device always encodes as many crops at once, so that their number is not what decides a tie between two codes.
    at_a_time = min(max(1, extract.batch_size // crops.number), extract.shard_size, len(source))
    plan = {
        **maker, "dataset": data.name, "split": split, "images": len(source), "digest": source.digest(),
        "resolution": data.resolution, "channels": data.channels, "crops": crops.settings, "shards": shards,
        "at_a_time": at_a_time, "device": jax.local_devices()[0].device_kind,
    }  # fmt: skip
    found = records.read_manifest(directory)
    for field, value in {**plan, "finished tokens": found}.items():
        if not agreed(lambda value=value: value):
            raise UserError(
                f"{directory}: the hosts differ in {field}, which is {value!r} here; they must see the same files."
            )
    if found is not None:
        check(directory, found, plan)
        return
    if not jax.process_index():
        records.begin(directory, plan)
        directory.with_name(FREQUENCIES).unlink(missing_ok=True)  # of tokens that are no more
    distributed.wait()
    if not agreed(lambda: records.is_begun(directory, plan)):
        raise UserError(
            f"the hosts do not all see {directory.parent}; give a --workdir that they do, such as a mounted bucket."
        )
    images = crop_records(source, data, crops, config.seed)
    parts = {k: images[extract.shard_size * k : extract.shard_size * (k + 1)] for k in own_shards(shards)}
    missing = {k: part for k, part in parts.items() if not records.is_written(directory, plan, k)}
    total = sum(map(len, parts.values()))
    progress = Progress(f"extract {split}", total, start=total - sum(map(len, missing.values())))
    for k, part in missing.items():
        records.write_shard(directory, plan, k, encoded(part, encode, at_a_time, progress))
    progress.close()
    distributed.wait()
    if not jax.process_index():
        records.finish(directory, plan)
    distributed.wait()


def check(directory: Path, found: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Refuse, by name, what made other tokens than these would be."""
    for field, value in plan.items():
        if field in INCIDENTAL:
            continue
        if field not in found:
            raise UserError(
                f"{directory} is of an older version, which did not say its {field}; delete it to extract anew."
            )
        if found[field] != value:
            raise UserError(f"{directory} has {field} {found[field]!r}, not {value!r}; delete it to extract anew.")


def own_shards(shards: int) -> range:
    """This process's, next to each other."""
    first, last = (i * shards // jax.process_count() for i in (jax.process_index(), jax.process_index() + 1))
    return range(first, last)


def encoded(
    images: grain.MapDataset, encode: Encode, at_a_time: int, progress: Progress
) -> Iterator[dict[str, np.ndarray]]:
    """Batches {"ids": (B, n, T, K), "label": (B,)} of images with n crops each, `at_a_time` images a local device."""
    mesh = sharding.local_mesh()

    def place(batch: dict[str, np.ndarray]) -> tuple[jax.Array, np.ndarray]:
        crops = batch["image"]  # (B, n, H, W, C)
        filling = np.zeros((mesh.size * at_a_time - len(crops), *crops.shape[1:]), crops.dtype)
        pixels = to_float(np.concatenate([crops, filling]).reshape(-1, *crops.shape[2:]))
        return jax.device_put(pixels, sharding.batch_sharding(mesh)), batch["label"]

    batches = process_batches(images, mesh.size * at_a_time, drop_remainder=False)
    with contextlib.closing(prefetch(batches, place, depth=1)) as placed:
        for pixels, labels in placed:
            with jax.set_mesh(mesh):
                ids = np.asarray(encode(pixels))
            yield {"ids": ids.reshape(mesh.size * at_a_time, -1, *ids.shape[1:])[: len(labels)], "label": labels}
            progress.update(progress.done + len(labels))


def count_frequencies(directory: Path, codes: int, width: int) -> None:
    """Of the training images' codes, where they are not counted yet; of all crops, or as many as memory is likely to hold."""
    path = directory / FREQUENCIES
    if path.exists() or jax.process_index():
        return
    manifest = records.read_manifest(directory / "train")
    assert manifest is not None  # extracted just now
    crops, kept = manifest["crops"]["number"], max(1, MOST_COUNTED // (manifest["records"] * manifest["positions"]))
    batches = records.token_batches(directory / "train", batch_size=1024, seed=0, repeat=False)
    count_codes(path, (some_crops(batch, crops, kept) for batch in batches), codes, width)


def some_crops(batch: Mapping[str, np.ndarray], crops: int, kept: int) -> dict[str, np.ndarray]:
    """`kept` of every image's `crops`, which lie side by side; those of the next image begin at the next crop."""
    image, crop = np.divmod(np.arange(len(batch["label"])), crops)
    return {name: array[(crop - image) % crops < kept] for name, array in batch.items()}
