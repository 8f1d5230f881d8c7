import dataclasses

import ml_dtypes
import numpy as np
import pytest

from interop.names import (
    AS_IS,
    CONVOLUTION,
    CONVOLUTIONS,
    LINEAR,
    LINEARS,
    VECTORS,
    Buffer,
    among,
    entry,
    leaves,
    nested,
    to_ours,
    to_theirs,
)
from models.errors import UserError

RANDOM = np.random.default_rng(0)


@dataclasses.dataclass
class Shape:
    shape: tuple


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def imported(entries, state, shapes, buffers=()):
    return to_ours(state, entries, nested({path: Shape(shape) for path, shape in shapes.items()}), buffers)


def test_a_linear_layer_computes_the_same():
    weight, x = normal(3, 5), normal(5)
    ours = imported([entry("a/kernel", "a.weight", LINEAR)], {"a.weight": weight}, {"a/kernel": (5, 3)})
    np.testing.assert_allclose(x @ ours["a"]["kernel"], weight @ x, rtol=1e-6)


def test_two_linear_layers_are_one_with_the_first_on_the_left():
    first, second, x = normal(3, 5), normal(3, 5), normal(5)
    ours = imported(
        [entry("k", ("w1", "w3"), LINEARS)], {"w1": first, "w3": second}, {"k": (5, 6)}
    )  # fmt: skip
    np.testing.assert_allclose(x @ ours["k"], np.concatenate([first @ x, second @ x]), rtol=1e-5)


def test_a_convolution_keeps_each_weight_in_its_place():
    weight = normal(4, 2, 3, 5)
    ours = imported([entry("k", "w", CONVOLUTION)], {"w": weight}, {"k": (3, 5, 2, 4)})["k"]
    for (o, i, y, x), value in np.ndenumerate(weight):
        assert ours[y, x, i, o] == value


def test_one_convolution_is_query_key_and_value_in_this_order():
    weight, bias = normal(6, 2, 1, 1), normal(6)
    ours = imported(
        [entry(("q/kernel", "k/kernel", "v/kernel"), "qkv.weight", CONVOLUTIONS),
         entry(("q/bias", "k/bias", "v/bias"), "qkv.bias", VECTORS)],
        {"qkv.weight": weight, "qkv.bias": bias},
        {f"{part}/{leaf}": shape for part in "qkv" for leaf, shape in {"kernel": (1, 1, 2, 2), "bias": (2,)}.items()},
    )  # fmt: skip
    for n, part in enumerate("qkv"):
        np.testing.assert_array_equal(ours[part]["kernel"][0, 0], weight[2 * n : 2 * n + 2, :, 0, 0].T)
        np.testing.assert_array_equal(ours[part]["bias"], bias[2 * n : 2 * n + 2])


def test_axes_of_length_one_come_and_go():
    tensor = normal(1, 4, 1, 1)
    ours = imported([entry("a", "t", among(0, 2, 3))], {"t": tensor}, {"a": (4,)})
    np.testing.assert_array_equal(ours["a"], tensor.ravel())


def test_layers_are_stacked_in_the_order_of_their_numbers():
    state = {f"layers.{n}.w": normal(3, 2) for n in (10, 2, 0, 1, *range(3, 10))}
    ours = imported([entry("blocks/k", "layers.{layer}.w", LINEAR)], state, {"blocks/k": (11, 2, 3)})["blocks"]["k"]
    for n in range(11):
        np.testing.assert_array_equal(ours[n], state[f"layers.{n}.w"].T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(dtype):
    state = {"t": normal(7).astype(dtype)}
    ours = imported([entry("a", "t")], state, {"a": (7,)})["a"]
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, state["t"].astype(np.float32))


ENTRIES = [
    entry("linear", "a.weight", LINEAR),
    entry("up", ("w1", "w3"), LINEARS),
    entry(("q", "k"), "qk", CONVOLUTIONS),
    entry("stack", "l.{layer}.s", among(0)),
    entry("same", "s", AS_IS),
]
STATE = {
    "a.weight": normal(3, 5), "w1": normal(2, 3), "w3": normal(2, 3), "qk": normal(4, 3, 1, 1), "l.0.s": normal(1, 6),
    "l.1.s": normal(1, 6), "s": np.array([-0.0, np.inf, np.nan, 1e-45], np.float32),
}  # fmt: skip
SHAPES = {"linear": (5, 3), "up": (3, 4), "q": (1, 1, 3, 2), "k": (1, 1, 3, 2), "stack": (2, 6), "same": (4,)}


