"""The one training loop of every stage, read from top to bottom.

A run that was killed, or stopped by SIGTERM, goes on where its last checkpoint stands and ends bit for bit as if it had
never stopped: state and place in the data are saved together, before the next batch is drawn, and the randomness of a
step depends on its number alone.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from input_pipeline.prefetch import prefetch
from models import sharding
from models.errors import Stopped, UserError
from models.files import write_text
from models.modules import parameter_count
from models.progress import Progress
from training.checkpoints import Checkpoints
from training.goodput import Goodput, peak
from training.metrics import MetricsLog
from training.model_flops import model_flops
from training.step import Batch, State, first_player, make_init, make_step, place_batch, state_shardings
from training.trace import Trace


def train(
    learner: Any,
    dataset: grain.IterDataset,
    heldout: Callable[[], Iterable[Batch]],
    config: Mapping[str, Any],
    directory: Path,
    *,
    mesh: Mesh,
    seed: int,
    before: int = 0,
    profile: bool = False,
    checkpoints_in: epath.PathLike | None = None,
) -> None:
    """Train a stage to its last step, or go on with it.

    Args:
      learner: of a stage (see `tokenizer.learner`, `generator.learner`): `stage`, `unit`, `tokens`, `init`, `players`, `axes`,
        `statistics_axes`, `frozen`, `heldout`, `after_update`.
      dataset: endless batches of this process's examples.
      heldout: makes one pass over held-out batches.
      config: the stage's training section (see `configs/base.py`).
      directory: W/<stage>, for checkpoints and metrics.
      mesh: from `models.sharding.make_mesh`.
      seed: of the run.
      before: steps of the run's stages before this one, so that hosts that agree to stop at a step mean the same.
      profile: write a trace of a few steps.
      checkpoints_in: folder of the checkpoints, if not that of the stage's directory.

    Raises:
      UserError: the loss or a gradient is not finite; the batch does not divide; a checkpoint is of another config.
      Stopped: SIGTERM arrived; the state is saved.
    """
    steps, batch_size = config["steps"], config["batch_size"]
    check_batch(batch_size, config["accumulate"], mesh)
    goodput = Goodput(images=batch_size, tokens=learner.tokens)

    with contextlib.ExitStack() as ends:  # each is run, whatever becomes of the others
        ends.callback(lambda: print(f"{learner.stage}: {goodput}") if goodput.steps else None)

        # ---- state: shapes first, then shardings, then a jitted init or the newest sound checkpoint
        init, key = make_init(learner, config), jax.random.key(seed)
        shapes = jax.eval_shape(init, key)
        places = state_shardings(learner, config, shapes, mesh)
        placed = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
        checkpoints = Checkpoints(
            checkpoints_in or directory / "checkpoints", readers=sharding.reader_of(mesh).readers,
            **{name: config[name] for name in ("keep_last", "keep_every", "keep_best")},
        )  # fmt: skip
        ends.callback(goodput.of("save")(checkpoints.close))
        ahead = functools.partial(prefetch, dataset, functools.partial(place_batch, mesh=mesh))
        batches = ahead()
        ends.callback(lambda: batches.close())
        found = checkpoints.restore(as_items(placed), batches)
        if found is None:
            batches.close()
            batches = ahead()  # a damaged checkpoint may have moved the first one
            with jax.set_mesh(mesh):
                state = jax.jit(init, out_shardings=places)(key)
            done = 0
            imported = checkpoints.restore_imported(placed["ema"])
            if imported is not None:
                print(f"{learner.stage}: beginning with the imported weights")
                state["ema"], state["params"][first_player(learner)] = imported, jax.tree.map(jnp.copy, imported)
        else:
            done, items = found
            state = {**items["state"], "ema": items["ema"]}
        if done >= steps:
            print(f"{learner.stage}: trained already ({done} steps)")
            return

        # ---- the step
        frozen, started = sharding.place_whole(learner.frozen, mesh), done
        step_function = compile_step(learner, frozen, config, places, mesh, seed)
        evaluate = make_evaluation(learner, frozen, mesh)
        log = ends.enter_context(contextlib.closing(MetricsLog(directory, done)))
        describe_parameters(learner, shapes, directory)
        if found is not None:
            print(f"{learner.stage}: going on at step {done} of {steps}")

        # ---- the loop
        progress = Progress(f"train {learner.stage}", steps, start=done, images_per_step=batch_size)
        ends.callback(progress.close)
        trace = Trace(directory / "trace" if profile and jax.process_index() == 0 else None, steps - done)
        ends.callback(trace.close)
        termination = ends.enter_context(Termination())
        pending: tuple[int, Batch] | None = None  # metrics are read one step late, while the next step runs

        def read_pending() -> None:
            nonlocal pending
            if pending is None:
                return
            with goodput.of("step"):
                number, metrics = pending[0], {name: float(value) for name, value in jax.device_get(pending[1]).items()}
            pending, goodput.steps = None, goodput.steps + 1
            check_finite(learner.stage, number, metrics, checkpoints)
            if number % config["log_every"] == 0 or number == steps:
                log.write(number, metrics | goodput.speed())
            progress.update(number, **{learner.unit: metrics[learner.unit]})

        while done < steps:
            with goodput.of("data"):
                batch = next(batches)
            trace.before(done - started)
            if done == started:
                with goodput.of("compile"):
                    goodput.flops, goodput.peak = step_function.flops(state, batch), peak(mesh)
            with goodput.of("compile" if done == started else "step"), jax.transfer_guard("disallow"):
                state, metrics = step_function(state, batch)
            if trace.ends(done - started):
                with goodput.of("step"):
                    jax.block_until_ready(metrics)
                trace.close()
            done += 1
            read_pending()
            pending = (done, metrics)
            stop = termination.requested or checkpoints.preempted(before + done)
            due = done == steps or done % config["save_every"] == 0
            if due or stop:
                read_pending()  # never save what is not finite
                with goodput.of("evaluation"):
                    results = evaluate(state["ema"], heldout())
                check_finite(learner.stage, done, results, checkpoints)
                log.write(done, results)
                with goodput.of("save"):
                    checkpoints.save(done, as_items(state), batches, loss=results["heldout/loss"])
                if stop or done == steps:
                    log.write(done, goodput.shares())
            if stop or (due and termination.requested):  # it may have come while there was evaluated and saved
                raise Stopped(f"{learner.stage}: stopped and saved at step {done} of {steps}")


@dataclasses.dataclass(frozen=True)
class Step:
    """(state, batch) -> (next state, metrics), jitted, with pinned shardings and a donated state; traced under the mesh."""

    jitted: Any
    frozen: Any
    mesh: Mesh

    def __call__(self, state: State, batch: Batch) -> tuple[State, Batch]:
        with jax.set_mesh(self.mesh):
            return self.jitted(state, batch, self.frozen)

    def flops(self, state: State, batch: Batch) -> float:
        """Of the model in a step, over all devices."""
        with jax.set_mesh(self.mesh):
            return model_flops(self.jitted.trace(state, batch, self.frozen).jaxpr)


def compile_step(learner: Any, frozen: Any, config: Mapping[str, Any], places: State, mesh: Mesh, seed: int) -> Step:
    """The step of a learner whose state lies at these places; it is compiled by the first call."""
    whole = sharding.replicated(mesh)
    step = jax.jit(
        make_step(learner, config, seed), in_shardings=(places, sharding.batch_sharding(mesh), whole),
        out_shardings=(places, whole), donate_argnums=0,
    )  # fmt: skip
    return Step(step, frozen, mesh)


def make_evaluation(learner: Any, frozen: Any, mesh: Mesh) -> Callable[[Any, Iterable[Batch]], dict[str, float]]:
    """(averaged parameters, held-out batches) -> the learner's held-out metrics, mean over the images, as heldout/..."""
    evaluate = jax.jit(learner.heldout)

    def run(params: Any, heldout: Iterable[Batch]) -> dict[str, float]:
        total: dict[str, float] = {}
        count = 0
        for batch in heldout:
            size = len(batch["label"])
            with jax.set_mesh(mesh):
                metrics = jax.device_get(evaluate(params, place_batch(batch, mesh, whole=True), **frozen))
            count += size
            for name, value in metrics.items():
                total[name] = total.get(name, 0.0) + size * float(value)
        return {f"heldout/{name}": value / count for name, value in total.items()}

    return run


