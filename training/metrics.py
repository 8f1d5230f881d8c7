"""Where numbers go: metrics.jsonl, TensorBoard event files, and the screen."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricsLog:
    """A stage's metrics.jsonl (one JSON object a line, with its `step`) and TensorBoard events.

    Args:
      directory: of the stage.
      step: where training goes on; lines of later steps, written before a crash, are dropped.
    """

    def __init__(self, directory: Path, step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.events = SummaryWriter(str(directory), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self.events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name and rename, so that readers and restarts see all or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


class Progress:
    """A progress bar on a terminal, a line every few seconds elsewhere: what, how far, images/s, time left."""

    seconds_between_lines = 10.0

    def __init__(self, title: str, total: int, *, start: int = 0, images_per_step: int = 1):
        self.title, self.total, self.images_per_step = title, total, images_per_step
        self.done = self.start = start
        self.began = self.last_line = time.monotonic()
        # tqdm counts images, so that its rate is images/s.
        self.bar = tqdm(
            total=total * images_per_step, initial=start * images_per_step, desc=title, unit=" images", unit_scale=True,
            disable=not sys.stderr.isatty(), dynamic_ncols=True,
        )  # fmt: skip

    def update(self, done: int, **metrics: float) -> None:
        """Steps done so far, and what to show beside."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update((done - self.done) * self.images_per_step)
        self.done = done
        now = time.monotonic()
        if self.bar.disable and (now - self.last_line > self.seconds_between_lines or done == self.total):
            self.last_line = now
            seconds = (now - self.began) / max(done - self.start, 1)
            rate, left = self.images_per_step / max(seconds, 1e-9), seconds * (self.total - done)
            print(f"{self.title}: {done}/{self.total}, {shown}{', ' if shown else ''}{rate:,.0f} images/s, "
                  f"{left:.0f} s left", flush=True)  # fmt: skip

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
