"""What the environment and the flags say of other processes, and who reads what."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from models import distributed, sharding
from models.distributed import settings
from models.errors import UserError

NONE = (None, None, None)
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SRUN = {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "n[1-2]"}


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, NONE, None),
        (ADDRESS, NONE, {"coordinator_address": "a:1", "num_processes": 4, "process_id": 3}),
        ({}, ("[::1]:99", 2, 0), {"coordinator_address": "[::1]:99", "num_processes": 2, "process_id": 0}),
        (ADDRESS, ("b:2", 2, 1), {"coordinator_address": "b:2", "num_processes": 2, "process_id": 1}),
        (SRUN, NONE, {}),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "a:1"}, NONE, {}),  # jax takes the rest from SLURM
        (SRUN | ADDRESS, NONE, {"coordinator_address": "a:1", "num_processes": 4, "process_id": 3}),
        ({"SLURM_NTASKS": "8"}, NONE, None),  # a batch script, not started by srun
        (SRUN | {"SLURM_NTASKS": "1"}, NONE, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, NONE, {}),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, NONE, None),
        ({"TPU_WORKER_HOSTNAMES": "h0,h1"}, NONE, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, NONE, None),
        ({"TPU_WORKER_HOSTNAMES": "h0", "MEGASCALE_NUM_SLICES": "2"}, NONE, {}),
    ],
)
def test_settings(environment, flags, expected):
    assert settings({"JAX_PLATFORMS": "cpu", **environment}, flags) == expected


@pytest.mark.parametrize(
    ("environment", "flags", "parts"),
    [
        ({}, ("a:1", None, 0), ["--processes missing"]),
        ({}, (None, 2, 0), ["--coordinator missing"]),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, NONE, ["JAX_NUM_PROCESSES and JAX_PROCESS_ID missing"]),
        ({"JAX_NUM_PROCESSES": "2"}, NONE, ["JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID missing"]),
        (ADDRESS | {"JAX_PROCESS_ID": "x"}, NONE, ["JAX_PROCESS_ID", "'x'", "whole number"]),
        (ADDRESS | {"JAX_PROCESS_ID": "4"}, NONE, ["0 to 3"]),
        (ADDRESS | {"JAX_PROCESS_ID": "-1"}, NONE, ["0 to 3"]),
        ({}, ("host", 2, 0), ["'host'", "HOST:PORT"]),
        ({}, ("host:70000", 2, 0), ["HOST:PORT"]),
        ({}, (":80", 2, 0), ["HOST:PORT"]),
        (SRUN | {"SLURM_NTASKS": "many"}, NONE, ["SLURM_NTASKS", "'many'"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, NONE, ["Open MPI", "--coordinator"]),
    ],
)
def test_partial_or_malformed_settings_are_refused_by_name(environment, flags, parts):
    with pytest.raises(UserError) as error:
        settings({"JAX_PLATFORMS": "cpu", **environment}, flags)
    for part in parts:
        assert part in str(error.value)


def test_a_process_alone_neither_joins_nor_waits():
    distributed.join(NONE, 1)
    assert not distributed.several()
    distributed.wait()
    assert distributed.first(lambda: 3) == 3
    assert distributed.from_all(np.array([1, 2])).tolist() == [[1, 2]]


class Device:
    platform, device_kind, client = "fake", "fake", None

    def __init__(self, number, process):
        self.id, self.process_index = number, process


def readers(monkeypatch, processes, shape):
    """(rows, count of parts) of each process, where device i of the mesh is of process processes[i]."""
    devices = np.array([Device(number, process) for number, process in enumerate(processes)]).reshape(shape)
    mesh, found = Mesh(devices, sharding.MESH_AXES), []
    for process in sorted(set(processes)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(sharding.reader_of.__wrapped__(mesh))
    return found


def test_each_host_of_a_batch_over_all_devices_reads_its_rows(monkeypatch):
    found = readers(monkeypatch, [0, 0, 1, 1, 2, 2, 3, 3], (2, 4, 1, 1))
    assert found == [((0, 1), 8), ((2, 3), 8), ((4, 5), 8), ((6, 7), 8)]
    assert [reader.readers for reader in found] == [4] * 4
    assert readers(monkeypatch, [1, 1, 0, 0], (4, 1, 1, 1)) == [((2, 3), 4), ((0, 1), 4)]
    assert readers(monkeypatch, [0, 1, 0, 1], (1, 4, 1, 1)) == [((0, 2), 4), ((1, 3), 4)]  # as on a torus
    assert readers(monkeypatch, [0] * 8, (2, 2, 2, 1)) == [((0, 1, 2, 3), 4)]


def test_hosts_that_share_examples_along_another_axis_are_one_reader(monkeypatch):
    assert readers(monkeypatch, [0, 1, 2, 3], (2, 1, 2, 1)) == [((0,), 2), ((0,), 2), ((1,), 2), ((1,), 2)]
    assert readers(monkeypatch, [0, 1, 2, 3], (1, 2, 1, 2)) == [((0,), 2), ((0,), 2), ((1,), 2), ((1,), 2)]
    assert readers(monkeypatch, [0, 1, 2, 3], (1, 1, 4, 1)) == [((0,), 1)] * 4
    assert readers(monkeypatch, [0, 0, 1, 1], (2, 1, 2, 1)) == [((0,), 2), ((1,), 2)]


def test_hosts_that_share_some_examples_are_refused(monkeypatch):
    with pytest.raises(UserError, match="unevenly"):
        readers(monkeypatch, [0, 0, 0, 1, 1, 1], (3, 1, 2, 1))


def test_a_tpu_vm_is_noticed_only_where_jax_would_use_its_chips(monkeypatch):
    monkeypatch.setattr(distributed.Path, "glob", lambda self, pattern: iter([self / "accel0"]))
    monkeypatch.setattr(distributed, "find_spec", lambda name: importlib.util.find_spec("jax"))
    assert settings({}, NONE) == {}
    assert settings({"JAX_PLATFORMS": "tpu,cpu"}, NONE) == {}
    assert settings({"JAX_PLATFORMS": "cpu"}, NONE) is None
    assert settings({"TPU_SKIP_MDS_QUERY": "1"}, NONE) is None
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    assert settings({}, NONE) is None


def test_of_several_slices_the_batch_goes_across():
    def devices(slices, each):
        made = [Device(number, number // 2) for number in range(slices * each)]
        for number, device in enumerate(made):
            device.slice_index = number // each
        return made

    def sliced(sizes, devices):
        return np.vectorize(lambda device: device.slice_index)(sharding.placed_on(devices, sizes))

    assert sliced([2, 4, 1, 1], devices(2, 4))[:, :, 0, 0].tolist() == [[0] * 4, [1] * 4]
    assert sliced([1, 4, 2, 1], devices(2, 4))[0, :, :, 0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(UserError, match="do not split over 2 slices"):
        sliced([1, 1, 8, 1], devices(2, 4))


LEAVING = """
import sys
from models import distributed

address, process = sys.argv[1], int(sys.argv[2])
distributed.join((address, 2, process), 60)
distributed.wait()
if process:
    distributed.leave(2)
try:
    distributed.wait(3)
except Exception:
    print("told", file=sys.stderr)
else:
    print("went on", file=sys.stderr)
sys.stderr.flush()
distributed.leave(0)
"""


@pytest.mark.slow
def test_a_process_that_leaves_is_nobody_that_others_wait_for():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LEAVING, address]
    started = [
        subprocess.Popen([*command, str(process)], stderr=subprocess.PIPE, text=True, env=environment)
        for process in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert "told" in said[0], said[0][-2000:]
    assert "went on" not in said[0]
    assert started[1].returncode == 2
