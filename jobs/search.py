"""Find the sampler's settings: a distance over guidance scale, temperature and top-k, then the best setting in full."""

import itertools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from evaluation.pictures import search_curves
from jobs import evaluate
from jobs.records import Record
from models.errors import UserError
from models.files import write_json

SETTINGS = ("guidance_scale", "temperature", "top_k")
RANKED_BY = ("fid", "fid_768", "cfd")  # the first of them that there is
BESIDE = ("kid", "kid_768", "precision", "precision_768", "recall", "recall_768", "class_accuracy")


def run(config: ConfigDict, workdir: Path) -> None:
    """W/eval/search-<step>.json and .png: a row a setting, and the best setting evaluated with all samples.

    Raises:
      UserError: nothing to rank the settings by.
    """
    grid = config.evaluation.search
    rows: list[dict[str, Any]] = []
    for values in itertools.product(*(grid[name] for name in SETTINGS)):
        setting = dict(zip(SETTINGS, values))
        print(described(setting), flush=True)
        found = measure(config, workdir, setting, name=f"search/{described(setting, ',')}", samples=grid.samples)
        rows.append(setting | {name: found.metrics[name] for name in (*RANKED_BY, *BESIDE) if name in found.metrics})
    metric = next((name for name in RANKED_BY if name in rows[0]), None)
    if metric is None:
        raise UserError("there is no distance to rank the settings by; bring Inception weights, or fit a classifier.")
    best = min(rows, key=lambda row: row[metric])
    chosen = {name: best[name] for name in SETTINGS}
    full = measure(config, workdir, chosen, name=config.evaluation.name, samples=config.evaluation.samples)

    path = workdir / "eval" / f"search-{full.settings['step']}.json"
    if jax.process_index() == 0:
        write_json(
            path, {"settings": full.settings, "metric": metric, "rows": rows, "best": best, "final": full.metrics}
        )
        search_curves(path.with_suffix(".png"), rows, metric)
    for row in rows:
        print(described(row), "<- best" if row is best else "")
    print(f"{path}: {metric} {full.metrics[metric]:.4g} of {config.evaluation.samples} samples at {described(chosen)}")


def measure(config: ConfigDict, workdir: Path, setting: dict[str, Any], *, name: str, samples: int) -> Record:
    """The evaluation of one setting of the sampler."""
    tried = config.copy_and_resolve_references()
    tried.sampler.update(setting)
    tried.evaluation.update(name=name, samples=samples)
    return evaluate.evaluate(tried, workdir)


def described(values: dict[str, Any], between: str = ", ") -> str:
    """`guidance_scale=2, temperature=1, top_k=0`."""
    return between.join(f"{name}={value:.4g}" for name, value in values.items())
