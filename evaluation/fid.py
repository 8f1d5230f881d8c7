"""The distance between two sets of images, with no checkpoint.

    python -m evaluation.fid SAMPLES REFERENCE [--features=2048|768|192|64] [--weights=FILE]

Each is a folder of images, an npz of images (uint8 (N, h, w, 3 or 1) under `arr_0`, `images` or its only array), an npz of
statistics (mu and sigma, also ADM's), or a dataset's split (cifar10:test, npz:train:DIR). The last line is one JSON object.
Only distances on the 2048 features are called FID.
"""

import argparse
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.feature_metrics import PARAMETERS, POOLED, compare, suffix
from evaluation.features import inception_extractor
from evaluation.inception import load_inception
from evaluation.references import open_reference
from models.errors import UserError
from models.process import tune_malloc

SEED = 0  # of KID's subsets and the Inception score's splits
BESIDE = {True: ("sfid", "inception_score", "inception_score_std"), False: ()}  # whether features are the 2048


def measure_distance(
    samples: str, reference: str, *, features: str, weights: str | None, resolution: int
) -> dict[str, Any]:
    """What the command's last line holds.

    Args:
      samples: the first set; precision is the share of it that lies where the second does.
      reference: the second set, whose features are kept in the cache.
      features: one of `POOLED`.
      weights: file, "download", or None for what `load_inception` finds.
      resolution: brings all images to it first; 0 leaves them.

    Raises:
      UserError: one of them cannot be had or does not fit.
    """
    a, b = (open_reference(text, resolution=resolution) for text in (samples, reference))
    inception = load_inception(weights)
    if features not in inception.features:
        raise UserError(f"these weights give the features {', '.join(inception.features)}; choose one with --features.")
    wanted = (features, "spatial", "logits") if features == "2048" else (features,)
    extractor = inception_extractor(inception, tuple(name for name in wanted if name in inception.features))
    with tempfile.TemporaryDirectory() as folder:
        seen = a.features([extractor], Path(folder))
    expected = b.features([extractor])
    report = compare(seen, expected, seed=SEED)
    end = suffix(features)
    short = ("fid", "kid", "kid_std", "precision", "recall", "density", "coverage")
    named = {name: f"{name}{end}" for name in short} | {name: name for name in BESIDE[features == "2048"]}
    speeds = [found.images_per_second for found in (seen, expected) if found.images_per_second]
    return {
        **{name: report.metrics.get(f"{name}{end}") for name in short},
        "fid": report.metrics.get("fid"),  # of the 2048 features alone
        f"fid_{features}": report.metrics.get(f"fid{end}"),
        **{name: report.metrics.get(name) for name in BESIDE[features == "2048"]},
        "features": features, "resolution": resolution or None, "seed": SEED, "parameters": PARAMETERS,
        "a": a.name, "b": b.name, "n_a": a.count, "n_b": b.count, "a_sha256": a.sha256, "b_sha256": b.sha256,
        "images_per_second": speeds[0] if speeds else None,
        "weights_sha256": inception.sha256,
        "missing": {name: report.missing[metric] for name, metric in named.items() if metric in report.missing},
        "warnings": report.warnings,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "scipy")},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with one line about what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.fid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", metavar="SAMPLES")
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument("--features", choices=POOLED, default="2048")
    parser.add_argument("--weights", help="file, or `download`; by default $TESSERA_WEIGHTS or an earlier download")
    parser.add_argument("--resolution", type=int, default=0, help="bring all images to this size first, as ADM does")
    options = parser.parse_args(arguments)
    if options.resolution < 0:
        parser.error(f"--resolution is {options.resolution}; it is a side in pixels, or 0.")
    try:
        found = measure_distance(
            options.samples, options.reference, features=options.features, weights=options.weights,
            resolution=options.resolution,
        )  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for warning in found["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(found, allow_nan=False))
    return 0


if __name__ == "__main__":
    tune_malloc()
    sys.exit(main())
