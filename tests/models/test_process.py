"""What a process starts anew with."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models import process

LOADER = Path("/lib64/ld-linux-x86-64.so.2")


@pytest.fixture
def started(monkeypatch):
    """What the process is started anew with, on a machine without accelerators."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append((program, arguments, dict(os.environ))))
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_a_process_starts_anew_once_with_its_own_arguments(started):
    process.tune_malloc()
    ((program, arguments, environment),) = started
    assert (program, arguments) == (sys.executable, sys.orig_argv)
    assert dict(entry.split("=") for entry in environment["GLIBC_TUNABLES"].split(":")) == {
        f"glibc.malloc.{name}": str(value) for name, value in process.MALLOC.items()
    }
    process.tune_malloc()  # in the new process, whose environment says so
    assert len(started) == 1


def test_a_users_own_settings_stay(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    process.tune_malloc()
    assert not started
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"


@pytest.mark.parametrize("accelerator", ["nvidia0", "accel0", "vfio/0"])
def test_where_there_is_an_accelerator_nothing_is_done(started, monkeypatch, accelerator):
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: [Path(accelerator)] if Path(accelerator).match(pattern) else []
    )
    process.tune_malloc()
    assert not started


@pytest.mark.skipif(
    not LOADER.exists() or platform.libc_ver() < ("glibc", "2.35"), reason="another libc, or an old one"
)
def test_glibc_takes_the_settings(started):
    """It ignores what it does not know, and lists what it has: a wrong name or a value out of range would leave its default."""
    process.tune_malloc()
    listed = subprocess.run(
        [LOADER, "--list-tunables"], env=started[0][2], capture_output=True, text=True, check=True
    ).stdout
    found = dict(re.findall(r"^glibc\.malloc\.(\w+): (\w+)", listed, re.MULTILINE))
    for name, value in process.MALLOC.items():
        assert int(found[name], 0) == value
