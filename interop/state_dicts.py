"""The state dict of a public checkpoint: its tensors by name, wherever in the file they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interop.pickles import guarded
from interop.safetensors_files import read_safetensors, write_safetensors
from interop.torch_files import LEGACY, ZIP, read_torch
from interop.torch_writer import write_torch
from models.errors import UserError

State = dict[str, np.ndarray]

PREFIXES = ("module.", "_orig_mod.")  # what DDP and torch.compile put before every name
TORCH, SAFETENSORS = (".pt", ".pth"), ".safetensors"  # suffixes of what is written
LISTED = 8  # of the names at a file's top level, those that an error tells


def read_state(path: str | Path, containers: Sequence[tuple[str, ...]]) -> State:
    """The first of a file's state dicts that `containers` names: paths of keys, () being the file itself.

    The content decides whether a file is torch's or safetensors', not the suffix; one of safetensors has no containers.
    A state dict is a dict of arrays by name, not empty. What DDP and torch.compile put before every name is taken away.

    Raises UserError where the file is missing, damaged or neither, and where none of the paths leads to a state dict.
    """
    start = guarded(path, "a readable file", lambda file, _: file.read(64))
    if start.startswith((ZIP, LEGACY)):
        return _plainly_named(_found(read_torch(path), containers, path))
    if start[8:9] == b"{":
        return _plainly_named(_found(read_safetensors(path), [()], path))
    raise UserError(f"{path} is neither a file of torch nor one of safetensors; it may be cut short: get it again.")


def write_state(path: str | Path, tensors: Mapping[str, np.ndarray], container: tuple[str, ...]) -> None:
    """Write tensors as the suffix of `path` says: flat to .safetensors, inside the keys of `container` to .pt and .pth.

    Raises UserError for another suffix.
    """
    suffix = Path(path).suffix
    if suffix == SAFETENSORS:
        write_safetensors(path, tensors)
    elif suffix in TORCH:
        value: Any = dict(tensors)
        for key in reversed(container):
            value = {key: value}
        write_torch(path, value)
    else:
        raise UserError(f"{path} ends in no format that is written; name it *.safetensors, *.pt or *.pth.")


def _found(content: Any, containers: Sequence[tuple[str, ...]], path: str | Path) -> State:
    for container in containers:
        node = content
        for key in container:
            node = node.get(key) if isinstance(node, dict) else None
        if _is_state(node):
            return dict(node)
    places = " or ".join(".".join(map(repr, container)) or "its top level" for container in containers)
    raise UserError(f"{path} has no state dict at {places}, but {_described(content)}; give a model's checkpoint.")


def _is_state(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and bool(node)
        and all(isinstance(key, str) and isinstance(value, np.ndarray) for key, value in node.items())
    )


def _described(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    kinds = [f"{str(key)[:60]!r} ({type(value).__name__})" for key, value in content.items()]
    more = f" and {len(kinds) - LISTED} more" if len(kinds) > LISTED else ""
    return f"at its top level {', '.join(kinds[:LISTED])}{more}" if kinds else "nothing at all"


def _plainly_named(state: State) -> State:
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state
