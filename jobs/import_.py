"""Public checkpoints into a workdir that the other jobs take like one of a training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from interop.names import State
from interop.sources import SOURCES, Source
from interop.state_dicts import read_state
from jobs.workdir import checkpoints_of, prepare
from models.errors import UserError, unknown
from models.files import write_json
from models.modules import Params, parameter_count
from training.checkpoints import IMPORTED, Checkpoints, steps_on_disk

RECORD = "imported.json"  # in a stage's folder: where its weights are from


def run(config: ConfigDict, workdir: Path, *, source: str, files: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """W/config.json, W/tokenizer, W/generator.

    Args:
      config: of `configs.base`, or of the experiment that is named.
      workdir: holds nothing yet, or what the same command has begun.
      source: a name of `interop.sources.SOURCES`.
      files: of a tokenizer, a generator, or both.
      overrides: fields of the command line.

    Raises:
      UserError: a file is unreadable, of another source, not whole; two are of one kind, or of no pair; the workdir holds
        something else.
    """
    origin = known_source(source)
    paths, states = recognised(origin, files)
    origin.configure(config, states, overrides)
    params = {}
    for stage, path in paths.items():
        try:
            params[stage] = origin.kinds[stage].params(states.pop(stage), config)  # one copy in memory is enough
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    prepare(config, workdir, write=True)
    for stage, path in sorted(paths.items()):
        place = checkpoints_of(stage, config, workdir)
        keep(workdir / stage, place, params.pop(stage), {"source": source, "file": str(path)})
    print(f"{workdir}: {origin.title}'s {' and '.join(sorted(paths))}; --job=sample, --job=evaluate take it from here")


def known_source(name: str) -> Source:
    """The source of that name."""
    if not name:
        raise UserError(f"whose checkpoints are they? Say --source={' or --source='.join(SOURCES)}.")
    if name not in SOURCES:
        raise unknown("source", name, SOURCES)
    return SOURCES[name]


def recognised(origin: Source, files: Sequence[str]) -> tuple[dict[str, Path], dict[str, State]]:
    """What every file is, by its tensors' names: paths, and tensors, of "tokenizer", "generator" or both."""
    if not files:
        raise UserError(
            "there is nothing to import; give --input=FILE,FILE for tokenizer and generator, or one of them."
        )
    paths: dict[str, Path] = {}
    states: dict[str, State] = {}
    for path in map(Path, files):
        state = read_state(path, origin.containers)
        stage = origin.kind_of(state)
        if stage is None:
            raise UserError(f"{path} holds {whose(state)}, and none of {origin.title}.")
        if stage in paths:
            raise UserError(f"{paths[stage]} and {path} are both a {stage}; give one of each.")
        paths[stage], states[stage] = path, state
    return paths, states


def whose(state: State) -> str:
    """What tensors are, in words."""
    for name, other in SOURCES.items():
        if stage := other.kind_of(state):
            return f"a {stage} of {other.title} (--source={name})"
    return f"no model that is known here, but {min(state)!r} and the like"


def keep(folder: Path, place: epath.Path, params: Params, record: Mapping[str, Any]) -> None:
    """A stage's weights as the checkpoint that its training, if there is any, begins with.

    Raises:
      UserError: other weights are there.
    """
    there = steps_on_disk(place)
    checkpoints = Checkpoints(place, read_only=bool(there))
    weights = np.asarray(checkpoints.checksum(params), np.uint32).tobytes().hex()
    try:
        if there and (IMPORTED not in there or recorded(folder) != weights):
            raise UserError(f"{folder} holds other weights, which are not overwritten; choose another --workdir.")
        if there:
            print(f"imported already: {folder}")
            return
        count = parameter_count(params)
        write_json(folder / RECORD, {**record, "parameters": count, "weights": weights})
        checkpoints.save_imported(params)
        print(f"{folder}: {count:,} parameters of {record['file']}")
    finally:
        checkpoints.close()


def recorded(folder: Path) -> str | None:
    """The checksum, as `training.step.checksum` writes it, of the weights that a stage was imported with."""
    try:
        return json.loads((folder / RECORD).read_text())["weights"]
    except (OSError, ValueError, KeyError):
        return None
