"""The weights of a workdir as files of a source's own programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from generator.generator import describe_generator
from interop.sources import Kind
from interop.state_dicts import SAFETENSORS, TORCH, write_state
from jobs.import_ import known_source
from jobs.workdir import checkpoints_of, flat, load
from models.errors import UserError
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.checkpoints import steps_on_disk

SUFFIXES = (*TORCH, SAFETENSORS)
AT_WILL = ("generator.drop_path",)  # of the fields that a file decides those that change no output
BY_DEFAULT = ("generator.kv_heads", "generator.mlp")  # of which 0 stands for the width that the shapes have


def run(config: ConfigDict, workdir: Path, *, source: str, files: Sequence[str]) -> None:
    """The newest averaged weights of those of `config.stages` that the workdir holds, a file each.

    Args:
      config: of the workdir.
      workdir: imported, or trained with a config that is one of the source's models.
      source: a name of `interop.sources.SOURCES`.
      files: to write, in the order of the stages; they end in one of `SUFFIXES`.

    Raises:
      UserError: there is not one file a stage, or one is there already; the source has no such model.
    """
    origin = known_source(source)
    stages = [stage for stage in config.stages if steps_on_disk(checkpoints_of(stage, config, workdir))]
    if not stages or len(files) != len(stages):
        raise UserError(f"{workdir} holds {' and '.join(stages) or 'no weights'}, and --output names {len(files)} files; "
                        "give one for each, in this order (--config.stages=\"('generator',)\" leaves one out).")  # fmt: skip
    paths = [Path(file) for file in files]
    for path in paths:
        if path.exists() or path.suffix not in SUFFIXES:
            raise UserError(f"{path} {'is there already' if path.exists() else 'ends in no format'}; name a new file "
                            f"that ends in {', '.join(SUFFIXES)}.")  # fmt: skip
    for stage, path in zip(stages, paths):
        tensors = converted(origin.kinds[stage], config, stage, workdir)
        write_state(path, tensors, origin.container)
        print(f"{path}: the {stage}, {len(tensors)} tensors")


def converted(kind: Kind, config: ConfigDict, stage: str, workdir: Path) -> dict[str, Any]:
    """The source's tensors of a stage."""
    own = flat(config) | {"tokenizer.groups": config.tokenizer.groups or min(32, config.tokenizer.channels // 4)}
    refuse_other(kind.fixed, own, stage)
    tokenizer = describe_tokenizer(config)
    description: Any = tokenizer
    if stage == "generator":
        description = describe_generator(config, token_spec(tokenizer), scan_layers=True)
    params, _ = load(stage, description, config, workdir)
    tensors = kind.state(jax.device_get(params), config)
    refuse_other(kind.config(tensors, own), own, stage)
    return tensors


def refuse_other(theirs: Mapping[str, Any], own: Mapping[str, Any], stage: str) -> None:
    """Refuse a model of which the file would say something else than its config."""
    for field, value in theirs.items():
        default = field in BY_DEFAULT and own.get(field) == 0
        if field.startswith(f"{stage}.") and field not in AT_WILL and not default and own.get(field) != value:
            raise UserError(f"the {stage} has {field}={own.get(field)!r}, and all models of this source have {value!r}; "
                            "it cannot be written as one.")  # fmt: skip
