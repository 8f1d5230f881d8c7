"""Two processes on this machine are one run: killed, preempted, and joined by fewer or more, it ends as undisturbed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import contents, finish, free_port, kill, losses, start, steps, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
STEPS = 40
FIELDS = {"steps": STEPS, "save_every": 10, "keep_last": 2}
PAUSE = 0.02  # seconds an example, so that a signal arrives before the end


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed") / "w"
    finish(start(directory, processes=2, **FIELDS))
    return directory


def test_killed_process_and_the_one_it_left_go_on_together(undisturbed, tmp_path):
    started = start(tmp_path / "w", processes=2, pause=PAUSE, **FIELDS)
    wait_for(lambda: steps(tmp_path / "w"), started)
    started[1].send_signal(signal.SIGKILL)
    kill(started)
    assert STEPS not in steps(tmp_path / "w")
    out = finish(start(tmp_path / "w", processes=2, **FIELDS))[0][0]
    assert "going on at step" in out
    assert contents(tmp_path / "w", STEPS) == contents(undisturbed, STEPS)
    assert losses(tmp_path / "w") == losses(undisturbed)


def test_preempted_process_stops_both_at_one_step_and_a_run_changes_its_number_of_hosts(undisturbed, tmp_path):
    """One host with two devices, then two hosts with one each, then one again: the same devices, the same bits."""
    directory = tmp_path / "w"
    finish(start(directory, devices=2, **FIELDS | {"steps": 5, "save_every": 5}))
    started = start(directory, processes=2, pause=PAUSE, **FIELDS)
    wait_for(lambda: steps(directory)[-1] >= 10, started)
    started[1].send_signal(signal.SIGTERM)
    said = finish(started)
    stopped = steps(directory)[-1]
    assert 10 < stopped < STEPS
    assert f"generator: stopped and saved at step {stopped} of {STEPS}" in said[0][0]
    assert contents(directory, stopped)[1] == ['{\n    "next_index": %d\n}' % (4 * stopped)] * 2  # noqa: UP031
    out = finish(start(directory, devices=2, **FIELDS))[0][0]
    assert f"going on at step {stopped}" in out
    (sums, places), (expected, _) = contents(directory, STEPS), contents(undisturbed, STEPS)
    assert places == ['{\n    "next_index": %d\n}' % (8 * STEPS)]  # noqa: UP031
    assert sums == {**expected, "readers": 1}
    assert losses(directory) == losses(undisturbed)


def test_checkpoint_that_one_host_cannot_read_is_passed_over_by_all(undisturbed, tmp_path):
    directory = shutil.copytree(undisturbed, tmp_path / "w")
    said = finish(start(directory, processes=2, blind=STEPS, **FIELDS))
    assert "going on at step 30" in said[0][0]
    assert "another process cannot read it" in said[0][1]
    assert "this process does not see it" in said[1][1]
    assert (directory / "checkpoints" / f"damaged-{STEPS}-0").is_dir()
    assert contents(directory, STEPS) == contents(undisturbed, STEPS)


def test_batch_that_the_hosts_cannot_share(tmp_path):
    for _, err in finish(start(tmp_path / "w", processes=2, **FIELDS | {"batch_size": 9}), code=2):
        assert (
            "error: batch_size 9 does not divide into 1 part(s) over 2 parts of the mesh on 2 host(s); take 8 or 10."
            in err
        )
    assert not steps(tmp_path / "w")


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_do_not_come_are_told_in_time(tmp_path, process):
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, ROOT / "main.py", "--job=train", f"--workdir={tmp_path / 'w'}", "--join_timeout=2",
               f"--coordinator={address}", "--processes=2", f"--process={process}"]  # fmt: skip
    began = time.monotonic()
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=100
    )
    assert time.monotonic() - began < 60
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"{address} within 2 s" in line
    assert "--join_timeout" in line
    assert not (tmp_path / "w").exists()
