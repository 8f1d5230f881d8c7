"""Training steps compiled for TPU pods that are not here: README's table of memory, bounds and compile seconds.

python -m benchmarks.compile [--only=TEXT] [--json]

Needs jax[tpu] and no TPU. A row is what --job=compile says of the step (`jobs.compilation`), printed as soon as it is
known; --only takes the rows that hold TEXT.
"""

import argparse
import json
import os
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from ml_collections import ConfigDict

from configs import llamagen, var
from jobs.compilation import Record, compile_program, usable_bytes
from jobs.programs import training
from jobs.topologies import Topology, open_topology
from models.errors import UserError
from training.chips import GIB

TOPOLOGIES = ("v5e:16x16", "v5p:8x8x8", "v6e:16x16")
FSDP = 64  # chips that share the parameters; the others are copies of such a group


class Case(NamedTuple):
    """A stage to train, images a chip, and what its backward pass computes anew."""

    config: Callable[[], ConfigDict]
    stage: str
    images: int
    remat: str


CASES = {
    "LlamaGen-L": Case(lambda: llamagen.get_config("size=L"), "generator", 8, "dots"),
    "LlamaGen-XL": Case(lambda: llamagen.get_config("size=XL"), "generator", 16, "dots"),
    "LlamaGen-3B": Case(lambda: llamagen.get_config("size=3B"), "generator", 16, "dots"),
    "VAR-d16": Case(lambda: var.get_config("depth=16"), "generator", 4, "dots"),
    "VAR-d30": Case(lambda: var.get_config("depth=30"), "generator", 4, "dots"),
    "LlamaGen's tokenizer": Case(lambda: llamagen.get_config("size=L"), "tokenizer", 4, "none"),
    "VAR's tokenizer": Case(lambda: var.get_config("depth=16"), "tokenizer", 4, "none"),
}
HEAD = (
    "program",
    "chips",
    "images a step",
    "GiB a chip",
    "compute, memory, links, ms",
    "utilisation at most",
    "compiled in",
)


def compiled(case: Case, chips: Topology) -> Record:
    """What the compiler says of a case."""
    config = case.config()
    config.training[case.stage].batch_size = case.images * chips.chips
    config.generator.remat = case.remat
    config.mesh.update(data=-1, fsdp=FSDP)
    return compile_program(training(config, case.stage, chips.devices), chips, usable_bytes(chips))


def cells(name: str, topology: str, record: Record) -> list[str]:
    """A row of the table, under `HEAD`."""
    memory = f"{record['bytes_per_chip'] / GIB:.1f} of {record['hbm_bytes'] / GIB:.1f}"
    bounds = ["does not fit", ""]
    if record["fits"]:
        busy = ", ".join(f"{1e3 * record['seconds'][kind]:.0f}" for kind in ("compute", "memory", "links"))
        bounds = [busy, f"{record['mfu_bound']:.0%}"]
    return [name, topology, str(record["images"]), memory, *bounds, f"{record['compile_seconds']:.0f} s"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows that hold this")
    parser.add_argument("--json", action="store_true", help="a line of JSON for every row")
    options = parser.parse_args()
    # No program is read back from a cache for chips that are not there.
    jax.config.update("jax_enable_compilation_cache", False)
    if not options.json:
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name, case in CASES.items():
        for topology in TOPOLOGIES:
            if options.only not in f"{name} {topology}":
                continue
            record = compiled(case, open_topology(topology))
            row = {"case": name, "topology": topology} | record
            print(json.dumps(row) if options.json else f"| {' | '.join(cells(name, topology, record))} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
