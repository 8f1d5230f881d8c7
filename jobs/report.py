"""Tell a run in one HTML file, from whatever its workdir holds so far."""

import importlib.metadata
import json
import platform
import runpy
import shlex
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from evaluation.report.evaluations import Evaluation
from evaluation.report.markup import as_number, counted, number, words
from evaluation.report.page import Run, Samples, write_report
from generator.generator import describe_generator
from jobs.workdir import flat
from models.modules import parameter_count
from models.tokens import TokenSpec
from tokenizer.tokenizer import describe_tokenizer, token_spec

ROOT = Path(__file__).parent.parent
STAGES = ("tokenizer", "generator")
SPEEDS = {  # job -> where its records say how many images, at once, a second, and of how many calls
    "sample": ("sample.count", "sample.batch_size", "images_per_second", "calls_per_image"),
    "evaluate": ("evaluation.samples", "evaluation.batch_size", "images_per_second_sampling", "model_calls_per_image"),
}
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run(config: ConfigDict, workdir: Path) -> None:
    """W/report.html."""
    path = workdir / "report.html"
    write_report(path, collect(config, workdir))
    print(path)


def collect(config: ConfigDict, workdir: Path) -> Run:
    """What there is to tell."""
    notes: list[str] = []
    folder = workdir / "eval"
    metrics = {stage: read_rows(workdir / stage / "metrics.jsonl", notes) for stage in STAGES}
    records = dict(read_records(folder, notes))
    judged = {name: record for name, record in records.items() if is_evaluation(record)}
    searched = {name: record for name, record in records.items() if is_search(record)}
    notes += [f"eval/{name}.json is no evaluation (settings and metrics) and no search (rows), and is left out."
              for name in records if name not in judged and name not in searched]  # fmt: skip
    found = [to_evaluation(name, record) for name, record in judged.items() if name not in searched]
    found.sort(key=lambda one: (one.step, (folder / f"{one.name}.json").stat().st_mtime, one.name))
    tokenizers = [one for one in found if one.name.startswith("tokenizer-")]
    evaluations = [one for one in found if one not in tokenizers]
    experiment, about, changed = read_experiment(config)
    spec = token_spec(describe_tokenizer(config))
    return Run(
        name=workdir.resolve().name,
        about=f"{experiment}: {about}" if experiment else "",
        experiment=experiment,
        facts=facts(config, workdir, experiment, len(changed), notes),
        stages=stages(config, spec, metrics),
        metrics=metrics,
        samples=newest_samples(workdir, config.data.classes, notes),
        reconstructions=picture(folder, "reconstructions", tokenizers, notes),
        neighbours=picture(folder, "nearest", evaluations, notes),
        evaluations=evaluations,
        tokenizers=tokenizers,
        searches=searches(searched),
        speeds=speeds(dict(read_records(workdir / "samples", notes)), evaluations),
        config=config.to_dict(),
        changed=changed,
        versions=versions([judged[one.name] for one in [*evaluations, *tokenizers][-1:]]),
        command=command(config, workdir, experiment, changed),
        notes=notes,
    )  # fmt: skip


def read_rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; damaged ones are noted, but for a last one that is still being written."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    rows = [row for row in map(parsed, lines) if row is not None and as_number(row.get("step")) is not None]
    if len(rows) < len(lines):
        notes.append(f"{path.parent.name}/{path.name}: {counted(len(lines) - len(rows), 'line')} cannot be read; "
                     "the curves are drawn without.")  # fmt: skip
    return rows


