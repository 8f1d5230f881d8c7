"""`--profile`: a trace of a few steps, for TensorBoard's or Perfetto's viewer."""

from pathlib import Path

import jax

from models.errors import UserError

FIRST, STEPS = 5, 5  # steps of this process that pass before, and that are traced


class Trace:
    """A profiler's trace of `STEPS` steps after the first `FIRST`, in W/<stage>/trace; without a folder, nothing.

    Raises:
      UserError: fewer steps than that are left.
    """

    def __init__(self, directory: Path | None, left: int):
        self.directory, self.running = directory, False
        if directory is not None and left < FIRST + STEPS:
            raise UserError(f"--profile traces steps {FIRST + 1} to {FIRST + STEPS} of what is left to train, and {left} are "
                            "left; raise the stage's steps.")  # fmt: skip

    def before(self, number: int) -> None:
        """Called before the number-th step of this process, from 0."""
        if self.directory is not None and number == FIRST:
            jax.profiler.start_trace(str(self.directory))
            self.running = True

    def after(self, number: int, metrics: dict[str, jax.Array]) -> None:
        """Called after it; the last traced step is waited for."""
        if self.running and number == FIRST + STEPS - 1:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """End the trace, also of a run that stops early."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            print(f"wrote a trace of {STEPS} steps to {self.directory}")
