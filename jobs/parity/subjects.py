"""The models of a reference folder as ours: their weights, their configs, and what all of them have in common."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from interop.names import State
from interop.rule_weights import rule_state
from interop.sources import SOURCES
from interop.state_dicts import read_state
from jobs.parity.reference import RULES, Entry, Reference
from models.modules import Params, parameter_count


class Loaded(NamedTuple):
    """A model, read.

    Attributes:
      config: ours.
      params: ours, layers stacked.
      parameters: their number.
      problems: what its files and the manifest disagree on.
    """

    config: ConfigDict
    params: Params
    parameters: int
    problems: list[str]


class NoRule(Exception):
    """An array whose name tells nothing that is known how to compute."""


def remembered(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method, or a function of an object, whose results the object keeps by the other arguments."""

    @functools.wraps(method)
    def found(self: Any, *arguments: Any) -> Any:
        kept = vars(self).setdefault("kept", {})
        key = (method.__name__, *arguments)
        if key not in kept:
            kept[key] = method(self, *arguments)
        return kept[key]

    return found


class Subject:
    """A model of a reference folder, beside the arrays of one of its files.

    Args:
      reference: the folder.
      entry: the model.
      file: npz whose arrays are looked at first.
      base: config with the defaults of all fields.
    """

    source: str  # a name of SOURCES
    kind: str  # of its kinds

    def __init__(self, reference: Reference, entry: Entry, file: str, base: ConfigDict):
        self.reference, self.entry, self.file, self.base = reference, entry, file, base

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"{SOURCES[self.source].title} {self.kind} {self.entry.name}"

    def overrides(self) -> dict[str, Any]:
        """Config fields that the manifest tells and the weights do not show."""
        raise NotImplementedError

    def given(self, name: str) -> np.ndarray:
        """An input of this model."""
        return self.reference.array(f"{self.entry.name}/{name}", self.file)

    def has(self, name: str) -> bool:
        """Whether there is such an array of this model."""
        return self.reference.has(f"{self.entry.name}/{name}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one of its arrays."""
        return self.given(name).shape

    @functools.cached_property
    def loaded(self) -> Loaded:
        """Weights and config."""
        source, entry = SOURCES[self.source], self.entry
        if entry.rule is None:
            states = {file.name: read_state(file, source.containers) for file in entry.files}
            problems: list[str] = []
        else:
            states, problems = by_rule(entry)
        state = {name: tensor for one in reversed(states.values()) for name, tensor in one.items()}
        config = source.configure(self.base.copy_and_resolve_references(), {self.kind: state}, self.overrides())
        kind = source.kinds[self.kind]
        problems += disagreements(entry, states, {buffer.theirs for buffer in kind.buffers(config)})
        params = jax.tree.map(jnp.asarray, kind.params(state, config))
        parameters = self.count(params)
        if entry.parameters is not None and entry.parameters != parameters:
            problems.append(f"it has {parameters:,} parameters, and {entry.parameters:,} in the manifest")
        return Loaded(config, params, parameters, problems)

    def count(self, params: Params) -> int:
        """Number of its parameters."""
        return parameter_count(params)

    def param_count(self, name: re.Match[str]) -> np.ndarray:
        """The same as an array of a reference."""
        return np.array([self.loaded.parameters])

    def release(self) -> None:
        """Forget the weights, and the gradients, which are as large, until they are needed again."""
        vars(self).pop("loaded", None)
        vars(self).get("kept", {}).pop(("first_steps",), None)


def by_rule(entry: Entry) -> tuple[dict[str, State], list[str]]:
    """The tensors of a model that a rule makes, and whether their hash is another than it should be."""
    rule = entry.rule or {}
    state, digest = rule_state(str(rule.get("seed_name")), rule.get("tensors", ()))
    expected = rule.get("sha256_of_filled_tensors", digest)
    problem = f"the sha256 of its weights is {digest}, and {expected} in {RULES}"
    return {RULES: state}, [problem] if digest != expected else []


def disagreements(entry: Entry, states: Mapping[str, State], buffers: set[str]) -> list[str]:
    """What a model's files say otherwise than the first of them, and than the manifest.

    Args:
      entry: the model.
      states: its tensors by file.
      buffers: names of tensors that a file may lack.
    """
    found = []
    listed = {} if entry.shapes is None else entry.shapes
    (first, whole), *others = states.items()
    for file, state in others:
        names = (whole.keys() | state.keys()) - buffers | (whole.keys() & state.keys())
        if differing := sorted(name for name in names if not same(whole.get(name), state.get(name))):
            found.append(f"{file} differs from {first} in {len(differing)} tensors, as {differing[0]}")
    for file, state in states.items():
        shapes = {name: state[name].shape if name in state else None for name in listed}
        required = [name for name in listed if name in state or name not in buffers]
        if other := [name for name in required if shapes[name] != listed[name]]:
            found.append(f"{file} has {other[0]} in the shape {shapes[other[0]]}, and the manifest {listed[other[0]]}")
    return found


def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Equal bit for bit."""
    if one is None or other is None:
        return False
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def channels_first(x: Any) -> Any:
    """(..., h, w, C) as the originals lay it out: (..., C, h, w)."""
    return x.transpose(*range(x.ndim - 3), -1, -3, -2)


def channels_last(x: Any) -> Any:
    """(..., C, h, w) as ours."""
    return x.transpose(*range(x.ndim - 3), -2, -1, -3)


def renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """{our field: value} of those of the original's fields that it has a value for."""
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}
