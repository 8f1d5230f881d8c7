"""Where numbers go: metrics.jsonl and TensorBoard event files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from models.files import write_text


class MetricsLog:
    """A stage's metrics.jsonl (one JSON object a line, with its `step`) and TensorBoard events, written by process 0.

    Args:
      directory: of the stage.
      step: where training goes on; lines of later steps, written before a crash, are dropped.
    """

    def __init__(self, directory: Path, step: int):
        self.path, self.writes = directory / "metrics.jsonl", jax.process_index() == 0
        if not self.writes:
            return
        directory.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.events = SummaryWriter(str(directory), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step."""
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        if self.writes:
            self.events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
