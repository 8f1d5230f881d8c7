"""A run that is killed at random moments, most of them in or near a save, ends as the run that nobody disturbed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import contents, finish, losses, start, steps

from training.metrics import read_metrics

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
STEPS = 120
FIELDS = {"steps": STEPS, "save_every": 3, "keep_last": 2, "log_every": 1}
# Children of one process that has imported everything: a start takes a second or two instead of many.
SCRIPT = """
import json, os, random, signal, sys, time
import grain, jax, orbax.checkpoint, training.loop, conftest
from pathlib import Path
from runs import steps, tiny_run

directory, fields, kills = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
chance, found = random.Random(0), []
folder = directory / "checkpoints"

def child():
    pid = os.fork()
    if not pid:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        tiny_run(directory, **fields)
        os._exit(0)
    return pid

for number in range(kills):
    pid, before = child(), set(os.listdir(folder)) if folder.is_dir() else set()
    # Three of four within a save: after something new appears beside the checkpoints of the run before.
    while number % 4 and not (folder.is_dir() and set(os.listdir(folder)) - before):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "ended before it was killed"
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.3) if number % 4 else chance.uniform(0, 4))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    unfinished = [name for name in os.listdir(folder) if "tmp" in name] if folder.is_dir() else []
    found.append({"killed": os.WIFSIGNALED(status), "steps": steps(directory), "unfinished": unfinished})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed") / "w"
    finish(start(directory, **FIELDS))
    return directory


def test_twenty_kills_change_nothing(undisturbed, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HERE.parent.parent}:{HERE}"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "w", json.dumps(FIELDS), "20"], capture_output=True,
                          text=True, env=environment, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(run["killed"] for run in found)
    reached = [max(run["steps"], default=0) for run in found]
    assert reached == sorted(reached)  # no kill costs a finished checkpoint
    assert len(set(reached)) > 5
    assert any(run["unfinished"] for run in found)  # some hit a save
    out, err = finish(start(tmp_path / "w", **FIELDS))[0]
    assert "damaged" not in out + err
    assert contents(tmp_path / "w", STEPS) == contents(undisturbed, STEPS)
    assert losses(tmp_path / "w") == losses(undisturbed)
    assert (
        len(read_metrics(tmp_path / "w" / "metrics.jsonl")) == STEPS + STEPS // 3 + 1
    )  # each step and evaluation once, and the goodput
    assert steps(tmp_path / "w")[-2:] == [STEPS - 3, STEPS]
    assert not [path for path in (tmp_path / "w").rglob("*") if "tmp" in path.name]


def test_full_disk_is_one_line_and_the_checkpoint_before_is_whole(undisturbed, tmp_path):
    directory = tmp_path / "w"
    short = FIELDS | {"steps": 6}
    finish(start(directory, **short))
    # What a full disk does to a write, this limit does to one of more than 8 KB: an array's, not a line of metrics.
    longer = {"directory": str(directory), "fields": FIELDS | {"steps": 12}}
    limited = ("import json, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); import runs; "
               "runs.main({'join': [None] * 3, 'pause': 0.0, 'blind': None, **json.loads(sys.argv[1])})")  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HERE.parent.parent}:{HERE}"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", limited, json.dumps(longer)], capture_output=True, text=True,
                          env=environment, timeout=300)  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = re.findall("error: .*", done.stderr)  # threads of tensorstore may write beside it
    assert "a checkpoint cannot be written to " in line
    assert str(directory) in line
    assert "File too large" in line
    assert "the last good checkpoint is step 6" in line
    assert steps(directory)[-1] == 6
    out = finish(start(directory, **FIELDS))[0][0]
    assert "going on at step 6" in out
    assert contents(directory, STEPS) == contents(undisturbed, STEPS)