def test_export_is_the_inverse_of_import_bit_for_bit():
    back = to_theirs(imported(ENTRIES, STATE, SHAPES), ENTRIES)
    assert back.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert np.ascontiguousarray(back[name]).tobytes() == tensor.tobytes()
        assert back[name].shape == tensor.shape


def test_import_is_the_inverse_of_export_bit_for_bit():
    ours = {path: normal(*shape) for path, shape in SHAPES.items()}
    back = imported(ENTRIES, to_theirs(ours, ENTRIES), SHAPES)
    for path, array in ours.items():
        assert back[path].tobytes() == array.tobytes()


def test_what_is_written_is_a_view_where_nothing_is_joined():
    ours = imported(ENTRIES, STATE, SHAPES)
    theirs = to_theirs(ours, ENTRIES)
    assert np.shares_memory(theirs["w3"], ours["up"])
    assert np.shares_memory(theirs["l.1.s"], ours["stack"])


def refusal(state, buffers=()):
    with pytest.raises(UserError) as caught:
        imported(ENTRIES, state, SHAPES, buffers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_tensors_are_named():
    message = refusal({name: tensor for name, tensor in STATE.items() if name not in ("w3", "l.1.s")})
    assert "lacks w3, l.1.s" in message


def test_tensors_left_over_are_named_the_first_few_and_counted():
    message = refusal(STATE | {f"extra.{n}": normal(1) for n in range(12)})
    assert "too many extra.0, extra.1, extra.2, extra.3, extra.4 and 7 more" in message
    assert "extra.5" not in message


def test_another_shape_is_told_with_both():
    message = refusal(STATE | {"a.weight": normal(5, 3), "qk": normal(5, 3, 1, 1)})
    assert "a.weight ((5, 3), not (3, 5))" in message
    assert "qk ((5, 3, 1, 1), not (4, 3, 1, 1))" in message


def test_whole_numbers_are_no_weights():
    assert "s (int64)" in refusal(STATE | {"s": np.arange(4)})


def test_all_findings_are_in_one_line():
    message = refusal({"other": normal(1), **{name: tensor for name, tensor in STATE.items() if name != "s"}})
    assert "lacks s;" in message
    assert "too many other;" in message


def test_a_checked_buffer_must_be_what_it_should_be():
    buffers = [Buffer("zero", lambda: np.zeros(3, np.float32), checked=True)]
    imported(ENTRIES, STATE | {"zero": np.zeros(3, np.float16)}, SHAPES, buffers)
    imported(ENTRIES, STATE, SHAPES, buffers)  # files of weights alone lack it
    for other in (np.array([0, 0, 1]), np.zeros(4)):
        assert "zero" in refusal(STATE | {"zero": other}, buffers)


def test_other_buffers_are_ignored():
    buffers = [Buffer("used", lambda: np.zeros(3)), Buffer("table")]
    imported(ENTRIES, STATE | {"used": np.ones(5), "table": np.arange(2)}, SHAPES, buffers)


def test_buffers_that_the_original_makes_are_written():
    ours = imported(ENTRIES, STATE, SHAPES)
    written = to_theirs(ours, ENTRIES, [Buffer("used", lambda: np.arange(3)), Buffer("table")])
    np.testing.assert_array_equal(written["used"], np.arange(3))
    assert "table" not in written


def test_a_model_that_the_table_does_not_cover_is_refused():
    ours = imported(ENTRIES, STATE, SHAPES)
    with pytest.raises(UserError, match="further/bias"):
        to_theirs(ours | {"further": {"bias": normal(2)}}, ENTRIES)
    with pytest.raises(UserError, match="same"):
        to_theirs({path: array for path, array in ours.items() if path != "same"}, ENTRIES)


def test_paths_number_the_lists_of_modules():
    tree = {"layers": {0: {"kernel": 1}, 1: {"kernel": 2}}, "last": 3}
    assert leaves(tree) == {"layers/0/kernel": 1, "layers/1/kernel": 2, "last": 3}
    assert nested(leaves(tree)) == tree
