"""How far a long piece of work is."""

import sys
import time

from tqdm import tqdm


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
