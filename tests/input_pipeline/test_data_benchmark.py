"""The benchmark of the input pipeline, made small, and what times another program beside one."""

import json
import shlex
import sys
import threading
import time

import numpy as np
import pytest

from benchmarks import data
from benchmarks.turns import beside


def test_rows_are_measured_and_leave_no_reader_behind(monkeypatch, capsys):
    monkeypatch.setattr(data, "PHOTOS", {"jpeg_500x375": (40, 30)})
    monkeypatch.setattr(data, "TIMED", {"tokens": 3, "jpeg_500x375": 2})
    monkeypatch.setattr(data, "FILES", 3)
    monkeypatch.setattr(data, "IMAGES", 20)
    monkeypatch.setattr("sys.argv", ["data", "--turns=3", "--batch=2", "--json"])
    before = set(threading.enumerate())
    data.main()
    found = json.loads(capsys.readouterr().out)
    assert found["batch"] == 2
    assert found["rows"].keys() == data.TIMED.keys()
    for row in found["rows"].values():
        turns = row["images_per_second_of_turns"]
        assert row["images_per_second"] == sorted(turns)[1]
        assert row["core_ms_per_image"] > 0
    deadline = time.monotonic() + 60
    while left := [thread for thread in set(threading.enumerate()) - before if "grain" in thread.name]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


@pytest.mark.parametrize("size", [(500, 375), (60, 90)])
def test_a_photo_is_of_its_size_and_neither_flat_nor_pure_noise(size):
    pixels = np.asarray(data.photo(*size, np.random.default_rng(0))).astype(float)
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.std() > 30
    across = np.diff(pixels, axis=1).std()  # of white noise 1.4 times as much as the pixels themselves
    assert across < 0.5 * pixels.std()


def test_a_program_beside_is_waited_for_and_its_end_is_told(tmp_path):
    code = f"import sys; [print(0.25 * k, flush=True) for k, _ in zip((1, 2), sys.stdin)]; open({str(tmp_path / 'end')!r}, 'w')"
    command = shlex.join([sys.executable, "-c", code])
    with beside(command) as once:
        assert once() == 0.25
    assert (tmp_path / "end").exists()
    with beside(command) as once:
        assert [once(), once()] == [0.25, 0.5]
        with pytest.raises(RuntimeError, match="has ended, with exit code 0"):
            once()
