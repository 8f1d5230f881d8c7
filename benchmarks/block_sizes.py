"""Rebuilds the table by which attention's blocks are sized on TPUs: models/kernels/block_sizes.json.

python -m benchmarks.block_sizes [--only=v6e]

Needs jax[tpu] and no TPU. For every kind of chip, width of a head and size of blocks it has the kernel compiled, and writes
down the bundles of instructions, one a cycle, of a visit to a block that everybody sees as a whole, of one whose entries are
compared, and of all around them, which is what a visit takes beside its products at most. Sizes that the compiler refuses
are left out.
"""

import argparse
import itertools
import json

import jax

from benchmarks.bundles import HEADS, PASSES, compiled, kernel_under, of_pass, open_chip
from models import masks
from models.errors import UserError
from models.kernels.block_sizes import TABLE, Blocks, known

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
WIDTHS = (64, 128)
SIZES = [
    Blocks(*pair) for pair in itertools.product((128, 256, 384, 512, 768, 1024), repeat=2) if max(pair) <= 2 * min(pair)
]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="topologies that hold this")
    options = parser.parse_args()
    rows = [row for row in known() if options.only not in row["topology"]]
    for topology in (name for name in TOPOLOGIES if options.only in name):
        chip = open_chip(topology)
        for width, blocks in itertools.product(WIDTHS, SIZES):
            length = 2 * max(blocks)
            of_queries, of_keys = (1, length, HEADS, width), (1, HEADS, length, width)
            program = kernel_under(masks.causal(length), blocks)
            try:
                kernels = compiled(chip, program, of_queries, of_keys, of_keys, of_queries)
            except jax.errors.JaxRuntimeError as error:
                print(topology, width, *blocks, str(error).splitlines()[0], flush=True)
                continue
            row = {"device": chip.device.device_kind, "topology": topology, "width": width, "blocks": blocks}
            for kind in PASSES:
                bundles, (whole, compared) = of_pass(kernels, kind)
                row[kind] = [whole.bundles, compared.bundles, bundles - whole.bundles - compared.bundles]
            rows.append(row)
            print(row, flush=True)
    rows.sort(key=lambda row: TOPOLOGIES.index(row["topology"]))
    TABLE.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(str(problem)) from None
