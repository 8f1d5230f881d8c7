"""Tell a run in one HTML file, from whatever its workdir holds so far."""

import importlib.metadata
import json
import platform
import runpy
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evaluation.report.markup import number
from evaluation.report.page import Run, write_report
from evaluation.report.tables import Evaluation, words
from jobs.workdir import describe_generator, describe_tokenizer, flat, token_spec
from models.modules import parameter_count
from models.tokens import TokenSpec
from training.metrics import read_metrics

ROOT = Path(__file__).parent.parent
STAGES = ("tokenizer", "generator")
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run(config: ConfigDict, workdir: Path) -> None:
    """W/report.html."""
    path = workdir / "report.html"
    write_report(path, collect(config, workdir))
    print(path)


def collect(config: ConfigDict, workdir: Path) -> Run:
    """What there is to tell."""
    notes: list[str] = []
    metrics = {stage: read_metrics(workdir / stage / "metrics.jsonl") for stage in STAGES}
    records = dict(read_records(workdir / "eval", notes))
    evaluations = [to_evaluation(name, record) for name, record in records.items() if not name.startswith("search-")]
    evaluations.sort(key=lambda one: (one.step, (workdir / "eval" / f"{one.name}.json").stat().st_mtime, one.name))
    tokenizers = [one for one in evaluations if one.name.startswith("tokenizer-")]
    experiment, about, changed = read_experiment(config)
    spec = token_spec(describe_tokenizer(config))
    return Run(
        name=workdir.resolve().name,
        about=f"{experiment}: {about}" if experiment else "",
        experiment=experiment,
        facts=facts(config, workdir, experiment, len(changed)),
        stages=stages(config, spec, metrics),
        metrics=metrics,
        samples=newest_samples(workdir, notes),
        reconstructions=existing(workdir / "eval" / "reconstructions.png"),
        neighbours=existing(workdir / "eval" / "nearest.png"),
        evaluations=[one for one in evaluations if one not in tokenizers],
        tokenizers=tokenizers,
        searches={search_name(name): record for name, record in records.items() if name.startswith("search-")},
        speeds=speeds(workdir, notes),
        config=config.to_dict(),
        changed=changed,
        versions=versions(records),
        command=command(config, workdir, experiment, changed),
        notes=notes,
    )  # fmt: skip


def search_name(stem: str) -> str:
    """Step 1,500 for search-1500."""
    step = stem.removeprefix("search-")
    return f"Step {int(step):,}" if step.isdecimal() else step


def existing(path: Path) -> Path | None:
    """A file, where there is one."""
    return path if path.is_file() else None


