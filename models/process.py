"""How a process is set up before anything large is allocated."""

import os
import sys
from pathlib import Path


def use_huge_pages() -> None:
    """On a CPU, start anew with a malloc that asks for huge pages.

    A training step allocates and frees hundreds of megabytes, and the kernel clears every page anew; with small pages that
    takes a third of the demo's time. glibc reads its settings when a process starts.
    """
    accelerators = [
        path for pattern in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern)
    ]
    if "GLIBC_TUNABLES" in os.environ or accelerators or not sys.platform.startswith("linux"):
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, sys.orig_argv)
