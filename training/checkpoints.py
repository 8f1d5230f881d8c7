"""Checkpoints: Orbax, written in the background, the last n and the best n kept, and checked when they are read."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from models.errors import UserError
from training.step import fingerprint

IMPORTED = 0  # the step of weights that were not trained here; they have no state, and stay


def steps_on_disk(directory: Path) -> list[int]:
    """The steps of the finished checkpoints of a stage, which a training may be writing to; oldest first."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


class Checkpoints:
    """The checkpoints of one stage: a folder a step with named trees of arrays, the place in the data, and checksums.

    A step's folder gets its name only when it is whole, so a save that is killed leaves the ones before. What was damaged
    later is found by its checksum, said, and passed over for the newest sound one.

    Args:
      directory: of the stage.
      keep_last: newest checkpoints to keep.
      keep_best: checkpoints with the lowest held-out loss to keep besides.
      read_only: leave all that is there alone, also the unfinished save of a training that still runs.
    """

    def __init__(self, directory: Path, *, keep_last: int = 1, keep_best: int = 0, read_only: bool = False):
        kept: list[Any] = [policies.LatestN(keep_last), policies.CustomSteps([IMPORTED])]
        if keep_best:
            # orbax's `reverse` keeps the smallest.
            kept.append(policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=keep_best))
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), best_fn=lambda metrics: metrics["loss"],
            best_mode="min", cleanup_tmp_directories=not read_only, create=not read_only,
        )  # fmt: skip
        handlers = {
            "ema": ocp.StandardCheckpointHandler(),
            "state": ocp.StandardCheckpointHandler(),
            "checksums": ocp.JsonCheckpointHandler(),
            "data": grain.checkpoint.CheckpointHandler(),
        }
        self.manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self.fingerprint = jax.jit(fingerprint)

    def checksum(self, tree: Any) -> list[int]:
        """As plain numbers, for JSON."""
        return [int(part) for part in np.asarray(self.fingerprint(tree))]

    def save(self, step: int, trees: Mapping[str, Any], batches: grain.DatasetIterator, *, loss: float) -> None:
        """Start writing a checkpoint, which `close` waits for; `loss` (held-out) ranks it among the best."""
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["data"] = grain.checkpoint.CheckpointSave(batches)
        items["checksums"] = ocp.args.JsonSave({name: self.checksum(tree) for name, tree in trees.items()})
        self.manager.save(step, metrics={"loss": float(loss)}, args=ocp.args.Composite(**items))

    def save_imported(self, params: Any) -> None:
        """Start writing averaged weights that come from elsewhere, which `close` waits for."""
        items = {"ema": ocp.args.StandardSave(params), "checksums": ocp.args.JsonSave({"ema": self.checksum(params)})}
        # Nobody knows its loss; it ranks behind all that are trained.
        self.manager.save(IMPORTED, metrics={"loss": math.inf}, args=ocp.args.Composite(**items))

    def restore(
        self, shapes: Mapping[str, Any], batches: grain.DatasetIterator | None = None, *, only: int | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """(step, trees) of the newest sound checkpoint, or of that step; None when there is none.

        Args:
          shapes: for each tree to read, `jax.ShapeDtypeStruct`s with the shardings that it shall have now.
          batches: iterator to set to where it was when the checkpoint was saved; damaged checkpoints newer than the
            restored one are then set aside, since training goes on from there and will write their steps anew.
          only: the step to read.

        Raises:
          UserError: the checkpoint holds arrays of other names or shapes.
        """
        steps = [found for found in self.manager.all_steps() if only in (None, found)]
        steps = [found for found in steps if found != IMPORTED or set(shapes) == {"ema"}]
        for step in sorted(steps, reverse=True):
            items: dict[str, Any] = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
            items["checksums"] = ocp.args.JsonRestore()
            if batches is not None:
                items["data"] = grain.checkpoint.CheckpointRestore(batches)
            try:
                self.check_shapes(step, shapes)
                found = self.manager.restore(step, args=ocp.args.Composite(**items))
                for name in shapes:
                    if self.checksum(found[name]) != found["checksums"][name]:
                        raise ValueError(f"the checksum of {name} is not the one it was saved with")
                return step, {name: found[name] for name in shapes}
            except UserError:
                raise
            except Exception as error:  # whatever damage makes of a file, orbax, tensorstore and json raise
                first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                logging.warning("checkpoint %s/%d is damaged and skipped: %s", self.directory, step, first_line)
                if batches is not None:
                    self.set_aside(step)
        return None

    def restore_imported(self, shapes: Any) -> Any:
        """The weights of `save_imported`; None where there are none.

        Raises:
          UserError: they are damaged, or of another config.
        """
        if IMPORTED not in self.manager.all_steps():
            return None
        found = self.restore({"ema": shapes}, only=IMPORTED)
        if found is None:
            raise UserError(
                f"the imported weights in {self.directory} are damaged; import them again into another workdir."
            )
        return found[1]["ema"]

    def check_shapes(self, step: int, shapes: Mapping[str, Any]) -> None:
        """Refuse a sound checkpoint of another model, which is no damage."""
        metadata = self.manager.item_metadata(step)
        for name, tree in shapes.items():
            saved, wanted = shapes_by_path(metadata[name].tree), shapes_by_path(tree)
            for key in sorted(saved.keys() | wanted.keys()):
                if saved.get(key) != wanted.get(key):
                    raise UserError(
                        f"checkpoint {self.directory}/{step} is of another config: {name}/{key} is "
                        f"{saved.get(key, 'absent')} there and {wanted.get(key, 'absent')} here; use another --workdir."
                    )

    def set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint, so that its step can be written again."""
        if jax.process_index() == 0:
            number = len(list(self.directory.glob(f"damaged-{step}-*")))
            (self.directory / str(step)).rename(self.directory / f"damaged-{step}-{number}")
        self.manager.reload()

    def latest(self) -> int | None:
        """Newest step on disk."""
        return self.manager.latest_step()

    def preempted(self, step: int) -> bool:
        """Whether the machines' owner wants them back, agreed upon by all hosts."""
        return self.manager.reached_preemption(step)

    def close(self) -> None:
        """Wait until the last save is on disk, and free the manager's threads."""
        self.manager.wait_until_finished()
        self.manager.close()


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"params/generator/...": shape} of a tree of arrays, shapes or Orbax's metadata of them."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
