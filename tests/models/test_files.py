"""What a reader sees of a file that is being written, and what an interrupted writer leaves."""

import json

import numpy as np
import pytest

from models.files import atomically, write_json, write_npz


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder" / "file.json"
    write_json(path, {"a": 1})
    with atomically(path) as temporary:
        temporary.write_text("half")
        assert json.loads(path.read_text()) == {"a": 1}
    assert path.read_text() == "half"


def test_an_interrupted_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path):
    with atomically(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")


def test_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    """Two hosts whose names and process numbers are the same, as in containers, are what one process is here."""
    path = tmp_path / "file.txt"
    with atomically(path) as one, atomically(path) as other:
        one.write_text("one")
        other.write_text("the other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_infinities(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("inf"), "y": [float("nan"), 1.5], "z": {"w": (2, "inf")}})
    strict = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert strict == {"x": None, "y": [None, 1.5], "z": {"w": [2, "inf"]}}


def test_an_npz_keeps_its_name(tmp_path):
    write_npz(tmp_path / "a.npz", x=np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["x"], [0, 1, 2])
