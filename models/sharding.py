"""The one table from logical axes to mesh axes; no other file names a mesh axis.

Every array's dimensions have logical names: parameters carry them as metadata, activations say them in `constrain`. By
default a batch is split over all devices, and parameters over the same devices, to be gathered where they are used (fully
sharded data parallelism). `tensor` splits heads, hidden widths and vocabularies, `sequence` the slots of the sequence. What
does not divide stays whole.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from models.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor", "sequence")
RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "sequence": ("sequence",),
    "embed": ("fsdp",),
    "channels_out": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    **dict.fromkeys(("channels_in", "codes", "layers", "norm", "slots", None), ()),
}
GATHERED = "fsdp"  # the mesh axis over which parameters lie at rest alone

LogicalAxes = Sequence[str | None]


def make_mesh(config: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or these, from a size for each of `MESH_AXES`; -1 takes what is left.

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
    return Mesh(placed_on(devices, sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def placed_on(devices: Sequence[Any], sizes: list[int]) -> np.ndarray:
    """Devices in an array of these sizes that follows the links between them.

    Of several TPU slices, whose links to each other are slow, the outermost of the batch's axes that they divide goes across.

    Raises:
      UserError: they divide none.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:  # whose physical axes may be split: 64 of 16 x 16 chips are 16 x 4
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    axis = next((i for i in range(len(RULES["batch"])) if sizes[i] % slices == 0), None)
    if axis is None:
        raise UserError(f"the batch's axes {sizes[0]} x {sizes[1]} do not split over {slices} slices; mesh.data or mesh.fsdp "
                        f"must be a multiple of {slices}.")  # fmt: skip
    across = [slices if i == axis else 1 for i in range(len(sizes))]
    within = [size // n for size, n in zip(sizes, across)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def local_mesh() -> Mesh:
    """This process's own devices: for work that processes share out among themselves."""
    return make_mesh({**dict.fromkeys(MESH_AXES, 1), "data": -1}, jax.local_devices())


def partition_spec(shape: Sequence[int], axes: LogicalAxes, mesh_shape: Mapping[str, int]) -> PartitionSpec:
    """Where an array of this shape and these logical axes lies; a dimension that does not divide stays whole.

    Raises:
      ValueError: an axis is not in the table, or two dimensions ask for one mesh axis.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis not in RULES:
            raise ValueError(f"logical axis {axis!r} is not in models/sharding.py")
        names = RULES[axis]
        if used & set(names):
            raise ValueError(f"logical axes {tuple(axes)} ask twice for the mesh axis {min(used & set(names))!r}")
        used.update(names)
        entries.append(names if names and size % math.prod(mesh_shape[name] for name in names) == 0 else None)
    while entries and entries[-1] is None:  # P("data") and P("data", None) mean the same but compare unequal
        entries.pop()
    return PartitionSpec(*entries)


def shardings(shapes: Any, axes: Any, mesh: Mesh) -> Any:
    """A tree of `NamedSharding` for a tree of shapes and a like tree of logical axes."""
    place = lambda leaf, names: NamedSharding(mesh, partition_spec(leaf.shape, names, dict(mesh.shape)))  # noqa: E731
    return jax.tree.map(place, shapes, axes, is_leaf=lambda leaf: hasattr(leaf, "shape"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over the devices of the batch's axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place_whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process has, on every device of all processes."""

    def place(leaf: Any) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, replicated(mesh), lambda index: value[index])

    return jax.tree.map(place, tree)


def constrain(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Tell the compiler where an activation lies; without a mesh of several devices in context it is left alone."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, axes, dict(mesh.shape)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(parameter: jax.Array, axes: LogicalAxes) -> jax.Array:
    """A parameter as products use it: whole over `fsdp`; its gradient is brought to where the parameter lies."""
    return constrain(parameter, in_use(axes))


def in_use(axes: LogicalAxes) -> LogicalAxes:
    """The axes over which a parameter is still split where it is used."""
    return tuple(None if GATHERED in RULES[axis] else axis for axis in axes)


gathered.defvjp(
    lambda parameter, axes: (gathered(parameter, axes), None),
    # Asked for the last form at once, jax 0.10's partitioner gives wrong gradients on some meshes (fsdp 2, tensor 4).
    lambda axes, _, gradient: (constrain(constrain(gradient, in_use(axes)), axes),),
)


def device() -> Any:
    """What the program is traced for, with its `platform` and `device_kind`: of the mesh in context, or this process's own."""
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def pieces(shape: Sequence[int], axes: LogicalAxes) -> int:
    """Into how many pieces the mesh in context splits an array of this shape and these logical axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    place = NamedSharding(mesh, partition_spec(shape, axes, dict(mesh.shape)))
    return math.prod(shape) // math.prod(place.shard_shape(tuple(shape)))


def splits(axis: str) -> bool:
    """Whether the mesh in context splits dimensions of this logical axis, where they divide."""
    mesh = jax.sharding.get_abstract_mesh().shape
    return any(mesh.get(name, 1) > 1 for name in RULES[axis])


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split over the mesh."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


class Reader(NamedTuple):
    """Which rows of every batch a process reads.

    Attributes:
      rows: the parts of a batch that it holds, ascending.
      of: so many equal parts.
    """

    rows: tuple[int, ...]
    of: int

    @property
    def readers(self) -> int:
        """How many readers there are: each holds as many parts as another."""
        return self.of // len(self.rows)


@functools.cache
def reader_of(mesh: Mesh) -> Reader:
    """This process as a reader of batches that are split over the mesh.

    A host's rows need not be consecutive: a mesh follows the links between chips. Processes that hold the same examples, as
    those do that share them along other axes than the batch's, are one reader.

    Raises:
      UserError: two processes share some of their examples, and not all.
    """
    parts = batch_parts(mesh)
    held: dict[int, set[int]] = {}
    device: Any
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((parts,)).items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(parts)))
    readers = {tuple(sorted(rows)) for rows in held.values()}
    if sum(map(len, readers)) != parts or len({len(rows) for rows in readers}) > 1:
        raise UserError(f"the mesh {dict(mesh.shape)} splits the examples of a batch across hosts unevenly; choose sizes such "
                        "that each host holds whole rows of it.")  # fmt: skip
    return Reader(tuple(sorted(held[jax.process_index()])), parts)
