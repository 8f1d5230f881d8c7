import pickle

import numpy as np
import pytest

from interop.inception import read_inception
from models.errors import UserError

SHAPES = {
    "Conv2d_1a_3x3/kernel": (3, 3, 3, 4), "Conv2d_1a_3x3/bias": (4,),
    "Mixed_6e/branch7x7_2/kernel": (1, 7, 4, 5), "Mixed_6e/branch7x7_2/bias": (5,),
    "Mixed_7c/branch_pool/kernel": (1, 1, 5, 6), "Mixed_7c/branch_pool/bias": (6,),
    "fc/kernel": (6, 8), "fc/bias": (8,),
}  # fmt: skip
LAYERS = [name.removesuffix("/kernel") for name in SHAPES if name.endswith("/kernel") and name != "fc/kernel"]


@pytest.fixture(scope="module")
def layers():
    """Each layer's convolution (O, I, h, w) and normalization, as the public files have them."""
    rng = np.random.default_rng(0)
    made = {}
    for layer in LAYERS:
        *size, inputs, outputs = SHAPES[f"{layer}/kernel"]
        made[layer] = {"kernel": rng.normal(size=(outputs, inputs, *size)), "scale": rng.uniform(0.5, 2, outputs),
                       "shift": rng.normal(size=outputs), "mean": rng.normal(size=outputs),
                       "variance": rng.uniform(0.01, 2, outputs)}  # fmt: skip
    made["fc"] = {"kernel": rng.normal(size=(8, 6)), "bias": rng.normal(size=8)}
    return {layer: {part: array.astype(np.float32) for part, array in parts.items()} for layer, parts in made.items()}


@pytest.fixture
def state(layers):
    """The state dict of PyTorch, with what only training uses."""
    torch = pytest.importorskip("torch", reason="the file to read is torch's")
    names = {"kernel": "conv.weight", "scale": "bn.weight", "shift": "bn.bias", "mean": "bn.running_mean",
             "variance": "bn.running_var"}  # fmt: skip
    state = {f"{layer.replace('/', '.')}.{names[part]}": torch.tensor(array)
             for layer in LAYERS for part, array in layers[layer].items()}  # fmt: skip
    state |= {"fc.weight": torch.tensor(layers["fc"]["kernel"]), "fc.bias": torch.tensor(layers["fc"]["bias"])}
    return state | {
        "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(3),
        "AuxLogits.conv0.conv.weight": torch.ones(2),
    }


@pytest.fixture
def tree(layers):
    """The nested dict of jax-fid."""
    tree = {"fc": {"kernel": layers["fc"]["kernel"].T, "bias": layers["fc"]["bias"]}, "AuxLogits": {"fc": {}}}
    for layer in LAYERS:
        parts, node = layers[layer], tree
        for name in layer.split("/"):
            node = node.setdefault(name, {})
        no_bias = None if layer == LAYERS[0] else np.zeros(len(parts["mean"]), np.float32)
        node["conv"] = {"kernel": parts["kernel"].transpose(2, 3, 1, 0), "bias": no_bias}
        node["bn"] = {"scale": parts["scale"], "bias": parts["shift"], "mean": parts["mean"], "var": parts["variance"]}
    return tree


@pytest.fixture
def npz(layers):
    """Our own names, from the definition of a normalized convolution in one number at a time."""
    arrays = {"fc/kernel": layers["fc"]["kernel"].T, "fc/bias": layers["fc"]["bias"]}
    for layer in LAYERS:
        parts = {part: array.astype(np.float64) for part, array in layers[layer].items()}
        kernel = np.zeros(SHAPES[f"{layer}/kernel"])
        for output in range(kernel.shape[-1]):
            factor = parts["scale"][output] / (parts["variance"][output] + 0.001) ** 0.5
            kernel[..., output] = np.moveaxis(parts["kernel"][output], 0, -1) * factor
        deviation = (parts["variance"] + 0.001) ** 0.5
        arrays[f"{layer}/kernel"] = kernel
        arrays[f"{layer}/bias"] = parts["shift"] - parts["mean"] * parts["scale"] / deviation
    return arrays


