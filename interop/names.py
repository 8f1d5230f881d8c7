"""The names of a source's tensors beside ours, and how the numbers of one lie in the other.

A table of `Entry`s says for every tensor where it belongs. Each has a `Form`: the views of our arrays that have the shape of
theirs. Importing copies into these views, exporting reads them: so each is the other's inverse, bit for bit.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from models.errors import UserError
from models.modules import Params

State = dict[str, np.ndarray]  # their tensors by name
Leaves = dict[str, Any]  # ours by path, as "encoder/layers/0/conv1/kernel"

LISTED = 5  # names that an error tells


@dataclasses.dataclass(frozen=True)
class Form:
    """How numbers lie.

    Attributes:
      views: of one of our arrays, those that have the shape of theirs.
      joined: their one tensor is all the views one after the other along its first axis.
    """

    views: Callable[[np.ndarray], Sequence[np.ndarray]]
    joined: bool = False


AS_IS = Form(lambda x: [x])
LINEAR = Form(lambda x: [x.T])  # (inputs, outputs) here, (outputs, inputs) there
LINEARS = Form(lambda x: [half.T for half in np.split(x, 2, axis=1)])  # our one is two of theirs, beside each other
CONVOLUTION = Form(
    lambda x: [x.transpose(3, 2, 0, 1)]
)  # (height, width, inputs, outputs); outputs and inputs first there
CONVOLUTIONS = dataclasses.replace(CONVOLUTION, joined=True)  # several of ours are one of theirs, by their outputs
VECTORS = dataclasses.replace(AS_IS, joined=True)


def among(*ones: int) -> Form:
    """Theirs has further axes of length 1, at these places."""
    return Form(lambda x: [np.expand_dims(x, ones)])


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a name table.

    Attributes:
      ours: paths of our arrays, usually one.
      theirs: names of their tensors, usually one. One with "{layer}" stands for the tensors of all layers, which ours has along
        a first axis.
      form: how the numbers lie.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form = AS_IS

    def tensors(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
        """Names of theirs, and the views of our `arrays` that they fill, layer by layer."""
        found = [arrays[path] for path in self.ours]
        layered = "{layer}" in self.theirs[0]
        for layer in range(len(found[0]) if layered else 1):
            names = [name.replace("{layer}", str(layer)) for name in self.theirs]
            yield names, [view for x in found for view in self.form.views(x[layer] if layered else x)]


def entry(ours: str | tuple[str, ...], theirs: str | tuple[str, ...], form: Form = AS_IS) -> Entry:
    """An `Entry`; single names need no tuple."""
    return Entry((ours,) if isinstance(ours, str) else ours, (theirs,) if isinstance(theirs, str) else theirs, form)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A tensor of theirs that is no parameter.

    Attributes:
      theirs: its name.
      value: makes what theirs is when nothing has been trained, which an export writes; None: it is not written.
      checked: an imported one must be `value`; others are ignored.
    """

    theirs: str
    value: Callable[[], np.ndarray] | None = None
    checked: bool = False


def to_ours(state: State, entries: Sequence[Entry], shapes: Params, buffers: Sequence[Buffer] = ()) -> Params:
    """Our parameters, float32, of their tensors.

    Args:
      state: their tensors, of 16, 32 or 64 bits.
      entries: the table; covers our parameters.
      shapes: nested dict of what has a `shape`, like our parameters.
      buffers: what `state` may hold besides; no error where it does not.

    Raises:
      UserError: tensors are missing, left over, of another shape or no floats, or a buffer is another (names are told).
    """
    expected = leaves(shapes)
    uncovered(entries, expected)
    # Without memory, for the shapes alone.
    blank = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in expected.items()}
    check(state, dict(their_shapes(entries, blank)), {buffer.theirs: buffer for buffer in buffers})
    arrays = {path: np.empty(leaf.shape, np.float32) for path, leaf in expected.items()}
    for line in entries:
        for names, views in line.tensors(arrays):
            for view, tensor in zip(views, separated(line, [state[name] for name in names], views), strict=True):
                view[...] = tensor
    return nested(arrays)


def to_theirs(params: Params, entries: Sequence[Entry], buffers: Sequence[Buffer] = ()) -> State:
    """Their tensors, with the buffers that they need, of our parameters: views of them where the form allows it.

    Raises:
      UserError: the table does not cover the parameters (their paths are told).
    """
    arrays = {path: np.asarray(leaf) for path, leaf in leaves(params).items()}
    uncovered(entries, arrays)
    state: State = {}
    for line in entries:
        for names, views in line.tensors(arrays):
            state |= zip(names, [np.concatenate(views)] if line.form.joined else views, strict=True)
    return state | {buffer.theirs: buffer.value() for buffer in buffers if buffer.value is not None}


def their_shapes(entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each of their tensors."""
    for line in entries:
        for names, views in line.tensors(arrays):
            if line.form.joined:
                yield names[0], (sum(len(view) for view in views), *views[0].shape[1:])
            else:
                yield from zip(names, (view.shape for view in views), strict=True)


def separated(line: Entry, tensors: list[np.ndarray], views: list[np.ndarray]) -> list[np.ndarray]:
    """What fills each of the views."""
    if not line.form.joined:
        return tensors
    return np.split(tensors[0], np.cumsum([len(view) for view in views])[:-1])


def real(tensor: np.ndarray) -> bool:
    """Whether a tensor holds floating-point numbers."""
    return tensor.dtype.kind == "f" or tensor.dtype == ml_dtypes.bfloat16


def fits(buffer: Buffer, tensor: np.ndarray) -> bool:
    """Whether an imported buffer is what it should be."""
    return not buffer.checked or buffer.value is None or np.array_equal(tensor.astype(np.float32), buffer.value())


def check(state: State, wanted: Mapping[str, tuple[int, ...]], known: Mapping[str, Buffer]) -> None:
    """Refuse, by name, tensors that are not the `wanted` ones, nor `known` buffers as they should be."""
    found = {name: tensor for name, tensor in state.items() if name in wanted}
    shapes = [f"{name} ({x.shape}, not {wanted[name]})" for name, x in found.items() if x.shape != wanted[name]]
    others = {
        "lacks": [name for name in wanted if name not in state],
        "has too many": [name for name in state if name not in wanted and name not in known],
        "has in another shape": shapes,
        "has not as floats": [f"{name} ({x.dtype})" for name, x in found.items() if not real(x)],
        "has otherwise than the rest of it asks for": [x for x in state if x in known and not fits(known[x], state[x])],
    }
    said = [f"{verb} {listed(names)}" for verb, names in others.items() if names]
    if said:
        raise UserError(f"the model {'; it '.join(said)}; is it whole, and of the sizes that its other tensors show?")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def uncovered(entries: Iterable[Entry], arrays: Mapping[str, Any]) -> None:
    """Refuse a model of which the table knows other parameters."""
    covered = [path for line in entries for path in line.ours]
    if other := sorted(set(covered) ^ set(arrays)):
        raise UserError(f"the source has no model with just our parameters; it differs in {listed(other)}.")


def leaves(tree: Params, prefix: str = "") -> Leaves:
    """{"a/0/b": leaf} of a nested dict."""
    found: Leaves = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found |= leaves(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return found


def nested(arrays: Leaves) -> Params:
    """The nested dict of `leaves`; numbers are those of lists of modules."""
    tree: Params = {}
    for path, leaf in arrays.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
