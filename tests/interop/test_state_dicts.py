import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from interop.safetensors_files import read_safetensors, write_safetensors
from interop.state_dicts import read_state, write_state
from interop.torch_files import read_torch
from interop.torch_writer import write_torch
from models.errors import UserError

LLAMAGEN = (("model",), ("module",), ("state_dict",), ())
REAL = {  # without suffix, and where in the file of torch the weights are
    "llamagen_c2i/c2i_tiny": ("model",),
    "llamagen_c2i/c2i_gqa_tiny_fsdp": (),
    "llamagen_c2i/vq_ds16_c2i_tiny": ("model",),
    "var/vae_tiny": (),
    "var/var_tiny": (),
    "var/var_shared_tiny": (),
}
WEIGHTS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.steps": np.array(7),
    "b.weight": np.array([1.5, -2], ml_dtypes.bfloat16),
    "b.none": np.zeros((0, 3), np.float16),
}
OTHER = {"a.weight": np.ones(4)}


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
        assert np.asarray(ours[name]).tobytes() == np.asarray(array).tobytes()


def read_or_refusal(path, containers=LLAMAGEN):
    try:
        return read_state(path, containers)
    except UserError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def refusal(path, containers=LLAMAGEN):
    message = read_or_refusal(path, containers)
    assert isinstance(message, str)
    return message


@pytest.fixture(params=REAL)
def real(request, shared):
    """A public layout in both formats: the path in torch's, its container, the path in safetensors'."""
    path = shared / "parity" / request.param
    both = path.with_name(path.name.removesuffix("_fsdp")).with_suffix(".safetensors")
    return next(path.parent.glob(f"{path.name}.pt*")), REAL[request.param], both


def test_real_files_are_equal_in_both_formats(real):
    file, container, other = real
    state, flat = read_state(file, [container]), read_state(other, [()])
    state.pop("quantize.codebook_used", None)  # no weight, and not in the other file
    assert len(state) > 5
    assert_same(state, flat)


def test_real_files_are_what_torch_says(real):
    torch = pytest.importorskip("torch", reason="torch is the judge")
    file, container, _ = real
    theirs = torch.load(file, weights_only=True)
    for key in container:
        theirs = theirs[key]
    assert_same(read_state(file, LLAMAGEN), {name: tensor.numpy() for name, tensor in theirs.items()})


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_real_files_written_again_are_the_same(suffix, real, tmp_path):
    state, path = read_state(real[0], LLAMAGEN), tmp_path / f"again.{suffix}"
    write_state(path, state, ("trainer", "vae_local"))
    assert_same(read_state(path, [("trainer", "vae_local"), ()]), state)


def test_real_files_cut_short_or_with_a_flipped_bit_are_refused_or_read(real, tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "damaged"
    for file in (real[0], real[2]):
        whole = file.read_bytes()
        lengths = [*range(20), *random.integers(20, len(whole), 40), len(whole) - 1]
        for length in lengths:
            path.write_bytes(whole[:length])
            refusal(path)
        directory = range(whole.rindex(b"PK\x01\x02") - 200 if file is real[0] else 8, len(whole))
        spots = [*range(80), *random.choice(directory, 40), *random.integers(0, len(whole), 40)]
        for at in spots:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << random.integers(8)]) + whole[at + 1 :])
            state = read_or_refusal(path)
            assert isinstance(state, str) or all(isinstance(array, np.ndarray) for array in state.values())


@pytest.mark.parametrize(
    ("content", "containers", "found"),
    [
        (WEIGHTS, LLAMAGEN, WEIGHTS),
        ({"model": WEIGHTS, "ema": OTHER, "steps": 3}, (("model",), ("ema",)), WEIGHTS),
        ({"model": WEIGHTS, "ema": OTHER, "steps": 3}, (("ema",), ("model",)), OTHER),
        ({"model": WEIGHTS, "optimizer": {}}, (("ema",), ("model",)), WEIGHTS),
        ({"state_dict": OTHER, "module": WEIGHTS}, LLAMAGEN, WEIGHTS),
        ({"model": {}, "module": WEIGHTS}, LLAMAGEN, WEIGHTS),
        ({"model": {"state": {0: OTHER}, "steps": 1}, "module": WEIGHTS}, LLAMAGEN, WEIGHTS),
        ({"model": {0: np.ones(2)}, "module": WEIGHTS}, LLAMAGEN, WEIGHTS),
        ({"model": np.ones(2), "b": np.zeros(1)}, LLAMAGEN, {"model": np.ones(2), "b": np.zeros(1)}),
        ({"trainer": {"vae_local": OTHER, "var_wo_ddp": WEIGHTS, "config": {"seed": 1}}, "epoch": 2},
         (("trainer", "var_wo_ddp"), ()), WEIGHTS),
        ({"trainer": np.ones(2)}, (("trainer", "var_wo_ddp"), ()), {"trainer": np.ones(2)}),
    ],
)  # fmt: skip
def test_the_first_container_that_holds_arrays_alone_wins(content, containers, found, tmp_path):
    write_torch(tmp_path / "a.pt", content)
    assert_same(read_state(tmp_path / "a.pt", containers), found)


