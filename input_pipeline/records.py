"""Extracted tokens on disk: one ArrayRecord entry an image, shards of equal size, and a manifest that says what they are.

An entry holds the label and the codes of all the image's crops, so that training draws one of them anew every epoch.
"""

import glob
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from input_pipeline.pipeline import ALL, process_batches
from models.errors import UserError
from models.files import atomically, write_json
from models.sharding import Reader

MANIFEST = "manifest.json"

Manifest = Mapping[str, Any]


def begin(directory: Path, plan: Manifest) -> None:
    """Make room for the shards of tokens, by one process; whole ones that a killed run of the same plan left stay.

    Shards are written into a temporary folder that `finish` renames: an interrupted run leaves no half result. The folder's
    name tells the plan: shards of another plan are never beside them.

    Args:
      directory: where the tokens are to lie; must not exist.
      plan: what decides the tokens, JSON; `vocabulary` the sizes (V_1, ..., V_K), `positions` T, `crops` with `number` n,
        and `shards`, how many there will be.

    Raises:
      UserError: the directory exists.
    """
    if directory.exists():
        raise UserError(f"{directory} exists already; remove it to extract again.")
    temporary = _temporary(directory, plan)
    for other in directory.parent.glob(f"{glob.escape(directory.name)}.*tmp"):
        if other != temporary:
            shutil.rmtree(other, ignore_errors=True)  # what cannot be removed takes room, and is never read
    temporary.mkdir(parents=True, exist_ok=True)
    for half in temporary.glob(".*"):  # of processes that were killed: see `atomically`
        half.unlink()


def is_begun(directory: Path, plan: Manifest) -> bool:
    """Whether this process sees what `begin` made."""
    return _temporary(directory, plan).exists()


def is_written(directory: Path, plan: Manifest, k: int) -> bool:
    """Whether shard k is whole."""
    return (_temporary(directory, plan) / shard_name(k, plan["shards"])).exists()


def write_shard(directory: Path, plan: Manifest, k: int, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write the images of shard k, by any process that sees the folder.

    Args:
      directory: as `begin` got it, like `plan`.
      plan: says how an entry is laid out.
      k: which shard.
      batches: {"ids": integers (B, n, T, K), "label": integers (B,)}.

    Raises:
      ValueError: an id is outside its vocabulary, or the ids are not of that shape.
    """
    sizes, row_dtype = np.array(plan["vocabulary"]), _row_dtype(plan)
    with atomically(_temporary(directory, plan) / shard_name(k, plan["shards"])) as path:
        # Groups of one: random access reads one record and not its neighbours. Ids are too random to be compressed.
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for batch in batches:
            ids, labels = np.asarray(batch["ids"]), np.asarray(batch["label"])
            if ids.shape[1:] != row_dtype["ids"].shape:
                raise ValueError(f"ids are (B, n, T, K) = {ids.shape}, not (B, {str(row_dtype['ids'].shape)[1:]}")
            if ids.min() < 0 or (ids >= sizes).any():
                raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit the vocabulary {sizes.tolist()}")
            rows = np.empty(len(ids), row_dtype)
            rows["ids"], rows["label"] = ids, labels
            for row in rows:
                writer.write(row.tobytes())
        writer.close()


def finish(directory: Path, plan: Manifest) -> None:
    """Write the manifest and rename the folder, by one process, once all shards are there.

    Args:
      directory: as `begin` got it.
      plan: likewise.

    Raises:
      ValueError: there are no tokens.
    """
    temporary = _temporary(directory, plan)
    records = len(_source(temporary, plan))
    if not records:
        raise ValueError("there are no tokens to write")
    write_json(temporary / MANIFEST, {**plan, "records": records})
    temporary.rename(directory)


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """The plan given to `begin`, and `records`, the number of images; None if there are no finished tokens.

    Raises:
      UserError: they are of a version that had one entry a crop.
    """
    file = Path(directory) / MANIFEST
    manifest = json.loads(file.read_text()) if file.exists() else None
    if manifest is not None and "shards" not in manifest:
        raise UserError(f"{directory} holds tokens of an older version; delete it and run the extract job again.")
    return manifest


def token_records(directory: str | Path) -> grain.MapDataset:
    """Random access, by index and `len`, to the images' {"ids": integers (n, T, K), "label": int32 ()}, in their order.

    Raises:
      UserError: the directory holds no finished tokens (of this version).
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise UserError(f"{directory} holds no tokens; run the extract job first.")
    row_dtype = _row_dtype(manifest)

    def decode(record: bytes) -> dict[str, np.ndarray]:
        row = np.frombuffer(record, row_dtype)[0]
        return {"ids": row["ids"], "label": row["label"]}

    return grain.MapDataset.source(_source(Path(directory), manifest)).map(decode)


def token_batches(
    directory: str | Path, *, batch_size: int, seed: int, repeat: bool, reader: Reader = ALL
) -> grain.IterDataset:
    """Batches {"ids": int32 (B, T, K), "label": int32 (B,)} of a reader's share, numpy arrays.

    `batch_size`, `seed`, `repeat`, `reader` and the iterators' state are as in `image_batches`; raises as `token_records`
    does. Where it repeats, an epoch has every image once, by one of its crops, drawn anew from (seed, epoch, place in the
    epoch); one pass has every crop, those of an image side by side, and fewer images a batch, but no less than one, of
    however many crops.
    """
    records = token_records(directory)
    if repeat:
        drawn = records.seed(seed).shuffle().repeat(None).random_map(_draw)
        return process_batches(drawn, batch_size, drop_remainder=True, reader=reader)
    images = max(1, batch_size // len(records[0]["ids"]))
    return process_batches(records, images, drop_remainder=False, reader=reader).map(_side_by_side)


def shard_name(k: int, shards: int) -> str:
    """The file of shard k."""
    return f"tokens-{k:05d}-of-{shards:05d}.array_record"


def _draw(record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"ids": record["ids"][rng.integers(len(record["ids"]))].astype(np.int32), "label": record["label"]}


def _side_by_side(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids = batch["ids"]  # (B, n, T, K)
    return {"ids": ids.reshape(-1, *ids.shape[2:]).astype(np.int32), "label": np.repeat(batch["label"], ids.shape[1])}


def _source(directory: Path, plan: Manifest) -> Any:
    files = [str(directory / shard_name(k, plan["shards"])) for k in range(plan["shards"])]
    return grain.sources.ArrayRecordDataSource(files)


def _temporary(directory: Path, plan: Manifest) -> Path:
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    return directory.with_name(f"{directory.name}.{digest[:12]}.tmp")


def _row_dtype(plan: Manifest) -> np.dtype:
    """How an image lies in its entry: little-endian, the label first, no padding; ids in as few bytes as their sizes need."""
    ids = "<u2" if max(plan["vocabulary"]) <= 1 << 16 else "<u4"
    shape = (plan["crops"]["number"], plan["positions"], len(plan["vocabulary"]))
    return np.dtype([("label", "<i4"), ("ids", ids, shape)])
