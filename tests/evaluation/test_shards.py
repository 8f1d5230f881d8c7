"""Work that is done once, whatever interrupts it."""

import numpy as np
import pytest

from evaluation.shards import compute_shards, read_all, read_shards


class Killed(Exception):
    pass


def test_what_is_on_disk_is_not_computed_again(tmp_path):
    calls = []

    def piece(k, *, die_at=None):
        if k == die_at:
            raise Killed
        calls.append(k)
        return {"x": np.full((2, 3), k, np.float32), "seconds": 0.5}

    with pytest.raises(Killed):
        compute_shards(tmp_path, 4, lambda k: piece(k, die_at=2), title="test")
    (tmp_path / ".00002.npz.1").write_bytes(b"what a killed process leaves")
    compute_shards(tmp_path, 4, piece, title="test")
    assert calls == [0, 1, 2, 3]
    found = read_all(tmp_path, 4, ["x", "seconds"])
    np.testing.assert_array_equal(found["x"], np.repeat(np.arange(4), 2)[:, None] * np.ones(3))
    assert found["x"].dtype == np.float32
    assert found["seconds"].tolist() == [0.5] * 4
    assert [set(part) for part in read_shards(tmp_path, 4, ["x"])] == [{"x"}] * 4


def test_processes_share_the_pieces(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("evaluation.shards.jax.process_count", lambda: 3)
    monkeypatch.setattr("evaluation.shards.multihost_utils.sync_global_devices", lambda name: calls.append(name))
    for process in range(3):
        monkeypatch.setattr("evaluation.shards.jax.process_index", lambda process=process: process)
        compute_shards(tmp_path, 5, lambda k: calls.append(k) or {"x": np.array([k])}, title="wait")
    assert calls == [0, 3, "wait", 1, 4, "wait", 2, "wait"]
    assert read_all(tmp_path, 5, ["x"])["x"].tolist() == [0, 1, 2, 3, 4]
