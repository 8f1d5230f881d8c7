import pickle

import numpy as np
import pytest

from interop.pickles import read_pickle
from models.errors import UserError

TREE = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big_endian": np.arange(5, dtype=">i2"),
    "sliced": np.arange(10)[::3],
    "empty": np.zeros((0, 3), np.float16),
    "scalar": np.float32(2.5),
    "none": np.array(1.5),
    "nested": {"bool": [np.array([True, False]), (None, "x", 3, 2.5, b"\x80y", np.complex64(1j))]},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol, tmp_path):
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(TREE, protocol))
    loaded = read_pickle(path)
    assert list(loaded) == list(TREE)
    for name in TREE.keys() - {"nested"}:
        np.testing.assert_array_equal(loaded[name], TREE[name])
        assert loaded[name].dtype == TREE[name].dtype.newbyteorder("=")
    flags, others = loaded["nested"]["bool"]
    np.testing.assert_array_equal(flags, [True, False])
    assert others == (None, "x", 3, 2.5, b"\x80y", 1j)


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_old_and_new_numpy_call_their_modules_otherwise(module, tmp_path):
    path = tmp_path / "a.pickle"
    for protocol, name in ((0, b"multiarray"), (5, b"numeric")):
        content = pickle.dumps({"a": np.arange(3.0)}, protocol)
        old = b"numpy._core." + name
        assert old in content
        new = f"{module}.".encode() + name
        if protocol == 5:
            # The name's length is the byte before it, and the frame's is in its head.
            content = content.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
            content = content[:3] + (len(content) - 11).to_bytes(8, "little") + content[11:]
        path.write_bytes(content.replace(old, new))
        np.testing.assert_array_equal(read_pickle(path)["a"], [0, 1, 2])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1, "x"], object), "not a readable pickle"),
        (np.array([(1, 2.0)], "i4,f8"), "not a readable pickle"),
        ({"a": {1, 2}}, "not a readable pickle|builtin"),
        (np.random.default_rng, "wants to use numpy.random"),
        ([range(3)], "range"),
        (UserError("x"), "wants to use models.errors.UserError"),
    ],
)
def test_what_is_no_plain_array_is_refused(value, message, tmp_path):
    path = tmp_path / "a.pickle"
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(UserError, match=message):
            read_pickle(path)


def test_a_pickle_that_is_cut_short_or_missing_is_refused(tmp_path):
    path = tmp_path / "a.pickle"
    whole = pickle.dumps(TREE)
    for length in [0, 1, 10, 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a readable pickle"):
            read_pickle(path)
    with pytest.raises(UserError, match="there is no file"):
        read_pickle(tmp_path / "none")


def test_a_dtype_that_lies_about_its_bytes_is_not_believed(tmp_path):
    """A pickle may say that pointers are numbers: numpy's own unpickling would then follow the bytes it is given."""
    path = tmp_path / "a.pickle"
    content = pickle.dumps(np.arange(2), 2).replace(b"i8", b"O8")
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable pickle"):
        read_pickle(path)
