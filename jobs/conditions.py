"""What samples are asked for: classes, by id or name, or captions, by their features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from generator.conditioning import Captions, left_padded
from input_pipeline.class_names import class_id
from interop.download import sha256
from models.errors import UserError
from models.files import Arrays

IMAGENET = 1000  # classes


def asked_conditions(config: ConfigDict) -> Any:
    """`sample.count` conditions, what is asked for in turn: labels int32 (N,), or `Captions` of N rows.

    Raises:
      UserError: a class that the model does not have; captions that are not there or do not fit.
    """
    sample, condition = config.sample, condition_of(config)
    if condition["name"] == "class":
        return asked_classes(sample.classes, config.data.classes, sample.count)
    return asked_captions(sample.features, condition["entries"], condition["features"], sample.count)


def condition_of(config: ConfigDict) -> ConfigDict:
    """What the config's generator is asked for; older configs know classes only."""
    return config.generator.get("condition", ConfigDict({"name": "class"}))


def need_classes(config: ConfigDict, job: str) -> None:
    """Refuse a generator of captions where a job knows classes only."""
    if condition_of(config)["name"] != "class":
        raise UserError(
            f"--job={job} is for generators of classes; one of captions can be imported, verified and sampled."
        )


def asked_classes(asked: Sequence[int | str], classes: int, count: int) -> Int[np.ndarray, "N"]:
    """`count` labels, the asked classes in turn; (-1,) stands for all.

    Raises:
      UserError: a class that the model does not have, or names for a model of other classes than ImageNet's.
    """
    if tuple(asked) == (-1,):
        asked = range(classes)
    labels = []
    for label in asked:
        if isinstance(label, str) and classes != IMAGENET:
            raise UserError(
                f"class {label!r} has to be given by its number; names are known for ImageNet's 1000 classes."
            )
        labels.append(class_id(label) if isinstance(label, str) else label)
        if not 0 <= labels[-1] < classes:
            raise UserError(f"class {label} is out of range; the model knows 0 to {classes - 1}.")
    return np.resize(np.asarray(labels, np.int32), count)


def asked_captions(path: str, entries: int, width: int, count: int) -> Captions:
    """`count` captions, those of an npz in turn, padded on the left as the model wants them.

    Args:
      path: npz with `features` (N, S, F) of a text encoder and `mask` (N, S), 1 for a caption's own tokens, which come first.
      entries: tokens that the model takes; longer captions are cut.
      width: F.
      count: of captions wanted.

    Raises:
      UserError: the file is missing or does not hold that.
    """
    if not path:
        raise UserError("this generator draws captions; give their features with --features=FILE.npz.")
    file = Arrays(path)
    for name in ("features", "mask"):
        if name not in file.names:
            raise UserError(f"{path} lacks the array {name!r}; it needs `features` (N, S, {width}) and `mask` (N, S).")
    features, mask = file["features"], file["mask"]
    if features.ndim != 3 or features.shape[2] != width or mask.shape != features.shape[:2]:
        raise UserError(
            f"{path}: features {features.shape} and mask {mask.shape}; the model needs (N, S, {width}) and (N, S)."
        )
    if (np.diff(mask.astype(int), axis=1) > 0).any() or not mask[:, 0].all():
        raise UserError(f"{path}: a caption's own tokens must come first, and be one or more.")
    short = max(entries - features.shape[1], 0)
    features = np.pad(features[:, :entries].astype(np.float32), ((0, 0), (0, short), (0, 0)))
    mask = np.pad(mask[:, :entries].astype(np.int32), ((0, 0), (0, short)))
    turn = np.resize(np.arange(len(features)), count)
    return left_padded(features[turn], mask[turn])


def fingerprints(sample: ConfigDict) -> dict[str, str]:
    """Hashes of the files that decide what is sampled."""
    named = {name: sample[name] for name in ("features", "edit", "mask") if sample[name]}
    return {name: sha256(path) for name, path in named.items()}
