import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from interop.safetensors_files import read_safetensors, write_safetensors
from models.errors import UserError


def bits(array):
    return np.asarray(array, order="C").reshape(-1).view(np.uint8)


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype.newbyteorder("=")
        assert ours[name].shape == array.shape
        np.testing.assert_array_equal(bits(ours[name]), bits(array.astype(ours[name].dtype)))


def some(dtype, shape=(3, 4)):
    """Any bits there are, so that NaNs and denormals must come back as they were."""
    raw = np.random.default_rng(0).integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    return (raw & 1 if dtype.kind == "b" else raw).view(dtype).reshape(shape)


KINDS = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64",
         "complex64", ml_dtypes.bfloat16]  # fmt: skip
TENSORS = {
    **{f"layers.{np.dtype(kind)}": some(np.dtype(kind)) for kind in KINDS},
    "none": np.array(2.5, np.float32),
    "no_bfloat16": np.array(-1.5, ml_dtypes.bfloat16),
    "empty": np.zeros((3, 0, 2), np.float16),
    "transposed": some(np.dtype(np.float32)).T,
    "stepped": some(np.dtype(ml_dtypes.bfloat16), (6, 8))[::2, 1::3],
    "big_endian": np.arange(5, dtype=">f4"),
    "ä 'quoted'\nname": np.arange(3, dtype=np.uint8),
}