@pytest.fixture
def sources(state, tree, npz, tmp_path):
    """Writes the three sources, under names that say nothing, after a change of each."""
    import torch

    def write(change=lambda arrays: arrays):
        paths = [tmp_path / name for name in ("one", "two", "three", "four")]
        torch.save(change(state), paths[0], _use_new_zipfile_serialization=False)
        torch.save(change(state), paths[1])
        paths[2].write_bytes(pickle.dumps(change(tree), 4))
        with paths[3].open("wb") as file:
            np.savez(file, **change(npz))
        return paths

    return write


def test_three_sources_are_one_network(sources, npz):
    for path in sources():
        arrays = read_inception(path, SHAPES)
        assert list(arrays) == list(SHAPES)
        for name, array in arrays.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, npz[name], rtol=1e-6, atol=1e-7)


def without(*starts):
    return lambda arrays: {name: array for name, array in arrays.items() if not name.startswith(starts)}


@pytest.mark.parametrize("starts", [("fc",), ("fc", "Mixed_7c")])
def test_a_file_may_end_before_the_classifier_and_before_the_last_blocks(starts, sources):
    for path in sources(without(*starts)):
        assert list(read_inception(path, SHAPES)) == [name for name in SHAPES if not name.startswith(starts)]


@pytest.mark.parametrize("start", ["Mixed_6e", "Conv2d_1a", "Mixed_7c"])
def test_a_layer_that_is_missing_is_named(start, sources):
    for path in sources(without(start)):
        with pytest.raises(UserError, match=rf"{path.name} lacks '{start}.*/kernel' and 1 more"):
            read_inception(path, SHAPES)


def test_a_part_of_a_layer_that_is_missing_is_named(sources, state, tree, npz):
    del state["Mixed_6e.branch7x7_2.bn.running_mean"]
    del tree["Mixed_6e"]["branch7x7_2"]["bn"]["mean"]
    del npz["Mixed_6e/branch7x7_2/bias"]
    names = [*["Mixed_6e.branch7x7_2.bn.running_mean"] * 2, "Mixed_6e.branch7x7_2.bn.mean", "Mixed_6e/branch7x7_2/bias"]
    for path, name in zip(sources(), names):
        with pytest.raises(UserError, match=f"lacks '{name}'"):
            read_inception(path, SHAPES)


def test_what_the_network_does_not_have_is_named(sources, state, tree, npz):
    state["Mixed_6f.bn.weight"] = state["fc.bias"]
    tree["Mixed_6e"]["branch7x7_2"]["conv"]["bias"] = npz["surplus"] = np.ones(5, np.float32)
    names = ["Mixed_6f.bn.weight"] * 2 + ["Mixed_6e.branch7x7_2.conv.bias", "surplus"]
    for path, name in zip(sources(), names):
        with pytest.raises(UserError, match=f"has, and the network has not, '{name}'"):
            read_inception(path, SHAPES)


def test_another_shape_is_named(sources, state, tree, npz):
    state["fc.weight"] = state["fc.weight"][:5]
    tree["fc"]["kernel"] = npz["fc/kernel"] = npz["fc/kernel"][:, :5]
    for path in sources():
        with pytest.raises(UserError, match=r"'fc/kernel' has the shape \(6, 5\); it should have \(6, 8\)"):
            read_inception(path, SHAPES)


def test_another_shape_within_a_layer_is_named(sources, state, tree, npz):
    state["Mixed_6e.branch7x7_2.bn.bias"] = state["Mixed_6e.branch7x7_2.bn.bias"][:3]
    tree["Mixed_6e"]["branch7x7_2"]["conv"]["kernel"] = np.ones((7, 1, 4, 5), np.float32)
    npz["Mixed_6e/branch7x7_2/kernel"] = np.ones((1, 7, 5, 4))
    names = [r"branch7x7_2.bn.bias' has the shape \(3,\)"] * 2
    names += [r"conv.kernel' has the shape \(7, 1, 4, 5\)", r"branch7x7_2/kernel' has the shape \(1, 7, 5, 4\)"]
    for path, name in zip(sources(), names):
        with pytest.raises(UserError, match=name):
            read_inception(path, SHAPES)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 half", pickle.dumps([1, 2])])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=r"file (is not a readable|holds no arrays by name)"):
        read_inception(tmp_path / "file", SHAPES)
    with pytest.raises(UserError, match="there is no file"):
        read_inception(tmp_path / "none", SHAPES)
