"""Judge a checkpoint: sample, look at the samples through networks, compare with the reference, say what was measured."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from evaluation.feature_metrics import compare
from evaluation.features import gather, join
from evaluation.image_sets import read_labels, read_split
from evaluation.neighbours import nearest
from evaluation.pictures import nearest_strip
from evaluation.references import open_reference
from evaluation.shards import compute_shards, read_all, read_shards
from jobs import judges, records
from jobs.networks import find_inception, fit_classifier
from jobs.sample import Sampler, images_per_second
from jobs.workdir import NEWEST
from models.errors import UserError, unknown
from training.checkpoints import steps_on_disk

SECONDS_BETWEEN_LOOKS = 5.0
COPIES = 10_000  # samples that may be copies, at most
SHOWN = 10  # images in a strip
LOOKED_AT = 50  # images that Inception is given at once, at most


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """W/eval/<name>-<step>.json and pictures; returns the newest metrics."""
    return follow(config, workdir) if config.evaluation.follow else evaluate(config, workdir).metrics


def follow(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Evaluate every checkpoint that appears, oldest first, until the one of training's last step is done."""
    folder, last = workdir / "generator" / "checkpoints", config.training.generator.steps
    done, metrics = NEWEST, {}
    print(f"following {folder} until step {last}", flush=True)
    while done < last:
        waiting = [step for step in steps_on_disk(folder) if step > done]
        if not waiting:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        config.evaluation.step = done = min(waiting)
        try:
            metrics = evaluate(config, workdir).metrics
        except UserError:
            if done in steps_on_disk(folder):
                raise
            print(f"step {done} is no longer kept; raise training.generator.keep_last to have each one evaluated")
    return metrics


def evaluate(config: ConfigDict, workdir: Path) -> records.Record:
    """One checkpoint; what an interrupted evaluation has sampled is not sampled again."""
    options, data = config.evaluation, config.data
    sampler = Sampler(config, workdir, options.step)
    reference = open_reference(options.reference, data=data, channels=data.channels, resolution=data.resolution)
    inception, why_not = find_inception(options.inception, batch_size=min(options.batch_size, LOOKED_AT))
    weights = {**sampler.weights, "inception": inception.key if inception else "none"}
    settings = records.settings(config, step=sampler.step, reference=reference, weights=weights)
    path, earlier = records.find(workdir, f"{options.name or config.sampler.name}-{sampler.step}", settings)
    if earlier:
        print(f"evaluated already: {path}")
        return earlier

    # ---- what is judged without samples
    heldout = read_split(data, "test", options.heldout)
    tokenizer = judges.judge_tokenizer(config, workdir, heldout["image"], inception)
    metrics, missing, warnings = dict(tokenizer.metrics), dict(tokenizer.missing), list(tokenizer.warnings)
    metrics["generator_loss_nats_per_token"] = judges.heldout_loss(config, workdir, sampler.step)

    # ---- samples, and what networks see in them, in pieces that outlive a kill
    train = read_split(data, "train", options.training_images) if options.training_images else None
    extractors = [inception] if inception else []
    if train and options.classifier_epochs:
        extractors.append(fit_classifier(config, workdir, train))
    labels = class_labels(config)
    size = min(options.batch_size, len(labels))
    folder, pieces = records.work_folder(path, settings), -(-len(labels) // size)

    def piece(k: int) -> dict[str, np.ndarray]:
        found = sampler.batch(labels, k * size, size)
        for extractor in extractors:
            found |= extractor(found["images"])
        return found

    compute_shards(folder, pieces, piece, title="sample", images_per_shard=size)
    judged = ("class",) if train and options.classifier_epochs else ()
    samples = read_all(folder, pieces, ("ids", "calls", "seconds_per_image", *judged))
    metrics["images_per_second_sampling"] = images_per_second(samples["seconds_per_image"])
    metrics["model_calls_per_image"] = float(samples["calls"].mean())
    metrics["distinct_samples"] = len(np.unique(samples["ids"].reshape(len(labels), -1), axis=0))

    # ---- distances to the reference
    names = tuple(name for extractor in extractors for name in extractor.names)
    seen = gather(read_shards(folder, pieces, names))
    report = compare(seen, join(reference.features(extractor) for extractor in extractors))
    metrics, missing, warnings = metrics | report.metrics, missing | report.missing, [*warnings, *report.warnings]
    if not inception:
        missing["fid"] = why_not

    # ---- classes and copies
    shown = first_images(folder, size, len(labels))
    if judged:
        metrics["class_accuracy"] = float(np.mean(samples["class"] == labels))
        metrics["classifier_accuracy_real"] = float(
            np.mean(extractors[-1](heldout["image"])["class"] == heldout["label"])
        )
    if train:
        metrics |= judges.judge_copies(config, shown, heldout["image"], train["image"])
        nearest_strip(
            path.parent / "nearest.png", shown[:SHOWN], train["image"][nearest(shown[:SHOWN], train["image"])[1]]
        )

    record = records.Record(settings, metrics, missing, warnings)
    records.write(path, record)
    records.remove(folder)
    for warning in warnings:
        print(f"warning: {warning}")
    print(path)
    return record


def first_images(folder: Path, size: int, count: int) -> UInt8[np.ndarray, "N H W C"]:
    """As many of the samples as copies are looked for among, read from pieces of `size` images."""
    pieces = -(-min(count, COPIES) // size)
    return read_all(folder, pieces, ["images"])["images"][:COPIES]


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
