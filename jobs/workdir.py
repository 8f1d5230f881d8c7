"""A run's folder: its config, and the stages that its checkpoints hold."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from generator.generator import describe_generator
from input_pipeline.sources import open_source
from models import distributed, sharding
from models.errors import UserError
from models.files import folder, write_json, write_text
from models.modules import Description, Params
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.checkpoints import Checkpoints
from training.step import checksum

SECTIONS = ("sampler", "sample", "evaluation", "mesh")  # that are free
NEWEST = -1  # among the steps of the checkpoints

# What may differ between two commands on one workdir; all else decides what its files hold.
FREE = (*SECTIONS, "experiment", "stages", "checkpoints", "data.path", "data.corrupt_limit", "extract.shard_size",
        "extract.batch_size")  # fmt: skip
FREE_IN_TRAINING = ("steps", "learning_rate", "schedule", "warmup_steps", "final_share", "clip_norm",
                    "log_every", "save_every", "keep_last", "keep_every", "keep_best")  # fmt: skip


def prepare(config: ConfigDict, workdir: Path, *, write: bool) -> ConfigDict:
    """Fill in what the dataset decides, and check the config against what the workdir was made with.

    Args:
      config: completed in place.
      workdir: of the run.
      write: write W/config.json, and a copy beside remote checkpoints, which jobs that train do.

    Raises:
      UserError: the workdir cannot be written, or was made with another config (the field is named); or the checkpoints
        are elsewhere, or where nobody can read or write.
    """
    exists = (workdir / "config.json").exists()
    if not exists and not write:
        raise UserError(f"{workdir} holds no run (no config.json); train one first, or name another --workdir.")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written ({error.strerror}); choose another --workdir.") from None
    if not config.data.classes:
        config.data.classes = open_source(config.data, "train").classes
    # A config that does not build is refused before anything is written.
    describe_generator(config, token_spec(describe_tokenizer(config)), scan_layers=True)
    if exists:  # a run that ended before its first result binds nobody
        check = check_same if has_checkpoints(config, workdir) else check_moved
        check(read_config(workdir), config, workdir)
    if write and jax.process_index() == 0:
        write_json(workdir / "config.json", config.to_dict())
        if config.checkpoints:
            with reached(config.checkpoints) as there:
                there.mkdir(parents=True, exist_ok=True)
                (there / "config.json").write_text((workdir / "config.json").read_text())
    return config


def checkpoints_of(stage: str, config: ConfigDict, workdir: Path) -> epath.Path:
    """The folder of a stage's checkpoints: below the workdir, or, in the same place, below `config.checkpoints`."""
    return folder(config.checkpoints or workdir) / stage / "checkpoints"


def has_checkpoints(config: ConfigDict, workdir: Path) -> bool:
    """Whether there are any, of any stage, also unfinished ones."""
    with reached(config.checkpoints or workdir) as there:
        return any(there.glob("*/checkpoints/*"))


def bring_config(checkpoints: str, workdir: Path) -> None:
    """Let a new workdir begin with the config.json that lies beside remote checkpoints, if there is one."""
    if checkpoints and not (workdir / "config.json").exists():
        with reached(checkpoints) as there:
            text = (there / "config.json").read_text() if (there / "config.json").exists() else ""
        if text:
            write_text(workdir / "config.json", text)


@contextmanager
def reached(checkpoints: epath.PathLike) -> Iterator[epath.Path]:
    """The folder that checkpoints lie in; why it cannot be read or written is said in one line."""
    there = folder(checkpoints)
    try:
        yield there
    except Exception as error:  # whatever gcsfs, google.auth and the connection raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{checkpoints} cannot be read or written ({reason}); check its name and, of a bucket, your rights "
                        "(gcloud auth application-default login).") from None  # fmt: skip


def check_moved(before: ConfigDict, now: ConfigDict, workdir: Path) -> None:
    """Refuse to begin anew where checkpoints are looked for, while others lie where they were."""
    if before.checkpoints != now.checkpoints and has_checkpoints(before, workdir):
        there, here = before.checkpoints or workdir, now.checkpoints or workdir
        raise UserError(f"the checkpoints of {workdir} lie in {there}, and {here} holds none; give "
                        f"--config.checkpoints={there}, or copy its folders to {here}.")  # fmt: skip