def check_finite(stage: str, step: int, metrics: Mapping[str, float], checkpoints: Checkpoints) -> None:
    """Stop before what is not finite is saved, and say from where to go on."""
    watched = [name for name in metrics if name.endswith("loss") or name.startswith("gradient_norm")]
    bad = next((name for name in watched if not math.isfinite(metrics[name])), None)
    if bad is not None:
        kept = checkpoints.latest()
        good = "there is no checkpoint yet" if kept is None else f"the last good checkpoint is step {kept}"
        raise UserError(f"{stage}: {bad} is not finite at step {step}; {good}. Lower "
                        f"--config.training.{stage}.learning_rate or raise warmup_steps.")  # fmt: skip


def as_items(state: State) -> dict[str, Any]:
    """The trees that a checkpoint holds: the average lies by itself, since sampling reads nothing else."""
    return {"ema": state["ema"], "state": {name: tree for name, tree in state.items() if name != "ema"}}


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """A batch must divide over the mesh, and again into the parts that it is accumulated of.

    Raises:
      UserError: it does not; the next sizes that do are named.
    """
    readers, split = sharding.reader_of(mesh).readers, sharding.batch_parts(mesh)
    unit = split * accumulate
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        raise UserError(f"batch_size {batch_size} does not divide into {accumulate} part(s) over {split} parts of the mesh on "
                        f"{readers} host(s); take {f'{below} or ' if below else ''}{above}.")  # fmt: skip


def describe_parameters(learner: Any, shapes: State, directory: Path) -> None:
    """Write the overview of the parameters beside the metrics, and say their number."""
    params = shapes["params"][first_player(learner)]
    if jax.process_index() == 0:
        write_text(directory / "parameters.txt", parameter_overview.get_parameter_overview(params, include_stats=False))
    count = parameter_count(params)
    print(f"{learner.stage}: {count:,} parameters (listed in {directory / 'parameters.txt'})")


class Termination:
    """Notices SIGTERM instead of dying of it. Several hosts ask Orbax, which makes them agree on a step."""

    requested = False

    def __enter__(self) -> "Termination":
        self.previous: Any = None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self.notice)
        return self

    def notice(self, *_: Any) -> None:
        """The signal's handler."""
        self.requested = True

    def __exit__(self, *_: Any) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
