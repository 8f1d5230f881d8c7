"""What an evaluation measured, with every setting that moves its numbers: W/eval/<name>-<step>.json."""

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from evaluation.feature_metrics import PARAMETERS
from evaluation.features import ROWS
from evaluation.references import Reference
from evaluation.shards import at_once
from models.files import write_json

# Of the config's evaluation section: what changes no number, and what stands in the record by its hash.
NOT_MEASURED = ("name", "step", "follow", "search")
HASHED = ("reference", "inception", "lpips_vgg", "lpips_alex")
PACKAGES = ("tessera", "jax", "jaxlib", "flax", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class Record:
    """One evaluation.

    Attributes:
      settings: JSON; two evaluations of equal settings give equal numbers.
      metrics: name -> number.
      missing: name of a metric -> why it could not be computed.
      warnings: what makes a number doubtful.
    """

    settings: dict[str, Any]
    metrics: dict[str, Any]
    missing: dict[str, str]
    warnings: list[str]

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Record":
        """A record as its file holds it."""
        return cls(**{field.name: found[field.name] for field in dataclasses.fields(cls)})


def settings(
    config: ConfigDict, *, step: int, reference: Reference, weights: dict[str, str], images: dict[str, Any]
) -> dict[str, Any]:
    """All that decides the numbers of an evaluation, as JSON has it.

    Args:
      config: of the run.
      step: of the generator's checkpoint.
      reference: what samples are compared with.
      weights: network -> hash of its weights.
      images: of the dataset that take part -> their number and hash.
    """
    evaluation = {
        name: value for name, value in config.evaluation.to_dict().items() if name not in (*NOT_MEASURED, *HASHED)
    }
    found = {
        "step": step,
        "seed": config.seed,
        "sampler": config.sampler.to_dict(),
        "guidance": "unconditional + scale * (conditional - unconditional); 1 is off",
        "ema_decay": {stage: config.training[stage].ema_decay for stage in ("tokenizer", "generator")},
        "evaluation": evaluation,
        "reference": {
            "name": reference.name, "sha256": reference.sha256, "count": reference.count,
            "statistics": "of the file" if reference.statistics else "of the images",
        },
        "metrics": {**PARAMETERS, "images_kept_one_by_one": ROWS},
        "data": {name: value for name, value in config.data.to_dict().items() if name != "path"},
        "images": images,
        "pixels": {
            "crop": "middle square", "resize": "box filter by halves, then bicubic, as ADM",
            "into the networks": "uint8", "inception resize": "bilinear to 299x299 as TensorFlow 1",
        },
        "weights": weights,
    }  # fmt: skip
    return json.loads(json.dumps(found))  # tuples become lists, as in the file


def find(workdir: Path, stem: str, settings: dict[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """A file of these settings and what it holds, or one that is free and None: no result is overwritten."""
    path, number = workdir / "eval" / f"{stem}.json", 1
    while path.exists():
        found = json.loads(path.read_text())
        if found["settings"] == settings:
            return path, found
        number += 1
        path = workdir / "eval" / f"{stem}-{number}.json"
    return path, None


def write(path: Path, record: Record) -> None:
    """Write a record, with the versions of what computed it."""
    versions = {name: version(name) for name in PACKAGES}
    versions |= {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    if jax.process_index() == 0:
        write_json(path, {**dataclasses.asdict(record), "versions": versions})


def version(package: str) -> str:
    """Of an installed package; Tessera itself may run from a folder that was never installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Wait until no other evaluation of this workdir runs, so that two of the same settings do not undo each other."""
    path = workdir / "eval" / ".lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        if jax.process_count() == 1:  # several processes are one evaluation
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another evaluation of {workdir} to end", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def work_folder(path: Path, settings: dict[str, Any]) -> Path:
    """Where an evaluation keeps its finished pieces until it has ended; other settings have another folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return path.with_suffix(f".unfinished-{digest[:12]}")


def remove(folder: Path) -> None:
    """Delete the pieces of an evaluation that has ended, on all processes."""
    at_once(f"remove {folder.name}")
    if jax.process_index() == 0:
        shutil.rmtree(folder)
