"""Samplers of a trained checkpoint beside each other: calls of the model, images/s, and what a classifier makes of the images.

python -m benchmarks.sampling --workdir=W [--methods=a,b:window=32:rule=multi_round] [--guidance=1.5,2] [--top_k=0,64]
    [--window=8,16] [--images=128] [--accuracy_images=N] [--batch_size=32] [--rounds=3] [--json] [--plot=F.png]
    [--acceptance=F.png] [--FIELD=VALUE ...]

Every method runs at every guidance, top-k and window, beside the sequential sampler, which draws the same images of the same
seed. A method's own fields of the config's section `sampler` follow its name; --FIELD=VALUE is for all methods, and what
neither says is the workdir's. Prints a table, with --json a line of JSON a setting:

- calls_per_image, calls_std: mean and standard deviation over the images, as the sampler counts its calls of the model.
- calls_ratio: the sequential sampler's calls / the method's. tokens_per_call: tokens of an image / calls_per_image.
- same_tokens: share of the tokens that are the sequential sampler's.
- images_per_second: of the median of --rounds batches, decoded to pixels; speed_ratio: median of how many times as long the
  sequential sampler took for the same batch, in turns.
- class_accuracy: share of the images whose class the evaluation's classifier finds. --accuracy_images=0 does without.

--acceptance draws where a method gets on: tokens a call by position, and calls that end by the entropy of what they end at.
"""

