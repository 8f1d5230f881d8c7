"""`--profile`: a trace of a few steps, for TensorBoard's or Perfetto's viewer."""

from pathlib import Path

import jax

from models.errors import UserError

FIRST, STEPS = 5, 5  # steps of this process that pass before, and that are traced


class Trace:
    """A profiler's trace of `STEPS` steps after the first `FIRST`; without a folder, nothing.

    Args:
      directory: for the trace.
      left: steps that the training has.

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

    def ends(self, number: int) -> bool:
        """Whether the number-th step is the last of the trace: when it is done, `close`."""
        return self.running and number == FIRST + STEPS - 1

    def close(self) -> None:
        """End the trace, also of a run that stops early."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            print(f"wrote a trace to {self.directory}")