def read_config(workdir: Path) -> ConfigDict:
    """W/config.json; what an older version said in other words is said in today's."""
    try:
        fields = tuples(json.loads((workdir / "config.json").read_text()))
        qk_norm = fields["generator"].get("qk_norm")
        fields["generator"]["qk_norm"] = {True: "rms", False: "none", None: "none"}.get(qk_norm, qk_norm)
        fields.setdefault("checkpoints", "")
        return ConfigDict(fields)
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run (no config.json); train one first, or name another --workdir."
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{workdir / 'config.json'} is damaged ({error}).") from None


def complete(config: ConfigDict, defaults: ConfigDict) -> ConfigDict:
    """Fields of today that an older workdir lacks, by default; of the free sections, those no longer known left out."""
    for section in SECTIONS:
        for name, value in config[section].items():
            if name in defaults[section]:
                defaults[section][name] = value
        config[section] = defaults[section]
    config.experiment = config.get("experiment", defaults.experiment)
    config.forecast = config.get("forecast", defaults.forecast)
    config.extract = ConfigDict({**defaults.extract, **config.extract})
    for stage, fields in defaults.training.items():
        config.training[stage] = ConfigDict({**fields, **config.training.get(stage, {})})
    return config


def tuples(value: Any) -> Any:
    """JSON knows lists only; configs hold tuples."""
    if isinstance(value, dict):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def flat(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested mapping."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping | ConfigDict)
        fields |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return fields


def check_same(before: ConfigDict, now: ConfigDict, workdir: Path) -> None:
    """Refuse, by name, a field that would not fit what the workdir holds; an older one knows fewer fields."""
    old, new = flat(before), flat(now)
    for name in sorted(old):
        parts = name.split(".")
        if any(name == free or name.startswith(f"{free}.") for free in FREE):
            continue
        if parts[0] == "training" and parts[-1] in FREE_IN_TRAINING:
            continue
        if old.get(name) != new.get(name):
            raise UserError(f"{workdir} was made with {name}={old.get(name)!r}, not {new.get(name)!r}; keep it, or use "
                            "another --workdir.")  # fmt: skip


def load(
    stage: str, description: Description[Any], config: ConfigDict, workdir: Path, step: int = NEWEST
) -> tuple[Params, int]:
    """The averaged parameters of a trained stage on every device of this process, and the step that they are of.

    Where several processes act together, all of them call this, and get the same.

    Raises:
      UserError: there is no sound checkpoint (of that step), or it is of another config, or other processes read another.
    """
    directory = checkpoints_of(stage, config, workdir)
    if not directory.is_dir():
        raise UserError(f"{config.checkpoints or workdir} holds no trained {stage}; run --job=train first.")
    place = sharding.replicated(sharding.local_mesh())
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), description.shapes)
    checkpoints = Checkpoints(directory, read_only=True)
    found = checkpoints.restore({"ema": shapes}, only=None if step == NEWEST else step)
    checkpoints.close()
    # Each passed over what it could not read.
    if not agreed(lambda: found and [found[0], checksum(found[1]["ema"])]):
        raise UserError(f"the hosts read different checkpoints of {directory}; see in their warnings which cannot read the "
                        "newest, and why.")  # fmt: skip
    if found is None:
        wanted = "no sound checkpoint" if step == NEWEST else f"no sound checkpoint of step {step}"
        raise UserError(f"{directory} holds {wanted}; run --job=train first, or choose another step.")
    return found[1]["ema"], found[0]


def agreed(value: Callable[[], Any]) -> bool:
    """Whether all processes, each of which must ask, have the same value, JSON; one alone need not know it."""
    if jax.process_count() == 1:
        return True
    digests = distributed.from_all(np.frombuffer(hashlib.sha256(json.dumps(value()).encode()).digest(), np.uint32))
    return bool((digests == digests[0]).all())
