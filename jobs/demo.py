"""The whole way in one command: train both stages, sample, evaluate, and say what came out."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from evaluation.pictures import Curve, loss_curves
from jobs import evaluate, report, sample, train
from models import distributed
from models.files import write_json
from training.metrics import read_metrics


def run(config: ConfigDict, workdir: Path) -> None:
    """W/summary.json, W/loss.png, W/report.html, and what the jobs write; of several processes the first tells."""
    began = time.monotonic()
    seconds_before = seconds_so_far(workdir)
    try:
        train.run(config, workdir)
        sample.run(config, workdir)
        distributed.wait()  # one process samples
        metrics = evaluate.run(config, workdir)
    finally:  # an interrupted demo goes on later; its time counts all the same
        seconds = seconds_before + time.monotonic() - began
        if not jax.process_index():
            write_json(workdir / "seconds.json", seconds)
    if not jax.process_index():
        tell(config, workdir, {**metrics, "wall_seconds": seconds})
    distributed.wait()


def tell(config: ConfigDict, workdir: Path, metrics: dict[str, Any]) -> None:
    """What came out: the summary, printed and written, the curves of the losses, and the report."""
    draw_curves(workdir)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    summary = {**metrics, "peak_memory_gib": peak}
    write_json(workdir / "summary.json", summary)
    print_table(summary)
    for picture in sorted(workdir.glob("**/*.png")):
        print(picture)
    report.run(config, workdir)


def seconds_so_far(workdir: Path) -> float:
    """What earlier, interrupted runs of the demo took."""
    path = workdir / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else 0.0


def draw_curves(workdir: Path) -> None:
    """W/loss.png: training and held-out loss of both stages."""
    panels: dict[str, Any] = {}
    for stage, metric, unit in (
        ("tokenizer", "reconstruction_loss", "reconstruction loss"),
        ("generator", "loss", "nats per token"),
    ):
        rows = read_metrics(workdir / stage / "metrics.jsonl")
        panels[f"{stage} ({unit})"] = {"training": curve(rows, metric), "held-out": curve(rows, "heldout/loss")}
    loss_curves(workdir / "loss.png", panels)


def curve(rows: list[dict[str, Any]], metric: str) -> Curve:
    """The steps at which a metric was written, and its values."""
    found = [(row["step"], row[metric]) for row in rows if metric in row]
    return np.array([step for step, _ in found], np.int32), np.array([value for _, value in found], np.float64)


def print_table(summary: dict[str, Any]) -> None:
    """One line a figure."""
    width = max(map(len, summary))
    print()
    for name, value in summary.items():
        shown = "–" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        print(f"{name:<{width}}  {shown:>12}")
    print()
