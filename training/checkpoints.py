"""Checkpoints: Orbax, written in the background by all hosts, some of them kept, and checked when they are read."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import LogRecord
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from input_pipeline.pipeline import records_read, state_after
from models import distributed
from models.errors import UserError
from models.files import folder
from training.step import fingerprint

IMPORTED = 0  # the step of weights that were not trained here; they have no state, and stay


def steps_on_disk(directory: epath.PathLike) -> list[int]:
    """The steps of the finished checkpoints of a stage, which a training may be writing to; oldest first."""
    steps = [path for path in folder(directory).glob("*") if path.name.isdigit()]
    # A bucket renames nothing at once: there a step is finished when the file that Orbax writes last is in it.
    return sorted(int(path.name) for path in steps if ocp.utils.is_checkpoint_finalized(path))


class Checkpoints:
    """The checkpoints of one stage: a folder a step with named trees of arrays, the place in the data, and checksums.

    A step's folder gets its name (in a bucket, its last file) only when it is whole, so a save that is killed leaves the
    ones before. Arrays that were damaged later are found by their checksum, said, and passed over for the newest sound
    ones. Of several processes each writes and reads its part, and a checkpoint is sound only if it is for all of them.

    Args:
      directory: of the stage, on this machine or in a bucket (`models.files.folder`).
      keep_last: newest checkpoints to keep.
      keep_every: steps of which checkpoints are kept besides, at every multiple; 0 is none.
      keep_best: checkpoints with the lowest held-out loss to keep besides.
      readers: of the batches (`models.sharding.reader_of`).
      read_only: leave all that is there alone, also the unfinished save of a training that still runs; each process
        reads by itself.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep_last: int = 1, keep_every: int = 0, keep_best: int = 0, readers: int = 1,
        read_only: bool = False,
    ):  # fmt: skip
        self.directory, self.readers, self.read_only = folder(directory), readers, read_only
        self.fingerprint = jax.jit(fingerprint)
        logging.get_absl_logger().addFilter(not_raised_elsewhere)
        # To read with: the manager would have all processes wait for one that fails to.
        self.trees, self.json = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
        if read_only:
            return
        kept: list[Any] = [policies.LatestN(keep_last), policies.CustomSteps([IMPORTED])]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if keep_best:
            # orbax's `reverse` keeps the smallest.
            kept.append(policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=keep_best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), best_fn=lambda metrics: metrics["loss"],
            best_mode="min", cleanup_tmp_directories=True,
        )  # fmt: skip
        handlers = {
            "ema": ocp.StandardCheckpointHandler(),
            "state": ocp.StandardCheckpointHandler(),
            "checksums": ocp.JsonCheckpointHandler(),
            "data": grain.checkpoint.CheckpointHandler(),
        }
        self.manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def checksum(self, tree: Any) -> list[int]:
        """As plain numbers, for JSON."""
        return [int(part) for part in np.asarray(self.fingerprint(tree))]

    def save(self, step: int, trees: Mapping[str, Any], batches: grain.DatasetIterator, *, loss: float) -> None:
        """Start writing a checkpoint, which `close` waits for; `loss` (held-out) ranks it among the best.

        Raises:
          UserError: the disk is full or fails, or the bucket does, now or in the save before, which this one waits for.
        """
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["data"] = grain.checkpoint.CheckpointSave(batches)
        sums: dict[str, Any] = {name: self.checksum(tree) for name, tree in trees.items()}
        items["checksums"] = ocp.args.JsonSave({**sums, "readers": self.readers})
        with self.written():
            self.manager.save(step, metrics={"loss": float(loss)}, args=ocp.args.Composite(**items))

    def save_imported(self, params: Any) -> None:
        """Start writing averaged weights that come from elsewhere, which `close` waits for; raises as `save`."""
        items = {"ema": ocp.args.StandardSave(params), "checksums": ocp.args.JsonSave({"ema": self.checksum(params)})}
        # Nobody knows its loss; it ranks behind all that are trained.
        with self.written():
            self.manager.save(IMPORTED, metrics={"loss": math.inf}, args=ocp.args.Composite(**items))

    def restore(
        self, shapes: Mapping[str, Any], batches: grain.DatasetIterator | None = None, *, only: int | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """(step, trees) of the newest sound checkpoint, or of that step; None when there is none.

        Args:
          shapes: for each tree to read, `jax.ShapeDtypeStruct`s with the shardings that it shall have now.
          batches: iterator to set to where it was when the checkpoint was saved, by as many readers or by others; damaged
            checkpoints newer than the restored one are then set aside, since training goes on from there and will write
            their steps anew.
          only: the step to read.

        Raises:
          UserError: the checkpoint holds arrays of other names or shapes.
        """
        steps = [found for found in steps_on_disk(self.directory) if only in (None, found)]
        steps = [found for found in steps if found != IMPORTED or set(shapes) == {"ema"}]
        while True:
            step = int(self.votes(max(steps, default=-1)).min())
            if step < 0:
                break
            steps = [found for found in steps if found < step]
            problem, trees = self.read(step, shapes, batches)
            if self.votes(not problem).all():
                break
            trees = {}  # two states may not fit
            logging.warning("checkpoint %s/%d is damaged and skipped: %s", self.directory, step,
                            problem or "another process cannot read it")  # fmt: skip
        if batches is not None and not self.read_only:
            self.set_aside(step)
        return None if step < 0 else (step, trees)

    def read(
        self, step: int, shapes: Mapping[str, Any], batches: grain.DatasetIterator | None
    ) -> tuple[str, dict[str, Any]]:
        """What is wrong with a checkpoint as this process sees it ("" is nothing), and its trees.

        No process waits for another before all have read, since one that fails would leave the others waiting.
        """
        place, trees = self.directory / str(step), {}
        try:
            self.check_shapes(place, shapes)
            sums = self.json.restore(place / "checksums", args=ocp.args.JsonRestore())
            for name, tree in shapes.items():
                trees[name] = self.trees.restore(place / name, args=ocp.args.StandardRestore(tree))
            if batches is not None:
                batches.set_state(self.data_state(place / "data", sums.get("readers")))
            problem = ""
        except UserError:
            raise
        except Exception as error:  # whatever damage makes of a file, orbax, tensorstore and json raise
            problem = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if self.votes(not problem).all():  # now that all hold their parts, they may compute together
            wrong = [name for name in shapes if self.checksum(trees[name]) != sums.get(name)]
            problem = f"the checksum of {wrong[0]} is not the one it was saved with" if wrong else ""
        return problem, trees

    def check_shapes(self, place: epath.Path, shapes: Mapping[str, Any]) -> None:
        """Refuse a sound checkpoint of another model, which is no damage."""
        for name, tree in shapes.items():
            saved, wanted = shapes_by_path(self.trees.metadata(place / name).tree), shapes_by_path(tree)
            for key in sorted(saved.keys() | wanted.keys()):
                if saved.get(key) != wanted.get(key):
                    there, here = saved.get(key, "absent"), wanted.get(key, "absent")
                    raise UserError(f"checkpoint {place} is of another config: {name}/{key} is {there} there and {here} here; "
                                    "use another --workdir.")  # fmt: skip

    def data_state(self, directory: epath.Path, readers: int | None) -> dict[str, Any]:
        """The state of this process's batches: as it was saved, or, by another number of readers, the same global place."""
        count = len(list(directory.glob("process_*-of-*.json")))
        if not count:
            raise ValueError("its place in the data is missing")
        files = [directory / f"process_{process}-of-{count}.json" for process in range(count)]
        states = [json.loads(file.read_text()) for file in files]
        if len(states) == jax.process_count() and readers in (None, self.readers):
            return states[jax.process_index()]
        before = readers or len(states)
        read = sum(map(records_read, states)) * before // len(states)
        return state_after(read, self.readers)

    def restore_imported(self, shapes: Any) -> Any:
        """The weights of `save_imported`; None where there are none.

        Raises:
          UserError: they are damaged, or of another config.
        """
        if IMPORTED not in steps_on_disk(self.directory):
            return None
        found = self.restore({"ema": shapes}, only=IMPORTED)
        if found is None:
            raise UserError(
                f"the imported weights in {self.directory} are damaged; import them again into another workdir."
            )
        return found[1]["ema"]

    def votes(self, value: int | bool) -> np.ndarray:
        """What every process says, where they act together."""
        return np.array([value]) if self.read_only else distributed.from_all(np.array(value))

    def set_aside(self, after: int) -> None:
        """Rename the trained checkpoints after this step, which damage had passed over, so that they can be written again."""
        newer = [step for step in steps_on_disk(self.directory) if step > max(after, IMPORTED)]
        if not self.votes(len(newer)).any():
            return
        if jax.process_index() == 0:
            for step in newer:
                number = len(list(self.directory.glob(f"damaged-{step}-*")))
                (self.directory / str(step)).rename(self.directory / f"damaged-{step}-{number}")
        distributed.wait()
        self.manager.reload()

    def latest(self) -> int | None:
        """Newest step that is on disk, or will be when this is closed."""
        return max(steps_on_disk(self.directory), default=None) if self.read_only else self.manager.latest_step()

    def preempted(self, step: int) -> bool:
        """Whether the machines' owner wants them back, agreed upon by all hosts."""
        return self.manager.reached_preemption(step)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Say what a disk or a bucket that fails means, and what is left."""
        try:
            yield
        except Exception as error:
            why = failure(error)
            if why is None:
                raise
            whole = steps_on_disk(self.directory)
            kept = f"the last good checkpoint is step {whole[-1]}" if whole else "there is none before it"
            cure = "See to the bucket" if "://" in str(self.directory) else "Make room"
            raise UserError(f"a checkpoint cannot be written to {self.directory} ({why}); {kept}. {cure}, then the same "
                            "command goes on from there.") from error  # fmt: skip

    def close(self) -> None:
        """Wait until the last save is on disk, and free the manager's threads; raises as `save`."""
        if self.read_only:
            return
        with self.written():
            self.manager.wait_until_finished()
        self.manager.close()


def failure(error: Exception) -> str | None:
    """What a disk or a bucket says of itself in an error that it has caused; None of other errors."""
    if reason := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's, which raises ValueErrors
        return os.strerror(int(reason[1]))
    if reason := re.search(r"http_response_code='(\d+)'", str(error)):
        return f"HTTP status {reason[1]}"
    if isinstance(error, OSError) or type(error).__module__.startswith("gcsfs."):
        return getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return None


def not_raised_elsewhere(record: LogRecord) -> bool:
    """Whether to log this: not the traces of Orbax's threads, whose errors are raised where the threads are waited for."""
    return not (record.exc_info and "orbax" in record.pathname)


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"params/generator/...": shape} of a tree of arrays, shapes or Orbax's metadata of them."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