def read_records(directory: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of each JSON object in a folder; what cannot be read is noted."""
    for path in sorted(directory.glob("*.json")):
        record = parsed(path.read_text(encoding="utf-8", errors="replace"))
        if record is not None:
            yield path.stem, record
        else:
            notes.append(f"{directory.name}/{path.name} cannot be read and is left out.")


def parsed(text: str) -> dict[str, Any] | None:
    """A JSON object, or None for whatever else a text is."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a record says what was measured and what came out."""
    return all(isinstance(record.get(name), dict) for name in ("settings", "metrics"))


def is_search(record: Mapping[str, Any]) -> bool:
    """Whether a record is of a search over the sampler's settings."""
    return isinstance(record.get("rows"), list)


def to_evaluation(name: str, record: Mapping[str, Any]) -> Evaluation:
    """What the evaluate job wrote; values that are no numbers count as missing."""
    missing, warnings = record.get("missing"), record.get("warnings")
    return Evaluation(
        name=name, settings=flat(record["settings"]),
        metrics={metric: as_number(value) for metric, value in record["metrics"].items()},
        missing={metric: str(why) for metric, why in missing.items()} if isinstance(missing, dict) else {},
        warnings=[str(text) for text in warnings] if isinstance(warnings, list) else [],
    )  # fmt: skip


def searches(records: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Step 1,500, and Step 1,500, grid 2, for search-1500 and search-1500-2 -> its record, by step."""
    told: dict[tuple[int, int, str], str] = {}
    for name in records:
        step, _, grid = name.removeprefix("search-").partition("-")
        if step.isdecimal() and (grid.isdecimal() or not grid):
            told[int(step), int(grid or 1), name] = f"Step {int(step):,}" + (f", grid {grid}" if grid else "")
        else:
            told[0, 0, name] = name
    found = {title: records[name] for (_, _, name), title in sorted(told.items())}
    return {title: {**one, "settings": flat(settings) if isinstance(settings := one.get("settings"), dict) else {}}
            for title, one in found.items()}  # fmt: skip


def picture(folder: Path, kind: str, evaluations: Sequence[Evaluation], notes: list[str]) -> Path | None:
    """The picture that the newest evaluation drew, where there is one; a damaged one is noted."""
    path = folder / f"{kind}-{evaluations[-1].name}.png" if evaluations else folder
    if not path.is_file():
        return None
    try:
        with Image.open(path) as found:
            found.load()
    except OSError:
        notes.append(f"{folder.name}/{path.name} cannot be read and is left out.")
        return None
    return path


def facts(config: ConfigDict, workdir: Path, experiment: str, changed: int, notes: list[str]) -> dict[str, str]:
    """What stands under the title."""
    data = config.data
    told = {"config": f"{counted(changed, 'field')} changed" if changed else "unchanged"} if experiment else {}
    path = f" of {data.path}" if data.path else ""
    told |= {"dataset": f"{data.name}{path}, {data.resolution} × {data.resolution}, {data.classes:,} classes"}
    if (seconds := workdir / "seconds.json").exists():
        try:
            minutes, rest = divmod(round(float(json.loads(seconds.read_text()))), 60)
        except (ValueError, TypeError):
            notes.append(f"{seconds.name} cannot be read and is left out.")
        else:
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
        losses = [loss for row in metrics[stage] if (loss := as_number(row.get("heldout/loss"))) is not None]
        done = f"{steps:,} of {config.training[stage].steps:,}"
        rows.append([stage, about, f"{parameter_count(params):,}", done, number(losses[-1]) if losses else "–"])
    return rows


def newest_samples(workdir: Path, classes: int, notes: list[str]) -> Samples | None:
    """The newest npz, and the settings of the record beside it."""
    for path in sorted((workdir / "samples").glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            images, labels = stored_array(path, "arr_0"), np.asarray(stored_array(path, "arr_1")).astype(np.int32)
            if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
                raise ValueError("other arrays than images and their labels")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            notes.append(f"samples/{path.name} cannot be read and is left out.")
            continue
        record = path.with_suffix(".json")
        settings = (parsed(record.read_text()) or {}).get("settings") if record.exists() else None
        told = flat(settings) if isinstance(settings, dict) else {}
        return Samples(images, labels, f"samples/{path.name}", told, classes)
    return None


def stored_array(path: Path, name: str) -> np.ndarray:
    """An array of an npz as it lies there: only what is looked at is read, of what may be 10 GB.

    Raises:
      ValueError: the file is shorter than the array, or compressed, as `models.files.write_npz` writes none.
      OSError, KeyError, EOFError, BadZipFile: it is no npz with this array.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path} is compressed")
        with archive.open(member) as file:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            head = file.tell()
    with path.open("rb") as file:  # the zip's own head before the array's, whose last two fields are lengths
        file.seek(member.header_offset)
        *_, name_length, extra_length = struct.unpack("<4s5H3L2H", file.read(30))
    start = member.header_offset + 30 + name_length + extra_length + head
    return np.memmap(path, dtype, "r", offset=start, shape=shape, order="F" if fortran else "C")


def speeds(sampled: Mapping[str, Mapping[str, Any]], evaluations: Sequence[Evaluation]) -> list[list[str]]:
    """Rows of the table of sampling speeds, its head first.

    Args:
      sampled: records of the sample job.
      evaluations: of samples.
    """
    head = ["Sampler", "Job", "Step", "Images", "Batch size", "Images/s", "Model calls an image"]
    rows: list[tuple[float, list[str]]] = []
    found = [
        ("sample", flat(one["settings"]), one) for one in sampled.values() if isinstance(one.get("settings"), dict)
    ]
    found += [("evaluate", one.settings, one.metrics) for one in evaluations]
    for job, settings, values in found:
        count, size, speed, calls = SPEEDS[job]
        known = [as_number(settings.get(name)) for name in ("step", count, size)]
        measured = [as_number(values.get(name)) for name in (speed, calls)]
        if measured == [None, None]:
            continue
        texts = [*map(words, known), "–" if measured[0] is None else f"{measured[0]:,.1f}", words(measured[1])]
        rows.append((known[0] or 0, [words(settings.get("sampler.name")), job, *texts]))
    return [head, *(texts for _, texts in sorted(rows, key=lambda row: row[0]))]


def versions(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of the last record, where it says, else of what writes the report."""
    for record in records[-1:]:
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
    decided = ("experiment", "data.classes", "data.path", "checkpoints")  # by the command, the dataset and the machine
    changed = {name: theirs.get(name) for name, value in flat(config).items()
               if name not in decided and theirs.get(name) != value}  # fmt: skip
    return config.experiment, (names["__doc__"] or "").strip().partition("\n")[0], changed


def command(config: ConfigDict, workdir: Path, experiment: str, changed: Iterable[str]) -> str:
    """What runs the whole of it again, in a workdir of its own: from the experiment's file, or from the config that lies in
    the workdir."""
    again, values = shlex.quote(f"{workdir}-again"), flat(config)
    elsewhere = [f"--config.checkpoints={again}"] if values["checkpoints"] else []  # which are not to be gone on with
    if not experiment:
        source = shlex.quote(str(workdir / "config.json"))
        return f"mkdir -p {again} && cp {source} {again}/\n{' '.join(['python main.py', f'--workdir={again}', *elsewhere])}"
    names = [*(["data.path"] if values["data.path"] else []), *changed]
    options = [*elsewhere, *(shlex.quote(f"--config.{name}={values[name]}") for name in names)]
    return " \\\n    ".join([f"python main.py --config={shlex.quote(experiment)} --workdir={again}", *options])
