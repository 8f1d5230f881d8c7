"""Tokens/s of training LlamaGen-B on a CPU: float32, batch 8, 256 tokens, random ones, and how near the matrix rate that is.

python -m benchmarks.training_speed [--rounds=5] [--remat=none] [--beside="COMMAND"] [--json]

A step is the training loop's own, with dropout, clipping, AdamW and the average of the weights. COMMAND is another program to
time in turns with it: for every line on its standard input it makes one step and prints the seconds that it took. The
utilisation is what the model's products (`training.model_flops`) would take at the machine's matrix rate, the best that was
measured in the same turns, as a share of what the step took; what is computed anew does not count.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.turns import beside, in_turns, matrix_rate, seconds
from configs import llamagen
from generator.generator import describe_generator
from generator.learner import GeneratorLearner
from models import sharding
from models.process import tune_malloc
from models.transformer import REMATERIALISATION
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.loop import compile_step
from training.step import make_init, place_batch, state_shardings

BATCH = 8


def training(config: ConfigDict, images: int) -> tuple[Callable[[], None], int, float]:
    """A call that makes a step of so many images; its tokens, and the operations of its matrix products."""
    config.generator.dtype = "float32"
    section, mesh = config.training.generator.to_dict(), sharding.make_mesh(config.mesh)
    spec = token_spec(describe_tokenizer(config))
    learner = GeneratorLearner(describe_generator(config, spec, scan_layers=True))
    init, key = make_init(learner, section), jax.random.key(0)
    places = state_shardings(learner, section, jax.eval_shape(init, key), mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(init, out_shardings=places)(key)
    step, random = compile_step(learner, {}, section, places, mesh, 0), np.random.default_rng(0)

    def batch() -> Any:
        ids = random.integers(0, spec.sizes[0], (images, spec.positions, 1), dtype=np.int32)
        label = random.integers(0, config.data.classes, images, dtype=np.int32)
        return place_batch({"ids": ids, "label": label}, mesh)

    def once() -> None:
        nonlocal state
        state, metrics = step(state, batch())
        float(jax.block_until_ready((state, metrics))[1]["loss"])

    return once, images * spec.positions, step.flops(state, batch())


def cpu_seconds(call: Callable[[], None]) -> tuple[float, float]:
    """How long a call takes, and how long on all cores together."""
    before = time.process_time()
    return seconds(call), time.process_time() - before


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--remat", choices=REMATERIALISATION, default="none")
    parser.add_argument("--beside", default="", help="another program to time in turns")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    config = llamagen.get_config("size=B")
    config.generator.remat = options.remat
    step, tokens, operations = training(config, BATCH)
    cpu: list[float] = []

    def ours() -> float:
        took, of_cores = cpu_seconds(step)
        cpu.append(of_cores)
        return took

    timed: dict[str, Callable[[], float]] = {"rate": matrix_rate, "ours": ours}
    with ExitStack() as others:
        if options.beside:
            timed["beside"] = others.enter_context(beside(options.beside))
        measured = in_turns(timed, options.rounds)
    took, rate = statistics.median(measured["ours"]), max(measured["rate"])
    found = {
        "seconds": measured["ours"], "tokens_per_second": tokens / took, "teraflop": operations / 1e12,
        "matrix_gflop_per_second": rate / 1e9, "utilisation": operations / took / rate,
        "best_utilisation": operations / min(measured["ours"]) / rate,
        "cpu_seconds": statistics.median(cpu[1:]),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "load_average": os.getloadavg()[0],
    }  # fmt: skip
    if options.beside:
        other = statistics.median(measured["beside"])
        found |= {
            "beside_seconds": measured["beside"], "beside_tokens_per_second": tokens / other, "ratio": other / took
        }  # fmt: skip
    print(json.dumps(found) if options.json else "\n".join(f"{name:25}{shown(value)}" for name, value in found.items()))


def shown(value: Any) -> str:
    """A number, or several, with three places."""
    return " ".join(f"{number:.3f}" for number in value) if isinstance(value, list) else f"{value:.3f}"


if __name__ == "__main__":
    tune_malloc()
    main()
