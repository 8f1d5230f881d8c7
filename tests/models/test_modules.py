import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.layers import Linear, RMSNorm
from models.modules import describe, parameter_count, stack, unstack


class Pair(nnx.Module):
    def __init__(self, width, *, rngs):
        init = nnx.initializers.normal(0.1)
        self.first = Linear(width, 3, ("embed", "mlp"), bias=True, init=init, dtype=jnp.float32, rngs=rngs)
        self.norm = RMSNorm(3)

    def __call__(self, x):
        return self.norm(self.first(x))


class Stacked(nnx.Module):
    def __init__(self, *, rngs):
        self.blocks = stack(lambda rngs: Pair(4, rngs=rngs), 3, rngs)


class Listed(nnx.Module):
    def __init__(self, *, rngs):
        self.blocks = nnx.List([Pair(4, rngs=rngs) for _ in range(3)])


def paths(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_describing_allocates_nothing():
    description = describe(lambda rngs: Pair(10**12, rngs=rngs))  # 12 terabytes
    assert description.shapes["first"]["kernel"].shape == (10**12, 3)
    assert parameter_count(description.shapes) == 3 * 10**12 + 3 + 3


def test_every_dimension_has_a_logical_axis():
    description = describe(lambda rngs: Stacked(rngs=rngs))
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    names = paths(jax.tree.map(lambda leaf: ",".join(map(str, leaf)), description.axes, is_leaf=is_names))
    shapes = paths(description.shapes)
    assert names.keys() == shapes.keys()
    assert all(len(names[path].split(",")) == shapes[path].ndim for path in shapes)
    assert names["['blocks']['first']['kernel']"] == "layers,embed,mlp"
    assert names["['blocks']['first']['bias']"] == "layers,mlp"
    assert names["['blocks']['norm']['scale']"] == "layers,norm"


def test_parameters_are_as_described_and_merge_into_the_same_function():
    description = describe(lambda rngs: Pair(4, rngs=rngs))
    params = description.init(jax.random.key(0))
    shape_of = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(shape_of, params) == jax.tree.map(shape_of, description.shapes)
    x = jax.random.normal(jax.random.key(0), (2, 4))
    hidden = x @ np.asarray(params["first"]["kernel"])
    expected = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(jax.jit(lambda params: description.merge(params)(x))(params), expected, atol=1e-5)


def test_initial_parameters_depend_on_the_key():
    description = describe(lambda rngs: Pair(4, rngs=rngs))
    kernel = lambda seed: description.init(jax.random.key(seed))["first"]["kernel"]  # noqa: E731
    np.testing.assert_array_equal(kernel(0), kernel(0))
    assert (kernel(0) != kernel(1)).all()


def test_unstacked_layers_have_the_names_and_values_of_a_list_of_modules():
    stacked = describe(lambda rngs: Stacked(rngs=rngs)).init(jax.random.key(0))["blocks"]
    listed = describe(lambda rngs: Listed(rngs=rngs))
    params = {"blocks": unstack(stacked, 3)}
    assert {path: leaf.shape for path, leaf in paths(params).items()} == {
        path: leaf.shape for path, leaf in paths(listed.shapes).items()
    }
    merged = listed.merge(params)
    for layer in range(3):
        np.testing.assert_array_equal(merged.blocks[layer].first.kernel[...], stacked["first"]["kernel"][layer])


def test_stacked_layers_start_independently():
    kernels = np.asarray(describe(lambda rngs: Stacked(rngs=rngs)).init(jax.random.key(0))["blocks"]["first"]["kernel"])
    assert (kernels[0] != kernels[1]).all()
    assert (kernels[1] != kernels[2]).all()
    assert 0.05 < kernels.std() < 0.2
