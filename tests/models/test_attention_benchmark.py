"""The benchmark of attention: its rows on this machine, and what it counts for a TPU that is not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bundles import Region, regions

ROOT = Path(__file__).parent.parent.parent


def rows(*arguments):
    command = [sys.executable, "-m", "benchmarks.attention", "--json", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_everybody_is_timed_and_compared_with_float64():
    found = rows("--only=16 x 16", "--rounds=1")
    ways = [(row["pass"], row["implementation"]) for row in found if not row["implementation"].startswith("tokamax")]
    assert ways == [
        (kind, name) for kind in ("forward", "forward + backward") for name in ("xla", "xla_chunked", "jax.nn")
    ]
    for row in found:
        assert row["error"] < 2e-6
        assert row["milliseconds"] > 0
        assert row["of_the_fastest"] >= 1
        assert row["temporaries_mib"] > 0


def test_a_block_takes_no_more_bundles_than_splash_attention():
    """As this version of the compiler schedules both; and a mask that is sparser than a causal one visits fewer blocks."""
    pytest.importorskip("libtpu")
    found = {(row["mask"], row["pass"]): row for row in rows("--static", "--topology=v6e:2x2", "--only=1024")}
    assert len(found) == 6  # causal, a window, a prefix
    for (mask, _), row in found.items():
        if mask.startswith("prefix"):
            assert row["splash_bundles_per_block"] is None  # its length is not made of whole blocks
        else:
            assert row["bundles_per_block"] <= 1.05 * row["splash_bundles_per_block"]
            assert row["blocks_visited"] == row["splash_blocks_visited"]
        assert 0.1 < row["mxu_use"] < 1
    for kind in ("forward", "backward"):
        blocks = [found[mask, kind]["blocks_visited"] for mask in ("window 128 of 1024", "causal 1024")]
        assert blocks == [7, 10]


def test_regions_end_where_the_program_branches():
    text = """= control target key start
LH: loop header
     0   :  { %s1 = smov 1 }
   0x1   :  { %2 = sbr.rel (%p1) target bundleno = 5 (0x5), region = 3 }
   0x2   : > { %3 = vmatmul.mubr.bf16.gmra.mxu0 %v1  ;;  %4 = vmatmul.mubr.bf16.gmra.mxu1 %v2 }
   0x3   : > { %5 = vadd.f32 %v1, %v2 }
hlo: of a kernel
   0x4 PF: > { %6 = vst %v3 }
   0x5   : > { %7 = vst %v4 }
"""
    assert list(regions(text)) == [Region(2, 0), Region(2, 2), Region(2, 0)]
