import itertools
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from interop.torch_files import is_torch, read_torch
from interop.torch_writer import write_torch
from models.errors import UserError

LAYOUTS = {
    "matrix": lambda array: array.reshape(3, 4),
    "none": lambda array: array[5:6].reshape(()),
    "empty": lambda array: array[:0].reshape(2, 0, 3),
    "transposed": lambda array: array.reshape(2, 3, 2).transpose(2, 0, 1),
    "stepped": lambda array: array.reshape(3, 4)[::2, 1::2],
    "repeated": lambda array: np.broadcast_to(array[:2], (3, 2)),
}


def some(dtype):
    """Any bits there are, so that NaNs and denormals must come back as they were."""
    raw = np.random.default_rng(1).integers(0, 256, 12 * dtype.itemsize, np.uint8)
    return (raw & 1 if dtype.kind == "b" else raw).view(dtype)


KINDS = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex64", "complex128",
         ml_dtypes.bfloat16]  # fmt: skip
TENSORS = {f"{np.dtype(kind)}.{layout}": LAYOUTS[layout](some(np.dtype(kind))) for kind in KINDS for layout in LAYOUTS}
VALUES = {
    "integers": [0, 1, -1, 255, 256, -(2**31), 2**31 - 1, 2**31, -(2**31) - 1, 2**63, -(2**63), 10**40, -(10**40)],
    "numbers": [True, False, None, 1.5, -0.0, float("inf"), 1e-320],
    "strings": ["", "weight", "ä ☃ \n\0'"],
    "containers": [{}, [], (), (1,), {"a": {2: [(None, [{}])]}}],
}


def bits(array):
    return np.asarray(array, order="C").reshape(-1).view(np.uint8)


def exactly(value):
    """Equal for the same value of the same type alone, which == is not."""
    if isinstance(value, dict):
        return [dict, *((exactly(key), exactly(item)) for key, item in value.items())]
    if isinstance(value, list | tuple):
        return [type(value), *map(exactly, value)]
    return type(value), repr(value)


def contents(path):
    """Name, place and bytes of each entry, by the local headers of a zip file."""
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            name, extra = struct.unpack_from("<HH", raw, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            yield info.filename.partition("/")[2], start, raw[start : start + info.file_size]


def read_or_refusal(path):
    try:
        return read_torch(path)
    except UserError as error:
        return str(error)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is to read the file")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pt"


def assert_torch_reads(torch, path, tensors, **how):
    theirs = torch.load(path, weights_only=True, **how)
    assert list(theirs) == list(tensors)
    for name, array in tensors.items():
        tensor = theirs[name]
        assert str(tensor.dtype) == f"torch.{array.dtype}"
        assert tuple(tensor.shape) == array.shape
        assert tensor.stride() == torch.zeros(array.shape).stride()
        assert not tensor.requires_grad
        if array.size:
            np.testing.assert_array_equal(tensor.reshape(-1).view(torch.uint8).numpy(), bits(array))


@pytest.mark.parametrize("how", [{}, {"mmap": True}], ids=["read", "mapped"])
def test_torch_reads_every_dtype_and_layout_bit_for_bit(how, torch, path):
    write_torch(path, TENSORS)
    assert_torch_reads(torch, path, TENSORS, **how)


def test_our_reader_reads_them_too(path):
    write_torch(path, OrderedDict(TENSORS))
    assert is_torch(path)
    read = read_torch(path)
    assert list(read) == list(TENSORS)
    for name, array in TENSORS.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(bits(read[name]), bits(array))


def test_big_endian_arrays_are_turned(torch, path):
    write_torch(path, [np.arange(5, dtype=">i2"), np.array(1.5, ">f8")])
    assert [tensor.tolist() for tensor in torch.load(path, weights_only=True)] == [[0, 1, 2, 3, 4], 1.5]
    np.testing.assert_array_equal(read_torch(path)[0], np.arange(5))


def test_containers_numbers_and_strings_are_what_they_were(torch, path):
    write_torch(path, VALUES)
    assert exactly(read_torch(path)) == exactly(VALUES)
    assert exactly(torch.load(path, weights_only=True)) == exactly(VALUES)


def test_a_state_dict_loads_into_a_module(torch, path):
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    state = {name: np.random.default_rng(0).normal(size=tensor.shape).astype(str(tensor.dtype).removeprefix("torch."))
             for name, tensor in network.state_dict().items()}  # fmt: skip
    write_torch(path, {"model": state, "steps": 5})
    network.load_state_dict(torch.load(path, weights_only=True)["model"])
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name])