def test_the_content_decides_what_a_file_is(tmp_path):
    for name in ("a.safetensors", "a.bin", "a"):
        write_torch(tmp_path / name, {"model": WEIGHTS})
        assert_same(read_state(tmp_path / name, LLAMAGEN), WEIGHTS)
    for name in ("a.pt", "a.pth"):
        write_safetensors(tmp_path / name, WEIGHTS)
        assert_same(read_state(tmp_path / name, [("model",)]), WEIGHTS)


def test_files_before_torch_16_are_read(tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes the file")
    weight = torch.arange(4.0)
    torch.save({"model": {"a": weight}}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_same(read_state(tmp_path / "a.pt", LLAMAGEN), {"a": weight.numpy()})


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (["module.a", "module.b.module.c"], ["a", "b.module.c"]),
        (["_orig_mod.a", "_orig_mod.b"], ["a", "b"]),
        (["module._orig_mod.a", "module._orig_mod.b"], ["a", "b"]),
        (["_orig_mod.module.a", "_orig_mod.module.b"], ["a", "b"]),
        (["module.a", "module._orig_mod.b"], ["a", "_orig_mod.b"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["modules.a", "modules.b"], ["modules.a", "modules.b"]),
    ],
)
def test_what_ddp_and_compile_put_before_every_name_is_taken_away(names, plain, tmp_path):
    for suffix in ("pt", "safetensors"):
        path = tmp_path / f"a.{suffix}"
        write_state(path, {name: np.array(n) for n, name in enumerate(names)}, ())
        assert_same(read_state(path, [()]), {name: np.array(n) for n, name in enumerate(plain)})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            {"optimizer": {"state": {}}, "steps": 3, "a": np.ones(1)},
            "'optimizer' (dict), 'steps' (int), 'a' (ndarray);",
        ),
        ({"model": {"a": 1}}, "no state dict at 'model' or 'module' or 'state_dict' or its top level, but"),
        ({f"key\n{n}": n for n in range(100)}, r"'key\n7' (int) and 92 more;"),
        ({"x" * 10_000: 1}, "'" + "x" * 60 + "' (int);"),
        ([WEIGHTS], "but a list;"),
        ({}, "but nothing at all;"),
    ],
)
def test_a_file_without_a_state_dict_is_refused_with_what_it_has(content, told, tmp_path):
    write_torch(tmp_path / "a.pt", content)
    message = refusal(tmp_path / "a.pt")
    assert told in message
    assert len(message) < 500


def test_a_file_of_safetensors_without_tensors_is_refused(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {})
    assert "no state dict at its top level, but nothing at all;" in refusal(tmp_path / "a.safetensors")


def test_a_container_that_is_not_named_is_not_looked_into(tmp_path):
    write_torch(tmp_path / "a.pt", {"model": WEIGHTS})
    assert "no state dict at 'trainer'.'vae_local' or its top level, but at its top level 'model' (dict);" in refusal(
        tmp_path / "a.pt", [("trainer", "vae_local"), ()]
    )
    write_torch(tmp_path / "a.pt", WEIGHTS)
    refusal(tmp_path / "a.pt", [("model",)])


def test_files_that_are_neither(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(UserError, match="there is no file"):
        read_state(path, LLAMAGEN)
    for content in (b"", b"x", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + bytes(50), pickle.dumps(WEIGHTS)):
        path.write_bytes(content)
        assert "neither a file of torch nor one of safetensors" in refusal(path)
    refusal(tmp_path)


class Attack:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "a.pt", tmp_path / "attacked"
    pickled = pickle.dumps({"model": {"a": Attack(mark)}}, 2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    assert "wants to use posix.system" in refusal(path)
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickled)
    assert "wants to use posix.system" in refusal(path)
    assert not mark.exists()
    pickle.loads(pickled)  # elsewhere it does run
    assert mark.exists()


@pytest.mark.parametrize("container", [(), ("model",), ("trainer", "var_wo_ddp")])
def test_the_suffix_says_what_is_written(container, tmp_path):
    for suffix in ("pt", "pth"):
        write_state(tmp_path / f"a.{suffix}", WEIGHTS, container)
        node = read_torch(tmp_path / f"a.{suffix}")
        for key in container:
            assert list(node) == [key]
            node = node[key]
        assert_same(node, WEIGHTS)
    write_state(tmp_path / "a.safetensors", WEIGHTS, container)
    assert_same(read_safetensors(tmp_path / "a.safetensors"), WEIGHTS)


@pytest.mark.parametrize("name", ["a.bin", "a.npz", "a", "pt", "a.pt.tmp", "a.PT"])
def test_another_suffix_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"name it \*\.safetensors, \*\.pt or \*\.pth"):
        write_state(tmp_path / name, WEIGHTS, ())
    assert not list(tmp_path.iterdir())
