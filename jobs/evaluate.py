"""Judge a checkpoint: sample, look at the samples through networks, compare with the reference, say what was measured."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Int
from ml_collections import ConfigDict

from evaluation.feature_metrics import PUBLISHED, compare
from evaluation.features import gather
from evaluation.image_sets import read_labels
from evaluation.inception import ABSENT
from evaluation.neighbours import nearest
from evaluation.pictures import nearest_strip
from evaluation.shards import compute_shards, read_all, read_shards
from jobs import records
from jobs.conditions import need_classes
from jobs.judges import SHOWN, Judges, call_judges, heldout_loss, judge_tokenizer
from jobs.sample import Sampler, images_per_second
from jobs.workdir import NEWEST, checkpoints_of, read_config
from models.errors import UserError, unknown
from training.checkpoints import steps_on_disk

SECONDS_BETWEEN_LOOKS = 5.0
COPIES = 10_000  # samples that may be copies, at most


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """W/eval/<name>-<step>.json and pictures; returns the newest metrics."""
    need_classes(config, "evaluate")
    for name in ("samples", "batch_size", "heldout"):
        if config.evaluation[name] < 1:
            raise UserError(f"evaluation.{name} is {config.evaluation[name]}; it must be 1 or more.")
    judges = call_judges(config, workdir)
    return follow(config, workdir, judges) if config.evaluation.follow else evaluate(config, workdir, judges).metrics


def follow(config: ConfigDict, workdir: Path, judges: Judges) -> dict[str, Any]:
    """Evaluate every checkpoint that appears, oldest first, until the one of training's last step is done."""
    folder, done, metrics = checkpoints_of("generator", config, workdir), NEWEST, {}
    print(f"following {folder}", flush=True)
    while done < read_config(workdir).training.generator.steps:  # which a training that goes on may raise
        step = next_step(folder, done)
        if step == done:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        config.evaluation.step = done = step
        try:
            metrics = evaluate(config, workdir, judges).metrics
        except UserError:
            if done in steps_on_disk(folder):
                raise
            print(f"step {done} is no longer kept; raise training.generator.keep_last to have each one evaluated")
    return metrics


def next_step(folder: epath.Path, done: int) -> int:
    """The oldest checkpoint after `done`, or `done` where there is none yet; what the first process sees, on all."""
    step = min((step for step in steps_on_disk(folder) if step > done), default=done)
    return int(multihost_utils.broadcast_one_to_all(np.int32(step))) if jax.process_count() > 1 else step


def evaluate(config: ConfigDict, workdir: Path, judges: Judges) -> records.Record:
    """One checkpoint; what was judged already is read, and what an interrupted evaluation has sampled not sampled again."""
    sampler = Sampler(config, workdir, config.evaluation.step)
    settings = records.settings(
        config, step=sampler.step, reference=judges.reference, weights=sampler.weights | judges.weights,
        images=judges.images,
    )  # fmt: skip
    with records.alone(workdir):
        path, earlier = records.find(
            workdir, f"{config.evaluation.name or config.sampler.name}-{sampler.step}", settings
        )
        if earlier:
            print(f"evaluated already: {path}")
            return records.Record.of(earlier)
        record = judge(config, workdir, judges, sampler, path, settings)
    for warning in record.warnings:
        print(f"warning: {warning}")
    print(path)
    return record


def judge(
    config: ConfigDict, workdir: Path, judges: Judges, sampler: Sampler, path: Path, settings: dict[str, Any]
) -> records.Record:
    """The record of these settings, written to `path`."""
    # ---- what is judged without samples
    tokenizer = judge_tokenizer(config, workdir, judges)
    metrics, missing, warnings = dict(tokenizer.metrics), dict(tokenizer.missing), list(tokenizer.warnings)
    if (workdir / "tokens" / "test").is_dir():
        metrics["generator_loss_nats_per_token"] = heldout_loss(config, workdir, sampler.step)
    else:  # imported, not trained
        missing["generator_loss_nats_per_token"] = "there are no tokens of held-out images; --job=extract makes them"
    expected = judges.expected

    # ---- samples, and what networks see in them, in pieces that outlive a kill
    labels = class_labels(config)
    size = min(config.evaluation.batch_size, len(labels))
    folder, pieces = records.work_folder(path, settings), -(-len(labels) // size)
    shown = -(-min(len(labels), COPIES) // size)  # pieces that keep their images

    def piece(k: int) -> dict[str, np.ndarray]:
        found = sampler.batch(labels, k * size, size)
        images = found.pop("images")
        found.pop("accepted", None)
        for extractor in judges.extractors:
            found |= extractor(images)
        return found | ({"images": images} if k < shown else {})

    compute_shards(folder, pieces, piece, title="sample", images_per_shard=size)
    samples = read_all(folder, pieces, ("ids", "calls", "seconds_per_image"))
    metrics["images_per_second_sampling"] = images_per_second(samples["seconds_per_image"])
    metrics["model_calls_per_image"] = float(samples["calls"].mean())
    metrics["distinct_samples"] = len(np.unique(samples["ids"].reshape(len(labels), -1), axis=0))

    # ---- distances to the reference
    names = tuple(name for extractor in judges.extractors for name in extractor.names)
    report = compare(gather(read_shards(folder, pieces, names), len(labels)), expected, seed=config.seed)
    metrics, missing, warnings = metrics | report.metrics, missing | report.missing, [*warnings, *report.warnings]
    if not judges.inception:
        missing |= dict.fromkeys(PUBLISHED, ABSENT)

    # ---- classes and copies
    if judges.classifier:
        classes = read_all(folder, pieces, ["class"])["class"]
        metrics["class_accuracy"] = float(np.mean(classes == labels))
        metrics["classifier_accuracy_real"] = judges.accuracy_on_real
    if judges.train:
        images, train = read_all(folder, shown, ["images"])["images"][:COPIES], judges.train["image"]
        metrics |= {"near_copy_share": judges.copies(images), **judges.real_copies}
        if jax.process_index() == 0:
            strip = path.with_name(f"nearest-{path.stem}.png")
            nearest_strip(strip, images[:SHOWN], train[nearest(images[:SHOWN], train)[1]])

    record = records.Record(settings, metrics, missing, warnings)
    records.write(path, record)
    records.remove(folder)
    return record


def class_labels(config: ConfigDict) -> Int[np.ndarray, "N"]:
    """The class of every sample: all in turn, or as often as in the training images (largest remainders).

    Raises:
      UserError: an unknown way of counting.
    """
    count, classes, how = config.evaluation.samples, config.data.classes, config.evaluation.class_counts
    if how == "balanced":
        return np.resize(np.arange(classes, dtype=np.int32), count)
    if how != "dataset":
        raise unknown("evaluation.class_counts", how, ("balanced", "dataset"))
    train = read_labels(config.data, "train")
    shares = np.bincount(train, minlength=classes) / len(train) * count
    counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: count - counts.sum()]] += 1
    labels = np.repeat(np.arange(classes, dtype=np.int32), counts)
    return np.random.default_rng(config.seed).permutation(labels)  # the first ones are of all classes too