def test_the_layout_is_that_of_torch(torch, path):
    """Every entry begins at a multiple of 64 bytes, and the pickle comes to the same without its memo and gradients."""
    arrays = {f"layer.{n}": np.arange(n, dtype=np.float32) for n in (1, 17, 64, 1000)}
    write_torch(path, arrays)
    ours = {name: (start, raw) for name, start, raw in contents(path)}
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
    theirs = {name: (start, raw) for name, start, raw in contents(path)}
    assert {start % 64 for start, _ in (*ours.values(), *theirs.values())} == {0}
    assert set(theirs) - set(ours) == {".format_version", ".storage_alignment", ".data/serialization_id"}
    for name, (_, raw) in ours.items():
        assert raw == theirs[name][1] or name == "data.pkl"


def test_long_entries(torch, path, monkeypatch):
    """Sizes beyond 2 GiB have fields of their own, here from 100 bytes on; they move what is behind them."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    tensors = {str(size): np.arange(size, dtype=np.uint8) for size in (99, 100, 101, 200, 5)}
    write_torch(path, tensors)
    assert {start % 64 for _, start, _ in contents(path)} == {0}
    with zipfile.ZipFile(path) as archive:
        starts = [info.header_offset for info in archive.infolist() if "/data/" in info.filename]
    versions = [struct.unpack_from("<H", path.read_bytes(), start + 4)[0] for start in starts]
    assert [version >= 45 for version in versions] == [False, False, True, True, False]
    for how in ({}, {"mmap": True}):
        assert_torch_reads(torch, path, tensors, **how)
    np.testing.assert_array_equal(read_torch(path)["200"], tensors["200"])


def test_torch_that_reads_no_data_knows_where_they_are(torch, path):
    """Readers of parts of a file take a storage's place from a load onto `meta`, which trusts what the file says of itself."""
    arrays = {f"{n}": np.arange(n, dtype=np.float64) for n in (3, 300, 1)}
    write_torch(path, arrays)
    raw = path.read_bytes()
    for name, tensor in torch.load(path, weights_only=True, map_location="meta").items():
        start = tensor.untyped_storage()._checkpoint_offset
        assert raw[start : start + arrays[name].nbytes] == arrays[name].tobytes()


def test_the_same_value_gives_the_same_bytes(tmp_path):
    for name in ("a.pt", "b.pth"):
        write_torch(tmp_path / name, TENSORS)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize(
    "value",
    [np.zeros(2, np.uint16), np.zeros(2, ml_dtypes.float8_e4m3fn), np.array([None]), np.array("x"), {1, 2}, b"x", 1j,
     object(), np.float32(1), np.dtype("f4"), np.zeros],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}".strip(),
)  # fmt: skip
def test_what_torch_has_not_is_refused_and_nothing_is_written(value, path):
    write_torch(path, [1])
    with pytest.raises(TypeError):
        write_torch(path, {"a": np.ones(2), "b": [value]})
    assert read_torch(path) == [1]
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_while_it_is_written_leaves_the_file_before_it(path, monkeypatch):
    write_torch(path, [1])
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_torch(path, {"a": np.ones(2)})
    monkeypatch.undo()
    assert read_torch(path) == [1]
    assert list(path.parent.iterdir()) == [path]


def test_arrays_are_copied_at_most_once_and_one_at_a_time(path):
    size = 4_000_000
    base = np.zeros((3, 1000, size // 4000), np.float32)
    for arrays, allowed in (list(base), 0), ([array.T for array in base], 2 * size):
        tracemalloc.start()
        write_torch(path, arrays)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < allowed + size // 4
    assert path.stat().st_size > 3 * size


def test_torch_is_not_needed(path):
    code = (
        "import sys; sys.modules['torch'] = None; import numpy; from interop.torch_writer import write_torch;"
        f"write_torch({str(path)!r}, {{'a': numpy.arange(4)}})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    np.testing.assert_array_equal(read_torch(path)["a"], np.arange(4))


def test_truncations_and_flipped_bits_are_refused_or_give_what_was_written(path):
    """Entries have checksums, so that damage in a tensor is seen too."""
    tensors = {"a": np.arange(3.0), "b": np.ones((2, 2), ml_dtypes.bfloat16)}
    write_torch(path, {"model": tensors})
    whole, random = path.read_bytes(), np.random.default_rng(0)
    truncated = (whole[:length] for length in range(0, len(whole), 7))
    flipped = (whole[:at] + bytes([whole[at] ^ 1 << random.integers(8)]) + whole[at + 1 :] for at in range(len(whole)))
    outcomes = {str: 0, dict: 0}
    for content in itertools.chain(truncated, flipped):
        path.write_bytes(content)
        read = read_or_refusal(path)
        outcomes[type(read)] += 1
        if isinstance(read, str):
            assert "\n" not in read
        else:
            assert len(content) == len(whole)
            for name, array in tensors.items():
                np.testing.assert_array_equal(bits(read["model"][name]), bits(array))
    assert min(outcomes.values()) > 100
