"""Images/s of the Inception features, ours against torch-fidelity's network in PyTorch, in turns in one process.

python -m benchmarks.inception [--batch=16] [--rounds=7] [--size=64] [--threads=N]

Weights and images are random. Prints a table of the network's stages, then one line of JSON. Needs torch and
torch-fidelity (pip install --no-deps torch-fidelity).
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from evaluation.inception import inception_features, load_inception, resize
from evaluation.inception_network import STAGES, run_stage

THEIR_NAMES = {"pool1": "MaxPool_1", "pool2": "MaxPool_2"}
WANTED = ("768", "2048")


def network() -> torch.nn.Module:
    """torch-fidelity's module, without what its package imports beside."""
    spec = importlib.util.find_spec("torch_fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    module.load_state_dict_from_url = lambda *_, **__: {}
    module.FeatureExtractorInceptionV3.load_state_dict = lambda *_: None
    theirs = module.FeatureExtractorInceptionV3("network", ["2048"])
    torch.manual_seed(0)
    for name, tensor in theirs.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("bn.bias"):
            tensor.normal_(std=0.2)
    return theirs


def seconds_of(
    calls: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each call, in turns, after one call each that does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if turn:
                found[name].append(clock() - start)
    return found


def stages(theirs: torch.nn.Module, params: dict, images: np.ndarray, *how: Any) -> None:
    """Print the seconds of each stage on its own, the fastest of the rounds."""
    x = jax.block_until_ready((jax.jit(resize)(images) - 128) / 128)
    run = jax.jit(run_stage, static_argnums=1)
    print(f"{'stage':14} {'torch ms':>9} {'ours ms':>9} {'ratio':>6}")
    total = {"torch": 0.0, "ours": 0.0}
    for stage in STAGES:
        module = getattr(theirs, THEIR_NAMES.get(stage, stage))
        tensor = torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))
        own = {name: array for name, array in params.items() if name.startswith(stage)}
        calls = {"torch": lambda: module(tensor), "ours": lambda: jax.block_until_ready(run(own, stage, x))}  # noqa: B023
        best = {name: min(found) for name, found in seconds_of(calls, *how).items()}
        print(
            f"{stage:14} {1e3 * best['torch']:9.1f} {1e3 * best['ours']:9.1f} {best['torch'] / best['ours']:6.2f}",
            flush=True,
        )
        total = {name: total[name] + best[name] for name in total}
        x = run(own, stage, x)
    print(f"{'sum':14} {1e3 * total['torch']:9.1f} {1e3 * total['ours']:9.1f} {total['torch'] / total['ours']:6.2f}")


def whole(theirs: torch.nn.Module, params: dict, images: np.ndarray, *how: Any) -> dict[str, float]:
    """Images/s with the resize, the median of the rounds, of both for each feature."""
    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    compute = jax.jit(inception_features, static_argnums=2)
    result = {}
    for wanted in WANTED:
        theirs.features_list = [wanted]
        calls = {"torch": lambda: theirs(tensor),
                 "ours": lambda: jax.block_until_ready(compute(params, images, (wanted,)))}  # noqa: B023 # fmt: skip
        found = seconds_of(calls, *how)
        for name, seconds in found.items():
            result[f"{name}_{wanted}_images_per_second"] = len(images) / statistics.median(seconds)
        result[f"ratio_{wanted}"] = statistics.median(found["torch"]) / statistics.median(found["ours"])
        result[f"ratio_of_fastest_{wanted}"] = min(found["torch"]) / min(found["ours"])
    return {name: round(value, 3) for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=64, help="pixels a side of the images")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch; JAX takes all cores"
    )
    parser.add_argument("--no-stages", action="store_true", help="only the whole network")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the seconds that cores worked: for a busy machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    theirs = network()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder) / "weights.pth")
        params = load_inception(Path(folder) / "weights.pth").params
    images = np.random.default_rng(0).integers(0, 256, (options.batch, options.size, options.size, 3), np.uint8)
    with torch.no_grad():
        if not options.no_stages:
            stages(theirs, params, images, options.rounds, clock)
        result = whole(theirs, params, images, options.rounds, clock)
    print(json.dumps({"batch": options.batch, "threads": options.threads, "torch": torch.__version__, "jax": jax.__version__,
                      **result}))  # fmt: skip


if __name__ == "__main__":
    main()
