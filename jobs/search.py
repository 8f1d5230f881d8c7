"""Find the sampler's settings: a distance over guidance scale, temperature and top-k, then the best setting in full."""

import itertools
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from evaluation.pictures import search_curves
from jobs import evaluate, records
from jobs.judges import Judges, call_judges
from models.errors import UserError
from models.files import write_json

SETTINGS = ("guidance_scale", "temperature", "top_k")
RANKED_BY = ("fid", "fid_768", "cfd")  # the first of them that there is
BESIDE = ("kid", "kid_768", "precision", "precision_768", "recall", "recall_768", "class_accuracy")


def run(config: ConfigDict, workdir: Path) -> None:
    """W/eval/search-<step>.json and .png: a row a setting, and the best setting evaluated with all samples.

    Raises:
      UserError: no setting to try, or nothing to rank them by.
    """
    grid, metric = config.evaluation.search, ""
    for name in SETTINGS:
        if not grid[name]:
            raise UserError(f"evaluation.search.{name} is empty; name one value or more.")
    judges = call_judges(config, workdir)
    rows: list[dict[str, Any]] = []
    for values in itertools.product(*(grid[name] for name in SETTINGS)):
        setting = dict(zip(SETTINGS, values))
        print(described(setting), flush=True)
        found = measure(config, workdir, judges, setting, f"search/{described(setting, ',')}", grid.samples)
        config.evaluation.step = found.settings["step"]  # a training beside it may go on
        metric = next((name for name in RANKED_BY if name in found.metrics), "")
        if not metric:
            raise UserError("there is no distance to rank by; bring Inception weights, or fit a classifier.")
        rows.append(setting | {name: found.metrics[name] for name in (*RANKED_BY, *BESIDE) if name in found.metrics})
    best = min(rows, key=lambda row: row[metric])
    chosen = {name: best[name] for name in SETTINGS}
    full = measure(config, workdir, judges, chosen, config.evaluation.name, config.evaluation.samples)

    settings = full.settings | {"search": json.loads(json.dumps(grid.to_dict()))}
    path, _ = records.find(workdir, f"search-{config.evaluation.step}", settings)
    if jax.process_index() == 0:
        write_json(path, {"settings": settings, "metric": metric, "rows": rows, "best": best, "final": full.metrics})
        search_curves(path.with_suffix(".png"), rows, metric)
    for row in rows:
        print(described(row), "<- best" if row is best else "")
    print(f"{path}: {metric} {full.metrics[metric]:.4g} of {config.evaluation.samples} samples at {described(chosen)}")


def measure(
    config: ConfigDict, workdir: Path, judges: Judges, setting: dict[str, Any], name: str, samples: int
) -> records.Record:
    """The evaluation of one setting of the sampler."""
    tried = config.copy_and_resolve_references()
    tried.sampler.update(setting)
    tried.evaluation.update(name=name, samples=samples)
    return evaluate.evaluate(tried, workdir, judges)


def described(values: dict[str, Any], between: str = ", ") -> str:
    """`guidance_scale=2, temperature=1, top_k=0`."""
    return between.join(f"{name}={value:.4g}" for name, value in values.items())