def made(path, header, data=b"", length=None):
    """A file of any header, as the format describes it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def read_or_refusal(path):
    try:
        return read_safetensors(path)
    except UserError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def refusal(path):
    message = read_or_refusal(path)
    assert isinstance(message, str)
    return message


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read_bit_for_bit_by_us_and_by_the_library(path):
    write_safetensors(path, TENSORS)
    assert_same(read_safetensors(path), TENSORS)
    assert_same(safetensors.numpy.load_file(path), TENSORS)


def test_what_the_library_writes_is_read(path):
    tensors = {name: array for name, array in TENSORS.items() if array.flags.c_contiguous}
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    assert_same(read_safetensors(path), tensors)


def test_torch_reads_what_is_written(path):
    torch = pytest.importorskip("torch", reason="torch is to read the file")
    import safetensors.torch

    write_safetensors(path, TENSORS)
    theirs = safetensors.torch.load_file(path)
    assert set(theirs) == set(TENSORS)
    for name, array in read_safetensors(path).items():
        assert str(theirs[name].dtype) == f"torch.{array.dtype}"
        assert tuple(theirs[name].shape) == array.shape
        if array.size:
            np.testing.assert_array_equal(theirs[name].reshape(-1).view(torch.uint8).numpy(), bits(array))


def test_tensors_are_read_only_views_of_the_file_and_outlive_its_replacement(path):
    first = {"a": np.arange(1000.0), "b": np.ones((2, 3), ml_dtypes.bfloat16)}
    write_safetensors(path, first)
    read = read_safetensors(path)
    for array in read.values():
        assert isinstance(array.base, np.memmap)
        assert not array.flags.writeable
    write_safetensors(path, {"a": np.zeros(2000)})
    assert_same(read, first)
    assert_same(read_safetensors(path), {"a": np.zeros(2000)})


def test_tensors_that_lie_askew_in_the_file_are_aligned(path):
    values = np.arange(4, dtype=np.float64)
    header = {"byte": entry(0, 1, (1,), "U8"), "a": entry(1, 33, (4,), "F64"), "none": entry(33, 37, ())}
    for spaces in range(8):
        made(path, json.dumps(header).encode() + b" " * spaces, b"\x07" + values.tobytes() + struct.pack("<f", 2.5))
        read = read_safetensors(path)
        assert_same(read, {"byte": np.array([7], np.uint8), "a": values, "none": np.array(2.5, np.float32)})
        assert all(array.flags.aligned and not array.flags.writeable for array in read.values())


def test_real_files(shared):
    paths = sorted((shared / "parity").glob("*/*.safetensors"))
    assert len(paths) >= 6
    for path in paths:
        assert_same(read_safetensors(path), safetensors.numpy.load_file(path))


def test_every_truncation_is_refused(path):
    write_safetensors(path, {"a": np.arange(6.0), "b": np.ones(3, ml_dtypes.bfloat16), "c": np.array(1)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "not a readable file of safetensors" in refusal(path)
    path.write_bytes(whole + b"\0")
    assert "not a readable file of safetensors" in refusal(path)


def test_a_flipped_bit_is_refused_or_gives_arrays(path):
    write_safetensors(path, {"a": np.arange(2.0), "b": np.ones(3, ml_dtypes.bfloat16), "c": np.zeros((2, 0))})
    whole = path.read_bytes()
    start, refused = 8 + int.from_bytes(whole[:8], "little"), 0
    for at in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        read = read_or_refusal(path)
        if isinstance(read, str):
            assert at // 8 < start
            refused += 1
        else:
            assert sum(array.nbytes for array in read.values()) == len(whole) - start
    assert refused > 4 * start


A = entry(0, 8)
ATTACKS = {
    "a header longer than the file": ({"a": A}, bytes(8), 1000),
    "a header longer than any": ({"a": A}, bytes(8), 2**64 - 1),
    "a header cut off": ({"a": A}, bytes(8), 20),
    "no header": (b"", b"", 0),
    "no JSON": (b"hello", b"", None),
    "no UTF-8": (b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8), None),
    "a list": ([A], bytes(8), None),
    "deeper than any stack": (b'{"a":' * 100_000, b"", None),
    "too few bytes": ({"a": A}, bytes(4), None),
    "too many bytes": ({"a": A}, bytes(12), None),
    "offsets outside": ({"a": entry(8, 16)}, bytes(8), None),
    "offsets below zero": ({"a": entry(-8, 0)}, bytes(8), None),
    "offsets backwards": ({"a": entry(8, 0)}, bytes(8), None),
    "a hole at the start": ({"a": entry(4, 12)}, bytes(12), None),
    "a hole": ({"a": A, "b": entry(12, 20)}, bytes(20), None),
    "tensors that overlap": ({"a": A, "b": entry(4, 12)}, bytes(12), None),
    "tensors at one place": ({"a": A, "b": A}, bytes(8), None),
    "too few bytes for its shape": ({"a": entry(0, 8, (3,))}, bytes(8), None),
    "too many bytes for its shape": ({"a": entry(0, 8, ())}, bytes(8), None),
    "a shape below zero": ({"a": entry(0, 8, (-2, -1))}, bytes(8), None),
    "a shape of fractions": ({"a": entry(0, 8, (2.0,))}, bytes(8), None),
    "a shape of another kind": ({"a": {**A, "shape": "2"}}, bytes(8), None),
    "a shape that overflows": ({"a": entry(0, 8, (2**62 + 1, 4, 2))}, bytes(8), None),
    "an empty shape that overflows": ({"a": entry(0, 0, (2**62, 0, 2**62))}, b"", None),
    "more axes than numpy has": ({"a": entry(0, 4, (1,) * 100)}, bytes(4), None),
    "a dtype that is none": ({"a": entry(0, 8, (2,), "X32")}, bytes(8), None),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8), None),
    "one name for two tensors": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}',
        bytes(12),
        None,
    ),
    "metadata that are no strings": ({"__metadata__": {"a": 1}, "a": A}, bytes(8), None),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_headers_that_lie_are_refused(attack, path):
    header, data, length = attack
    assert "not a readable file of safetensors" in refusal(made(path, header, data, length))


def test_the_attacks_are_on_a_file_that_would_be_read(path):
    made(path, {"__metadata__": {"a": "1"}, "a": A, "b": entry(8, 8, (2**40, 0))}, struct.pack("<2f", 1, 2))
    assert_same(read_safetensors(path), {"a": np.array([1, 2], np.float32), "b": np.zeros((2**40, 0), np.float32)})


def test_a_dtype_that_is_not_read_is_named(path):
    made(path, {"a\nb": entry(0, 2, (2,), "F8_E4M3")}, b"00")
    assert "holds 'a\\nb' as F8_E4M3" in refusal(path)


def test_missing_and_foreign_files(path, tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_safetensors(path)
    path.write_bytes(b"<html>not found</html>")
    refusal(path)
    refusal(tmp_path)


def test_a_file_is_written_whole_or_not_in_a_folder_that_is_made_and_with_the_rights_of_any_other(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    write_safetensors(path, {"a": np.ones(2)})
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode
    with pytest.raises(safetensors.SafetensorError, match="object"):
        write_safetensors(path, {"a": np.array([None])})
    assert_same(read_safetensors(path), {"a": np.ones(2)})
    assert len(list(path.parent.iterdir())) == 2
