"""How a process is set up before anything large is allocated."""

import os
import sys
from pathlib import Path

MALLOC = {
    "hugetlb": 1,  # huge pages: the kernel clears each that it gives, and of small ones there are 512 times as many
    "mmap_max": 0,  # nothing in a mapping of its own, which would be given back when it is freed ...
    "trim_threshold": 2**40,  # ... nor the end of the heap,
    "arena_max": 1,  # and one heap, so that what one thread has freed serves the others
}


def tune_malloc() -> None:
    """On a CPU, start anew with a malloc that keeps what is freed, in huge pages; a user's own GLIBC_TUNABLES stay.

    A training step allocates and frees gigabytes. Given back to the kernel and asked for again they are cleared page by page
    in every step. glibc reads its settings when a process starts.
    """
    accelerators = [
        path for pattern in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern)
    ]
    if "GLIBC_TUNABLES" in os.environ or accelerators or not sys.platform.startswith("linux"):
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in MALLOC.items())
    os.execv(sys.executable, sys.orig_argv)
