"""Flax NNX modules as descriptions: built once, split once, merged inside what is traced.

Everything that is jitted, scanned, sharded, saved or imported is a plain nested dict of arrays with stable names; a module
is only looked at through `Description.merge(params)`, which costs nothing under a trace. Each parameter carries its
logical axes (`models/sharding.py`) as metadata.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

Params = dict[Any, Any]  # names, or numbers in lists of modules
M = TypeVar("M", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Description(Generic[M]):
    """A module without its arrays.

    Attributes:
      build: makes the module from random numbers.
      graph: its structure.
      shapes: nested dict of `jax.ShapeDtypeStruct`, like its parameters.
      axes: nested dict of logical axis names, like its parameters.
    """

    build: Callable[[nnx.Rngs], M]
    graph: Any
    shapes: Params
    axes: Params

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        return nnx.to_pure_dict(nnx.split(self.build(nnx.Rngs(key)))[1])

    def merge(self, params: Params) -> M:
        """The module with these parameters."""
        return nnx.merge(self.graph, params)


def describe(build: Callable[[nnx.Rngs], M]) -> Description[M]:
    """Find a module's structure, shapes and logical axes without allocating anything."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    axes = jax.tree.map(lambda leaf: leaf.get_metadata()["axes"], state, is_leaf=is_variable)
    return Description(build, graph, nnx.to_pure_dict(state), nnx.to_pure_dict(axes))


def is_variable(leaf: Any) -> bool:
    """Whether a node of a state is a parameter with its metadata."""
    return isinstance(leaf, nnx.Variable)


def stack(build: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """`count` independent copies of a module in one, every parameter with a leading axis `layers`, for `lax.scan`."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    state = jax.vmap(lambda key: nnx.split(build(nnx.Rngs(key)))[1])(jax.random.split(rngs.params(), count))
    for variable in jax.tree.leaves(state, is_leaf=is_variable):
        variable.set_metadata(axes=("layers", *variable.get_metadata()["axes"]))
    return nnx.merge(graph, state)


def unstack(stacked: Params, count: int) -> Params:
    """The parameters of a `stack`ed module as {0: ..., 1: ...}, the names that a list of the modules has."""
    return {layer: jax.tree.map(lambda leaf: leaf[layer], stacked) for layer in range(count)}  # noqa: B023


def parameter_count(params: Params) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
