"""Extracted tokens on disk: one ArrayRecord entry an example, and a manifest that says what they are."""

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

MANIFEST, RECORDS = "manifest.json", "tokens.array_record"


def write_tokens(
    directory: str | Path, batches: Iterable[Mapping[str, np.ndarray]], manifest: Mapping[str, Any]
) -> None:
    """Write tokens to a temporary directory and rename it at the end: an interrupted run leaves no half result.

    Args:
      directory: where they are to lie; must not exist.
      batches: {"ids": integers (B, T, K), "label": integers (B,)}, T and K the same in every batch.
      manifest: what the reader must know, JSON; its `vocabulary`, the sizes (V_1, ..., V_K), says how wide an id is.

    Raises:
      UserError: the directory exists.
      ValueError: an id is outside its vocabulary, or there are no tokens.
    """
    directory = Path(directory)
    if directory.exists():
        raise UserError(f"{directory} exists already; remove it to extract again.")
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    sizes = np.array(manifest["vocabulary"])
    id_dtype = "uint16" if sizes.max() <= 1 << 16 else "uint32"
    # Groups of one: random access reads one record and not its neighbours. Ids are too random to be compressed.
    writer = ArrayRecordWriter(str(temporary / RECORDS), "group_size:1,uncompressed")
    layout: dict[str, Any] | None = None
    count = 0
    for batch in batches:
        ids, labels = np.asarray(batch["ids"]), np.asarray(batch["label"])
        if ids.min() < 0 or (ids >= sizes).any():
            raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit the vocabulary {sizes.tolist()}")
        layout = layout or {"positions": ids.shape[1], "sub_codes": ids.shape[2], "dtype": id_dtype}
        rows = np.empty(len(ids), _row_dtype(layout))
        rows["ids"], rows["label"] = ids, labels
        for row in rows:
            writer.write(row.tobytes())
        count += len(rows)
    writer.close()
    if layout is None:
        raise ValueError("there are no tokens to write")
    (temporary / MANIFEST).write_text(json.dumps({**manifest, "records": count, **layout}, indent=2))
    temporary.rename(directory)


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """The manifest given to `write_tokens`, and records, positions, sub_codes, dtype; None if that never finished."""
    file = Path(directory) / MANIFEST
    return json.loads(file.read_text()) if file.exists() else None


def token_records(directory: str | Path) -> grain.MapDataset:
    """Random access, by index and `len`, to the examples {"ids": int32 (T, K), "label": int32 ()}.

    Raises:
      UserError: the directory holds no finished tokens.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise UserError(f"{directory} holds no tokens; run the extract job first.")
    row_dtype = _row_dtype(manifest)

    def decode(record: bytes) -> dict[str, np.ndarray]:
        row = np.frombuffer(record, row_dtype)[0]
        return {"ids": row["ids"].astype(np.int32), "label": row["label"]}

    source = grain.sources.ArrayRecordDataSource(str(Path(directory) / RECORDS))
    return grain.MapDataset.source(source).map(decode)


def token_batches(
    directory: str | Path, *, batch_size: int, seed: int, repeat: bool, reader: tuple[int, int] = ALL
) -> grain.IterDataset:
    """Batches {"ids": int32 (B, T, K), "label": int32 (B,)} of a reader's share, numpy arrays.

    `batch_size`, `seed`, `repeat`, `reader` and the iterators' state are as in `image_batches`; raises as `token_records` does.
    """
    records = token_records(directory)
    if repeat:
        records = records.seed(seed).shuffle().repeat(None)
    return process_batches(records, batch_size, drop_remainder=repeat, reader=reader)


def _row_dtype(manifest: Mapping[str, Any]) -> np.dtype:
    """How one example lies in its record: little-endian, the label first, no padding."""
    ids = np.dtype(manifest["dtype"]).newbyteorder("<")
    return np.dtype([("label", "<i4"), ("ids", ids, (manifest["positions"], manifest["sub_codes"]))])
