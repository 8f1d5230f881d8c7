"""The one table from logical axes to mesh axes; no other file names a mesh axis.

Every array's dimensions have logical names: parameters carry them as metadata, activations say them in `constrain`. A
batch is split over all devices; a parameter over `fsdp`, along its `embed` or `channels_out` dimension, and gathered where
it is used (fully sharded data parallelism). What does not divide stays whole.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from models.errors import UserError

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "channels_out": ("fsdp",),
}
WHOLE = {"sequence", "vocab", "heads", "mlp", "norm", "layers", "codes", "channels_in", "slots", None}
MESH_AXES = ("data", "fsdp")

LogicalAxes = Sequence[str | None]


def make_mesh(config: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or these, from {"data": n, "fsdp": m}; -1 takes what is left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = devices or jax.devices()
    sizes = [config[axis] for axis in MESH_AXES]
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(devices) // max(known, 1)
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        asked = " x ".join(f"{axis} {config[axis]}" for axis in MESH_AXES)
        raise UserError(f"mesh {asked} does not fit {len(devices)} devices; the sizes must multiply to that.")
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def local_mesh() -> Mesh:
    """This process's own devices: for work that processes share out among themselves."""
    return make_mesh({"data": -1, "fsdp": 1}, jax.local_devices())


def partition_spec(shape: Sequence[int], axes: LogicalAxes, mesh_shape: Mapping[str, int]) -> PartitionSpec:
    """Where an array of this shape and these logical axes lies; a mesh axis is used once, a dimension must divide."""
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis not in RULES and axis not in WHOLE:
            raise ValueError(f"logical axis {axis!r} is not in models/sharding.py")
        names = tuple(name for name in RULES.get(axis or "", ()) if name not in used)
        if names and size % math.prod(mesh_shape[name] for name in names) == 0:
            used.update(names)
            entries.append(names)
        else:
            entries.append(None)
    while entries and entries[-1] is None:  # P("data") and P("data", None) mean the same but compare unequal
        entries.pop()
    return PartitionSpec(*entries)


def shardings(shapes: Any, axes: Any, mesh: Mesh) -> Any:
    """A tree of `NamedSharding` for a tree of shapes and a like tree of logical axes."""
    place = lambda leaf, names: NamedSharding(mesh, partition_spec(leaf.shape, names, dict(mesh.shape)))  # noqa: E731
    return jax.tree.map(place, shapes, axes, is_leaf=lambda leaf: hasattr(leaf, "shape"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over all devices."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Tell the compiler where an activation lies; without a mesh in context it is left alone."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, axes, dict(mesh.shape)))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split over the mesh."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


@functools.cache
def reader_of(mesh: Mesh) -> tuple[int, int]:
    """(index, count) of this process among the readers of a batch.

    Processes that hold the same examples, as those do that share them along other axes than the batch's, are one reader.
    Readers count in the order of the first example that they hold; each holds as many as another.

    Raises:
      UserError: two processes share some of their examples, and not all.
    """
    held: dict[int, set[int]] = {}
    device: Any
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((mesh.size,)).items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(mesh.size)))
    readers = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, readers)) != mesh.size or len({len(rows) for rows in readers}) > 1:
        raise UserError(f"the mesh {dict(mesh.shape)} splits the examples of a batch across hosts unevenly; choose sizes such "
                        "that each host holds whole rows of it.")  # fmt: skip
    return readers.index(tuple(sorted(held[jax.process_index()]))), len(readers)
