"""Attention under the masks of this field: how long each implementation takes, how exact it is, and what it keeps.

python -m benchmarks.attention [--only=TEXT] [--batch=1] [--heads=4] [--width=64] [--dtype=float32] [--rounds=5] [--json]
python -m benchmarks.attention --static --topology=v6e:2x2 [--only=TEXT] [--width=64] [--blocks=256,256] [--json]

The first times our implementations, `jax.nn.dot_product_attention` and, where they are to be had, cuDNN's, splash attention
and tokamax's kernels, in turns, on this machine: medians, and how much longer they take than the fastest; the greatest error
against float64; the memory of temporaries. The second needs jax[tpu] and no TPU: it counts the bundles of instructions that
the compiler schedules for a block of our kernel, and of splash attention where that serves the mask.
"""

import argparse
import importlib.util
import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import bundles
from benchmarks.masks import MASKS, by_splash, served
from benchmarks.turns import in_turns, seconds
from models.attention import IMPLEMENTATIONS, attention
from models.errors import UserError
from models.kernels.pallas_tpu import Blocks
from models.kernels.reference import error, reference

MIB = 2**20
SPLASH_BLOCKS = (128, 256, 512)  # of as many queries as keys
COLUMNS = {  # of the tables: a title, the row's field, how it is written
    False: [("mask", "mask", ""), ("pass", "pass", ""), ("implementation", "implementation", ""), ("ms", "milliseconds", ".2f"),
            ("of the fastest", "of_the_fastest", ".2f"), ("error", "error", ".1e"), ("MiB", "temporaries_mib", ".1f")],
    True: [("mask", "mask", ""), ("pass", "pass", ""), ("blocks", "blocks_visited", ""), ("bundles", "bundles_per_block", ""),
           ("MXU", "mxu_use", ".0%"), ("splash: blocks", "splash_blocks_visited", ""),
           ("bundles", "splash_bundles_per_block", ""), ("MXU", "splash_mxu_use", ".0%")],
}  # fmt: skip


class Peer(NamedTuple):
    """Somebody's attention.

    Attributes:
      run: of queries, keys and values.
      keys: how it wants the last two: "BSGd", or "BGSd".
    """

    run: Callable[..., jax.Array]
    keys: str = "BSGd"


def peers(name: str, dtype: Any, heads: int) -> dict[str, Peer]:
    """Who can serve a mask here."""
    visibility, platform = MASKS[name], jax.default_backend()
    mask = jnp.asarray(visibility.as_array())[None, None]
    ours = [each for each in IMPLEMENTATIONS if not each.startswith("pallas") or each.endswith(platform)]
    found = {each: Peer(partial(attention, visibility=visibility, implementation=each), "BGSd") for each in ours}
    found["jax.nn"] = Peer(partial(jax.nn.dot_product_attention, mask=mask))
    if platform == "gpu" and dtype == jnp.bfloat16:
        how: dict[str, Any] = {"is_causal": True} if name.startswith("causal") else {"mask": mask}
        found["cudnn"] = Peer(partial(jax.nn.dot_product_attention, implementation="cudnn", **how))
    for size in SPLASH_BLOCKS if platform == "tpu" else ():
        if served(name, size, size):
            found[f"splash {size}"] = Peer(by_splash(name, heads, size, size).run, "BGSd")
    if importlib.util.find_spec("tokamax"):
        import tokamax

        flags.FLAGS.mark_as_parsed()  # which tokamax would read from this command line
        for each in {"tpu": ["mosaic"], "gpu": ["mosaic", "triton"]}.get(platform, ["xla", "xla_chunked"]):
            found[f"tokamax {each}"] = Peer(partial(tokamax.dot_product_attention, mask=mask, implementation=each))
    return found


def drawn(name: str, options: argparse.Namespace) -> list[jax.Array]:
    """Queries, keys, values (B, T, H, d), and the gradient of what comes out."""
    random, (T, S) = np.random.default_rng(0), MASKS[name].as_array().shape
    shapes = [(options.batch, slots, options.heads, options.width) for slots in (T, S, S, T)]
    return [jnp.asarray(random.normal(size=shape), options.dtype) for shape in shapes]


def forward(run: Callable[..., jax.Array], *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The output alone."""
    return (run(*arrays[:3]),)


PASSES: dict[str, Callable[..., tuple[jax.Array, ...]]] = {
    "forward": forward,
    "forward + backward": lambda run, *arrays: tuple(jax.tree.leaves(bundles.both_passes(run, *arrays))),
}


def timed(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every pass and everybody who can serve a mask."""
    q, k, v, gradient = drawn(name, options)
    arrays = {"BSGd": (q, k, v, gradient), "BGSd": (q, k.swapaxes(1, 2), v.swapaxes(1, 2), gradient)}
    out, dq, *of_keys = reference(*arrays["BGSd"], MASKS[name])
    expected = {"BGSd": (out, dq, *of_keys), "BSGd": (out, dq, *(x.swapaxes(1, 2) for x in of_keys))}
    everybody = peers(name, jnp.dtype(options.dtype), options.heads)
    for kind, passes in PASSES.items():
        calls, rows = {}, {}
        for who, (run, keys) in everybody.items():
            row: dict[str, Any] = {"mask": name, "pass": kind, "implementation": who}
            try:
                program = jax.jit(partial(passes, run)).lower(*arrays[keys]).compile()
                row["error"] = error(program(*arrays[keys]), expected[keys])
            except Exception as refusal:  # everybody has a way of their own to say what they do not serve
                yield row | {"refused": (str(refusal).strip() or type(refusal).__name__).splitlines()[0]}
                continue
            row["temporaries_mib"] = program.memory_analysis().temp_size_in_bytes / MIB
            once = partial(lambda program, *given: jax.block_until_ready(program(*given)), program, *arrays[keys])
            calls[who], rows[who] = partial(seconds, once), row
        median = {who: statistics.median(times) for who, times in in_turns(calls, options.rounds).items()}
        for who, row in rows.items():
            yield row | {"milliseconds": 1e3 * median[who], "of_the_fastest": median[who] / min(median.values())}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--static", action="store_true", help="count bundles for chips that are not here")
    parser.add_argument("--topology", default="v6e:2x2", help="of which chips, with --static")
    parser.add_argument("--blocks", default="256,256", help="queries and keys of a block, with --static")
    parser.add_argument("--only", default="", help="masks whose names hold this")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="a line of JSON for every row")
    options = parser.parse_args()
    measure = partial(timed, options=options)
    if options.static:
        jax.config.update("jax_platforms", "cpu")
        blocks = Blocks(*map(int, options.blocks.split(",")))
        measure = partial(bundles.rows, bundles.open_chip(options.topology), width=options.width, blocks=blocks)
    head = COLUMNS[options.static]
    if not options.json:
        print(f"| {' | '.join(title for title, *_ in head)} |\n|{'---|' * len(head)}")
    for name in MASKS:
        for row in measure(name=name) if options.only in name else ():
            cells = [format(row[field], how) if row.get(field) is not None else "" for _, field, how in head]
            refused = f" {row['refused']}" if "refused" in row else ""
            print(json.dumps(row) if options.json else f"| {' | '.join(cells)} |{refused}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(str(problem)) from None
