import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from models.errors import UserError
from models.sharding import batch_sharding, constrain, make_mesh, partition_spec, shardings

MESH = {"data": 2, "fsdp": 4, "tensor": 2, "sequence": 3}
ONE = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((16, 10), ("batch", None), P(("data", "fsdp"))),
        ((12, 10), ("batch", None), P()),  # 8 devices do not divide 12
        ((8, 7), ("embed", "mlp"), P("fsdp")),
        ((6, 8), ("mlp", "embed"), P("tensor", "fsdp")),
        ((6, 7), ("embed", "mlp"), P()),
        ((16, 9, 6, 5), ("batch", "sequence", "heads", None), P(("data", "fsdp"), "sequence", "tensor")),
        ((3, 3, 5, 8), (None, None, "channels_in", "channels_out"), P(None, None, None, "fsdp")),
        ((2, 8, 6), ("layers", "embed", "heads"), P(None, "fsdp", "tensor")),
        ((), (), P()),
    ],
)
def test_partition_specs(shape, axes, expected):
    normal = lambda spec: tuple((entry,) if isinstance(entry, str) else entry for entry in spec)  # noqa: E731
    assert normal(partition_spec(shape, axes, MESH)) == normal(expected)


def test_an_unknown_logical_axis_raises():
    with pytest.raises(ValueError, match="'embedding'"):
        partition_spec((8,), ("embedding",), MESH)


@pytest.mark.parametrize("axes", [("embed", "embed"), ("batch", "embed"), ("heads", "mlp")])
def test_two_dimensions_that_ask_for_one_mesh_axis_raise(axes):
    with pytest.raises(ValueError, match=r"ask twice for the mesh axis '(fsdp|tensor)'"):
        partition_spec((6, 8), axes, MESH)  # also where one of them would not divide


def test_every_dimension_needs_a_name():
    with pytest.raises(ValueError, match="zip"):
        partition_spec((8, 8), ("embed",), MESH)


@pytest.mark.parametrize("config", [{**ONE, "data": -1}, {**ONE, "sequence": -1}])
def test_a_mesh_takes_what_is_left(config):
    mesh = make_mesh(config)
    assert mesh.size == jax.device_count()
    assert mesh.axis_names == ("data", "fsdp", "tensor", "sequence")


@pytest.mark.parametrize(
    "config",
    [{"data": 10_007}, {"data": -1, "fsdp": 10_007}, {"data": -1, "fsdp": -1}, {"tensor": 0}],
)
def test_a_mesh_that_does_not_fit_is_the_users_mistake(config):
    with pytest.raises(UserError, match=r"data -?\d+ x fsdp -?\d+ x tensor \d x sequence 1 does not fit"):
        make_mesh({**ONE, **config})


def test_a_tree_of_shapes_gets_a_tree_of_shardings():
    mesh = make_mesh({**ONE, "fsdp": -1})
    shape = jax.ShapeDtypeStruct((mesh.size * 2, 3), jnp.float32)
    placed = shardings(
        {"a": {"kernel": shape}, "b": shape}, {"a": {"kernel": ("embed", "mlp")}, "b": (None, "mlp")}, mesh
    )
    assert placed["a"]["kernel"].spec == P("fsdp", "tensor")
    assert placed["b"].spec == P(None, "tensor")
    assert batch_sharding(mesh).spec == P(("data", "fsdp"))


def test_activations_are_left_alone_without_a_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, ("batch", None)) is x
