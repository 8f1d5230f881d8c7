"""A folder of reference outputs: the models and arrays that its manifest names, and what the files hold of them.

    manifest.json       {"models": {name: {"config": ..., "files": [...] where the weights are stored, "num_params": ...}},
                         "arrays": {npz file: {name: {"shape": ..., "dtype": ..., "tolerance": "exact" or {"atol", "rtol"}}}}}
    *.npz               the arrays
    rule_weights.json   {"models": {name: {"seed_name", "tensors", "sha256_of_filled_tensors"}}}

Models without files are made by their rule (`interop/rule_weights.py`).
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UserError
from models.files import Arrays

FORMAT = 1  # of the manifest
RULES = "rule_weights.json"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the manifest says of an array.

    Attributes:
      name: in its file.
      file: the npz.
      label: its name in the results: with the file's stem where several files have the name.
      shape: of the array.
      dtype: its name.
      atol: tolerance, |got - want| <= atol + rtol |want|; both 0 where it must be exact.
      rtol: see `atol`.
      description: for people.
    """

    name: str
    file: str
    label: str
    shape: tuple[int, ...]
    dtype: str
    atol: float
    rtol: float
    description: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the manifest.

    Attributes:
      name: of the model.
      config: of the original's constructor.
      files: with the same weights in several formats; none where a rule makes them.
      shapes: of the stored tensors, where the manifest lists them.
      parameters: their number; None where it is not told.
      rule: how the weights are made.
    """

    name: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]] | None
    parameters: int | None
    rule: Mapping[str, Any] | None

    def field(self, name: str) -> Any:
        """A field of its config.

        Raises:
          UserError: there is no such field.
        """
        if name not in self.config:
            raise UserError(f"the manifest does not tell {name} of the model {self.name!r}.")
        return self.config[name]


class Missing(UserError):
    """An array that others are computed from is in no file."""


class Reference:
    """A folder of reference outputs.

    Raises:
      UserError: a file is not there or damaged, or the manifest is none.
    """

    def __init__(self, folder: Path):
        manifest = read_json(folder / "manifest.json")
        if manifest.get("format", FORMAT) != FORMAT:
            raise UserError(f"{folder / 'manifest.json'} is of format {manifest['format']}; format {FORMAT} is read.")
        if not manifest.get("models") or not manifest.get("arrays"):
            raise UserError(f"{folder / 'manifest.json'} names no models or no arrays; there is nothing to verify.")
        try:
            rules = read_json(folder / RULES).get("models", {}) if (folder / RULES).exists() else {}
            self.models = {name: read_entry(folder, name, model, rules) for name, model in manifest["models"].items()}
            self.wanted = list(read_wanted(manifest["arrays"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'manifest.json'} is of another form than it should be ({error!r}).") from None
        self.files = {name: Arrays(folder / name) for name in manifest["arrays"]}

    def holds(self, name: str, file: str) -> bool:
        """Whether a file holds an array."""
        return name in self.files[file].names

    def array(self, name: str, near: str) -> np.ndarray:
        """An array of the file `near` or, where that lacks it, of another one.

        Raises:
          Missing: no file holds it.
        """
        for file in (near, *self.files):
            if self.holds(name, file):
                return self.files[file][name]
        raise Missing(f"{self.files[near].path} lacks {name}, which other arrays of it are computed from.")

    def has(self, name: str) -> bool:
        """Whether some file holds an array."""
        return any(self.holds(name, file) for file in self.files)

    def unnamed(self) -> list[Wanted]:
        """Arrays that the files hold and the manifest does not name."""
        known = {(wanted.file, wanted.name) for wanted in self.wanted}
        nothing = {"shape": (), "dtype": "", "tolerance": "exact"}
        names = {file: [name for name in self.files[file].names if (file, name) not in known] for file in self.files}
        return list(read_wanted({file: dict.fromkeys(names[file], nothing) for file in names}))

    def model_of(self, name: str) -> str | None:
        """The model whose name an array's begins with, the longest of them."""
        return max((model for model in self.models if name.startswith(f"{model}/")), key=len, default=None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a user brought.

    Raises:
      UserError: it is not there, or none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a folder of reference outputs.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object but a {type(content).__name__}.")
    return content


def read_entry(folder: Path, name: str, model: Mapping[str, Any], rules: Mapping[str, Any]) -> Entry:
    """A model of the manifest."""
    if not model.get("files") and name not in rules:
        raise UserError(f"{folder}: the model {name!r} has neither files in manifest.json nor a rule in {RULES}.")
    files = tuple(folder / file for file in model.get("files", ()))
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is not there, and the manifest names it for the model {name!r}.")
    return Entry(
        name=name,
        config=dict(model["config"]),
        files=files,
        shapes={key: tuple(shape) for key, shape in model["keys"].items()} if "keys" in model else None,
        parameters=model.get("num_params"),
        rule=None if model.get("files") else rules[name],
    )


def read_wanted(files: Mapping[str, Mapping[str, Any]]) -> Iterable[Wanted]:
    """What the manifest says of all arrays, in its order."""
    often = Counter(name for arrays in files.values() for name in arrays)
    for file, arrays in files.items():
        for name, said in arrays.items():
            tolerance = {"atol": 0, "rtol": 0} if said["tolerance"] == "exact" else said["tolerance"]
            label = name if often[name] == 1 else f"{Path(file).stem}/{name}"
            yield Wanted(
                name=name, file=file, label=label, shape=tuple(said["shape"]), dtype=said["dtype"],
                atol=float(tolerance["atol"]), rtol=float(tolerance["rtol"]), description=said.get("description", ""),
            )  # fmt: skip