def read_records(directory: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of each JSON object in a folder; what cannot be read is noted."""
    for path in sorted(directory.glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            record = None
        if isinstance(record, dict):
            yield path.stem, record
        else:
            notes.append(f"{directory.name}/{path.name} cannot be read and is left out.")


def to_evaluation(name: str, record: Mapping[str, Any]) -> Evaluation:
    """What the evaluate job wrote; values that are no numbers count as missing."""
    values = {
        metric: float(value) if isinstance(value, int | float) else None
        for metric, value in record.get("metrics", {}).items()
    }
    return Evaluation(
        name=name, settings=flat(record.get("settings", {})), metrics=values,
        missing={metric: str(reason) for metric, reason in (record.get("missing") or {}).items()},
        warnings=[str(text) for text in record.get("warnings") or ()],
    )  # fmt: skip


def facts(config: ConfigDict, workdir: Path, experiment: str, changed: int) -> dict[str, str]:
    """What stands under the title."""
    data = config.data
    told = {"config": f"as in the file but for {changed} fields" if changed else "as in the file"} if experiment else {}
    path = f" of {data.path}" if data.path else ""
    told |= {"dataset": f"{data.name}{path}, {data.resolution} × {data.resolution}, {data.classes:,} classes"}
    if (seconds := existing(workdir / "seconds.json")) is not None:
        minutes, rest = divmod(round(float(json.loads(seconds.read_text()))), 60)
        hours, minutes = divmod(minutes, 60)
        told["took"] = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    return told | {"written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}


def stages(config: ConfigDict, spec: TokenSpec, metrics: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Rows of the table of stages, its head first."""
    tokens = f"{spec.positions} tokens of {' × '.join(f'{size:,}' for size in spec.sizes)} codes"
    generator = config.generator
    shapes = {
        "tokenizer": (describe_tokenizer(config).shapes, f"{config.tokenizer.name}, {tokens}"),
        "generator": (describe_generator(config, spec, scan_layers=True).shapes,
                      f"{generator.name}, {generator.depth} layers of width {generator.width}"),
    }  # fmt: skip
    rows = [["Stage", "Model", "Parameters", "Steps", "Held-out loss"]]
    for stage, (params, about) in shapes.items():
        steps = max((row["step"] for row in metrics[stage]), default=0)
        losses = [row["heldout/loss"] for row in metrics[stage] if "heldout/loss" in row]
        done = f"{steps:,} of {config.training[stage].steps:,}"
        rows.append([stage, about, f"{parameter_count(params):,}", done, number(float(losses[-1])) if losses else "–"])
    return rows


def newest_samples(workdir: Path, notes: list[str]) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Images, labels and the name of the newest npz."""
    for path in sorted((workdir / "samples").glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            with np.load(path) as arrays:
                return arrays["arr_0"], arrays["arr_1"].astype(np.int32), f"samples/{path.name}"
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            notes.append(f"samples/{path.name} cannot be read and is left out.")
    return None


def speeds(workdir: Path, notes: list[str]) -> list[list[str]]:
    """Rows of the table of sampling speeds, its head first: what the sample and evaluate jobs measured."""
    head = ["Sampler", "Step", "Images", "Batch size", "Images/s", "Model calls an image"]
    rows: list[tuple[int, list[str]]] = []
    for folder, job, speed, count in (
        ("samples", "sample", "images_per_second", "count"),
        ("eval", "evaluation", "images_per_second_sampling", "samples"),
    ):
        calls = "calls_per_image" if job == "sample" else "model_calls_per_image"
        for _, record in read_records(workdir / folder, notes if job == "sample" else []):
            measured, settings = record.get("metrics", record), flat(record.get("settings", {}))
            if not isinstance(measured.get(speed), int | float):
                continue
            counts = [settings.get(name) for name in ("step", f"{job}.{count}", f"{job}.batch_size")]
            texts = [words(settings.get("sampler.name")), *(f"{n:,}" if isinstance(n, int) else "–" for n in counts)]
            texts += [
                f"{measured[speed]:,.1f}",
                number(float(measured[calls])) if measured.get(calls) is not None else "–",
            ]
            rows.append((counts[0] or 0, texts))
    return [head, *(texts for _, texts in sorted(rows, key=lambda row: row[0]))]


def versions(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of the newest evaluation where it says, else of what writes the report."""
    for record in reversed(list(records.values())):
        if isinstance(found := record.get("versions"), Mapping):
            return {name: words(version) for name, version in flat(found).items()}
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def read_experiment(config: ConfigDict) -> tuple[str, str, dict[str, Any]]:
    """The file that the config is of, the first line of its docstring, and "a.b" -> what it says instead of the config.

    A file that is not there, or no longer makes a config, is not named.
    """
    path, _, argument = config.experiment.partition(":")
    try:
        names = runpy.run_path(str(ROOT / path))
        theirs = flat(names["get_config"](argument) if argument else names["get_config"]())
    except Exception:  # whatever a user's file raises, the rest of the report is there to be read
        return "", "", {}
    decided = ("experiment", "data.classes", "data.path")  # by the command, the dataset and the machine
    changed = {name: theirs.get(name) for name, value in flat(config).items()
               if name not in decided and theirs.get(name) != value}  # fmt: skip
    return config.experiment, (names["__doc__"] or "").strip().partition("\n")[0], changed


def command(config: ConfigDict, workdir: Path, experiment: str, changed: Iterable[str]) -> str:
    """What runs the whole of it again, in a workdir of its own: from the experiment's file, or from the config that lies in
    the workdir."""
    again, values = shlex.quote(f"{workdir}-again"), flat(config)
    if not experiment:
        source = shlex.quote(str(workdir / "config.json"))
        return f"mkdir -p {again} && cp {source} {again}/\npython main.py --workdir={again}"
    names = [*(["data.path"] if values["data.path"] else []), *changed]
    options = [shlex.quote(f"--config.{name}={values[name]}") for name in names]
    return " \\\n    ".join([f"python main.py --config={experiment} --workdir={again}", *options])