import argparse
import contextlib
import itertools
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/sampling.py`

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from configs import base
from evaluation.features import Extractor
from evaluation.image_sets import read_split
from evaluation.pictures import Acceptance, acceptance_curves, calls_and_quality
from generator.generator import describe_generator
from generator.sampling.calls import caller
from generator.sampling.samplers import LOSSY, SAMPLERS, WINDOW
from generator.sampling.settings import Settings
from jobs.conditions import asked_classes, need_classes
from jobs.networks import find_classifier
from jobs.sample import Sampler, Samples
from jobs.workdir import complete, prepare, read_config
from models.errors import UserError, unknown
from models.process import tune_malloc
from tokenizer.tokenizer import describe_tokenizer, token_spec

DEFAULTS = base.get_config().sampler
GRID = {"guidance": "guidance_scale", "top_k": "top_k", "window": "window"}  # options that are lists, and their fields
SHARED = ("guidance_scale", "top_k")  # what methods are compared at
SIDE_BY_SIDE = frozenset({"zipar"})  # whose calls draw here and there, and so have no position
PARTS = 10  # of all positions, by entropy
READ = {
    bool: {"true": True, "false": False}.__getitem__,
    int: int,
    float: float,
    str: str,
    tuple: lambda text: tuple(float(part) for part in text.strip("()").split(",") if part),
}
COLUMNS = {  # of the table
    "label": "{}", "lossless": "{}", "guidance": "{:g}", "top_k": "{}", "first_drafts": "{}", "rule": "{}",
    "calls_per_image": "{:.2f}", "calls_std": "{:.2f}", "calls_ratio": "{:.2f}", "tokens_per_call": "{:.2f}",
    "same_tokens": "{:.3f}", "images_per_second": "{:.2f}", "speed_ratio": "{:.2f}", "class_accuracy": "{:.3f}",
}  # fmt: skip


class Method(NamedTuple):
    """A sampler by name, and the fields of the config's section `sampler` that are its own."""

    name: str
    fields: dict[str, Any]

    def at(self, **fields: Any) -> "Method":
        """With these fields where it says nothing itself."""
        return Method(
            self.name, self.fields | {name: value for name, value in fields.items() if name not in self.fields}
        )

    @property
    def label(self) -> str:
        """As `read_method` reads it: without what all methods share."""
        own = {name: value for name, value in self.fields.items() if name not in SHARED}
        return ":".join([self.name, *(f"{name}={told(value)}" for name, value in own.items())])


SEQUENTIAL = Method("sequential", {})


def told(value: Any) -> str:
    """A field's value as the command line says it."""
    return f"({','.join(f'{part:g}' for part in value)})" if isinstance(value, tuple) else f"{value}"


def read_field(name: str, text: str) -> Any:
    """The value of a field of the config's section `sampler`.

    Raises:
      UserError: there is no such field, or this is no value of it.
    """
    if name not in DEFAULTS or name == "name":
        raise unknown("sampler field", name, [field for field in DEFAULTS if field != "name"])
    kind = type(DEFAULTS[name])
    try:
        return READ[kind](text)
    except (ValueError, KeyError):
        raise UserError(f"sampler.{name}: {text!r} is no {kind.__name__}.") from None


def read_method(text: str) -> Method:
    """`siblings:window=32:rule=multi_round`.

    Raises:
      UserError: there is no such sampler or field, or the field is one that all methods share.
    """
    name, *parts = text.split(":")
    if name not in SAMPLERS:
        raise unknown("method", name, SAMPLERS)
    fields = {}
    for part in parts:
        field, _, value = part.partition("=")
        fields[field] = read_field(field, value)
    for option, field in GRID.items():
        if field in SHARED and field in fields:
            raise UserError(f"{text}: all methods are compared at the same {field}; give it as --{option}.")
    return Method(name, fields)


def read_methods(text: str) -> list[Method]:
    """Methods between commas, those in brackets left alone; of none, all samplers."""
    found = [read_method(part) for part in re.split(r",(?![^(]*\))", text or ",".join(SAMPLERS))]
    return [method for method in found if method.name != SEQUENTIAL.name]  # which is always there


class Run(NamedTuple):
    """What a method drew at a setting.

    Attributes:
      method: its fields are the setting.
      config: of the sampler.
      sampler: compiled.
      samples: of all labels.
    """

    method: Method
    config: ConfigDict
    sampler: Sampler
    samples: Samples


def sampler_of(config: ConfigDict, workdir: Path, method: Method) -> tuple[ConfigDict, Sampler]:
    """A method's sampler, and the config that it is of.

    Raises:
      UserError: it is not for this model, or something that it needs is absent.
    """
    tried = config.copy_and_resolve_references()
    tried.sampler.update(name=method.name, **method.fields)
    return tried, Sampler(tried, workdir)


def possible(config: ConfigDict, workdir: Path, methods: Sequence[Method], *, named: bool) -> list[Method]:
    """The methods that this workdir has everything for; the others are told, and refused where they were named."""
    found = []
    for method in methods:
        try:
            sampler_of(config, workdir, method)
            found.append(method)
        except UserError as error:
            if named:
                raise
            print(f"left out: {method.label}: {error}", file=sys.stderr)
    return found


def in_turns(samplers: Sequence[Sampler], labels: Int[np.ndarray, "N"], size: int, rounds: int) -> list[list[float]]:
    """Seconds an image of batches that the samplers draw one after the other, for each sampler."""
    found: list[list[float]] = [[] for _ in samplers]
    starts = itertools.islice(itertools.cycle(range(0, len(labels), size)), rounds)
    for start in starts:
        for sampler, seconds in zip(samplers, found):
            seconds.append(float(sampler.batch(labels, start, size)["seconds_per_image"]))
    return found


def row_of(
    run: Run, plain: Run, seconds: Sequence[list[float]], classes: Extractor | None, options: Any
) -> dict[str, Any]:
    """What was measured of a run, beside the sequential sampler's; `seconds` are theirs, the sequential sampler's first."""
    name, section, samples = run.method.name, run.config.sampler, run.samples
    sequential = name == SEQUENTIAL.name
    calls, usual = (each.samples.calls_of_each[: options.images] for each in (run, plain))
    count = options.accuracy_images
    right = classes(samples.images[:count])["class"] == samples.labels[:count] if classes else ()
    return {
        "method": name,
        "label": run.method.label,
        "lossless": name not in LOSSY,
        "window": None if sequential else section.window,
        "guidance": section.guidance_scale,
        "top_k": section.top_k,
        "calls_per_image": float(calls.mean()),
        "calls_ratio": float(usual.mean() / calls.mean()),
        "images_per_second": 1 / statistics.median(seconds[-1]),
        "class_accuracy": float(np.mean(right)) if classes else None,
        "first_drafts": section.first_drafts if SAMPLERS[name].drafts_first else None,
        "rule": section.rule if SAMPLERS[name].by_rule else None,
        "batch_size": min(options.batch_size, len(samples.labels)),
        "calls_std": float(calls.std()),
        "tokens_per_call": float(samples.ids.shape[1] / calls.mean()),
        "same_tokens": float((samples.ids == plain.samples.ids).mean()),
        "speed_ratio": statistics.median(slow / own for slow, own in zip(seconds[0], seconds[-1])),
        "images": len(calls),
        "accuracy_images": count,
    }  # fmt: skip


def drawn_by(accepted: Int[np.ndarray, "N C"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every position of every image (N, T): how many tokens its call drew, and whether it was the last of them.

    Args:
      accepted: tokens that each call drew, one after the other.
      count: T.
    """
    ends = accepted.cumsum(axis=1)
    call = (np.arange(count)[:, None] >= ends[:, None, :]).sum(axis=2)  # that drew a position
    return np.take_along_axis(accepted, call, axis=1), np.arange(count) == np.take_along_axis(ends, call, axis=1) - 1


def entropies(run: Run, size: int) -> Float[np.ndarray, "N T"]:
    """Of the distributions, in nats, that the images' tokens were drawn from, after guidance and filters."""
    config, ids, labels = run.config, run.samples.ids[..., 0], run.samples.labels
    section = {name: value for name, value in config.sampler.items() if name != "name"}
    description = describe_generator(config, token_spec(describe_tokenizer(config)), scan_layers=False)

    @jax.jit
    def program(params: Any, labels: jax.Array, ids: jax.Array) -> jax.Array:
        model = description.merge(params)
        known = Settings(seed=config.seed, **section).of(model)
        ask = caller(model, labels, scales=known["scales"], filters=known["filters"])
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        hidden, _ = ask(ask.cache(), jnp.roll(ids, 1, axis=1), positions)
        return jax.scipy.special.entr(jnp.exp(ask.log_p(hidden, positions))).sum(axis=-1)

    starts = range(0, len(ids), size)
    params = run.sampler.params[0]
    return np.concatenate([program(params, labels[at : at + size], ids[at : at + size]) for at in starts])


def acceptance_of(run: Run, size: int) -> Acceptance:
    """Where the calls of a run got on. An image's last position is where its last call ends, whatever its entropy: left out."""
    assert run.samples.accepted is not None
    tokens, ends = drawn_by(run.samples.accepted, run.samples.ids.shape[1])
    entropy, ends = entropies(run, size)[:, :-1].ravel(), ends[:, :-1].ravel()
    parts = [part for part in np.array_split(np.argsort(entropy, kind="stable"), PARTS) if len(part)]
    return Acceptance(
        name=run.method.label,
        tokens_per_call=1 / (1 / tokens).mean(axis=0),
        entropy=np.array([entropy[part].mean() for part in parts]),
        ends=np.array([ends[part].mean() for part in parts]),
        entropy_of_ends=float(entropy[ends].mean()) if ends.any() else float("nan"),
        entropy_of_others=float(entropy[~ends].mean()) if not ends.all() else float("nan"),
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in columns, aligned."""
    cells = [list(COLUMNS)]
    for row in rows:
        cells.append(["-" if row[name] is None else form.format(row[name]) for name, form in COLUMNS.items()])
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def parse() -> tuple[Any, dict[str, Any]]:
    """The options, and the sampler's fields for all methods."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workdir", required=True, help="of the checkpoint")
    parser.add_argument("--methods", default="", help="all that the workdir has everything for, by default")
    for name in GRID:
        parser.add_argument(f"--{name}", default="", help="values between commas; the workdir's by default")
    parser.add_argument("--images", type=int, default=128, help="that calls are counted of")
    parser.add_argument("--accuracy_images", type=int, help="that are classified; --images by default")
    parser.add_argument("--batch_size", type=int, default=32, help="images a program")
    parser.add_argument("--rounds", type=int, default=3, help="batches of each that are timed")
    parser.add_argument("--json", action="store_true", help="a line of JSON a setting instead of the table")
    parser.add_argument("--plot", type=Path, help="PNG of calls against class accuracy")
    parser.add_argument("--acceptance", type=Path, help="PNG of where calls get on")
    others = [name for name in DEFAULTS if name not in ("name", *GRID.values())]
    for name in others:
        parser.add_argument(f"--{name}", help=f"the field sampler.{name}, of all methods that do not say their own")
    options = parser.parse_args()
    options.accuracy_images = options.images if options.accuracy_images is None else options.accuracy_images
    for name in ("images", "batch_size", "rounds"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be 1 or more.")
    if options.plot and not options.accuracy_images:
        raise UserError("--plot draws calls against class accuracy, which --accuracy_images=0 does without.")
    fields = {name: read_field(name, getattr(options, name)) for name in others if getattr(options, name) is not None}
    return options, fields


def compare(options: Any, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of all settings and methods; writes the pictures."""
    workdir = Path(options.workdir)
    config = prepare(complete(read_config(workdir), base.get_config()), workdir, write=False)
    need_classes(config, "benchmark")
    config.sampler.update(fields)
    grid = {}
    for name, field in GRID.items():
        texts = getattr(options, name).split(",") if getattr(options, name) else []
        grid[field] = [read_field(field, text) for text in texts] or [
            config.sampler[field] or (WINDOW if field == "window" else 0)
        ]
    at_windows = (method.at(window=window) for method in read_methods(options.methods) for window in grid["window"])
    methods = list({method.label: method for method in at_windows}.values())  # some have a window of their own
    methods = possible(config, workdir, methods, named=bool(options.methods))

    labels = asked_classes((-1,), config.data.classes, max(options.images, options.accuracy_images))
    size = min(options.batch_size, len(labels))
    classes = None
    if options.accuracy_images:
        train = read_split(config.data, "train", config.evaluation.training_images)
        classes = find_classifier(config, workdir, train)

    def run(method: Method) -> Run:
        tried, sampler = sampler_of(config, workdir, method)
        return Run(method, tried, sampler, sampler(labels, size))

    rows: list[dict[str, Any]] = []
    gained: dict[str, list[Acceptance]] = {}
    for guidance, top_k in itertools.product(grid["guidance_scale"], grid["top_k"]):
        setting = {"guidance_scale": guidance, "top_k": top_k}
        plain = run(SEQUENTIAL.at(**setting))
        rows.append(row_of(plain, plain, in_turns([plain.sampler], labels, size, options.rounds), classes, options))
        for method in methods:
            tried = run(method.at(**setting))
            seconds = in_turns([plain.sampler, tried.sampler], labels, size, options.rounds)
            rows.append(row_of(tried, plain, seconds, classes, options))
            print(
                f"{tried.method.label}: {rows[-1]['calls_per_image']:.4g} calls an image", file=sys.stderr, flush=True
            )
            if options.acceptance and method.name not in SIDE_BY_SIDE:
                gained.setdefault(setting_of(rows[-1]), []).append(acceptance_of(tried, size))
    if options.plot:
        calls_and_quality(options.plot, {name: list(group) for name, group in itertools.groupby(rows, setting_of)})
    if options.acceptance and gained:
        acceptance_curves(options.acceptance, gained)
    return rows


def main() -> None:
    """The command."""
    options, fields = parse()
    with contextlib.redirect_stdout(sys.stderr):  # progress
        rows = compare(options, fields)
    print("\n".join(map(json.dumps, rows)) if options.json else table(rows))


def setting_of(row: dict[str, Any]) -> str:
    """What the methods of a panel have in common."""
    return f"guidance {row['guidance']:g}, top-k {row['top_k'] or 'off'}"


if __name__ == "__main__":
    tune_malloc()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
