"""Images/s of sampling at published sizes with random weights, float32, tokens only, and how far from the floor that is.

python -m benchmarks.sampling_speed [llamagen|var] [--rounds=3] [--beside="COMMAND"]

The floor of a call of the model is the longer of two times: every weight read once at this machine's measured memory
bandwidth, or its products at the measured matrix rate. COMMAND is another program to time in turns with this one: for every
line on its standard input it samples the same once and prints the seconds that it took. Prints one line of JSON.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from benchmarks.turns import beside, in_turns, matrix_rate, read_rate, seconds
from configs import llamagen, var
from generator.generator import describe_generator
from generator.sampling.samplers import build_sampler
from jobs.feeds import FEEDS
from models.process import tune_malloc
from tokenizer.tokenizer import describe_tokenizer, token_spec


class Case(NamedTuple):
    """What is sampled: a config, a number of images, and the sampler's settings."""

    config: Any
    images: int
    sampler: dict[str, Any]


CASES: dict[str, Callable[[], Case]] = {
    "llamagen": lambda: Case(llamagen.get_config("size=B"), 4, {"guidance_scale": 2.0, "top_k": 2000}),
    "var": lambda: Case(var.get_config("depth=16"), 2, {}),
}


def random(shapes: Any) -> Any:
    """Parameters drawn at random, so that no branch vanishes."""
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))
    return jax.tree.map(lambda leaf: 0.02 * jax.random.normal(next(keys), leaf.shape, leaf.dtype), shapes)


def sampling(case: Case) -> tuple[Callable[[], Any], list[tuple[float, float]]]:
    """A call that samples a batch; for every call of the model the bytes that it must read, and its operations."""
    config = case.config
    config.generator.dtype = "float32"
    config.sampler.update(case.sampler)
    tokenizer = describe_tokenizer(config)
    generator = describe_generator(config, token_spec(tokenizer), scan_layers=False)
    params = random(generator.shapes), random(tokenizer.shapes["quantizer"])
    sample = build_sampler(config.sampler.to_dict(), 0, generator.merge(generator.shapes))

    @jax.jit
    def program(params: Any, labels: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        model, codes = generator.merge(params[0]), tokenizer.merge({**tokenizer.shapes, "quantizer": params[1]})
        output = sample(model, labels, images, FEEDS[model.layout.feed](codes))
        return output.tokens.ids, output.calls

    labels, images = jnp.arange(case.images) % 1000, jnp.arange(case.images)
    run = program.lower(params, labels, images).compile()
    layout, width, depth = generator.merge(generator.shapes).layout, config.generator.width, config.generator.depth
    weights = matrices(generator.shapes["transformer"]["blocks"]) + matrices(generator.shapes["head"])
    calls = []
    for start, stop in layout.groups:
        rows = 2 * case.images * (stop - start)  # with and without condition
        calls.append((4.0 * weights, 2.0 * rows * weights + 4.0 * rows * stop * width * depth))
    return (lambda: jax.block_until_ready(run(params, labels, images))), calls


def matrices(shapes: Any) -> int:
    """Weights that every row is multiplied with; those of modulations are used once an image."""
    found = jax.tree_util.tree_leaves_with_path(shapes)
    return sum(leaf.size for path, leaf in found if leaf.ndim == 2 and "modulation" not in jax.tree_util.keystr(path))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES, nargs="?", default="llamagen")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", default="", help="another program to time in turns")
    options = parser.parse_args()
    case = CASES[options.case]()
    run, calls = sampling(case)
    timed: dict[str, Callable[[], float]] = {"ours": lambda: seconds(run)}
    with ExitStack() as others:
        if options.beside:
            timed["beside"] = others.enter_context(beside(options.beside))
        measured = in_turns(timed | {"bandwidth": read_rate, "rate": matrix_rate}, options.rounds)
    bandwidth, rate = max(measured["bandwidth"]), max(measured["rate"])
    floor = sum(max(read / bandwidth, operations / rate) for read, operations in calls)
    ours = statistics.median(measured["ours"])
    found = {
        "case": options.case, "images": case.images, "calls": len(calls), "seconds": measured["ours"],
        "images_per_second": case.images / ours, "floor_seconds": floor, "times_the_floor": ours / floor,
        "bandwidth_gb_per_second": bandwidth / 1e9, "matrix_gflop_per_second": rate / 1e9,
        "load_average": os.getloadavg()[0],
    }  # fmt: skip
    if options.beside:
        found |= {"beside_seconds": measured["beside"], "ratio": statistics.median(measured["beside"]) / ours}
    print(json.dumps(found))


if __name__ == "__main__":
    tune_malloc()
    main()
