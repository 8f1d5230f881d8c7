"""Judge the checkpoints of a workdir: reconstruction, held-out loss, classes recognised, and whether samples are copies."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from evaluation.classifiers import CLASSIFIERS
from evaluation.language import codebook_usage
from evaluation.neighbours import near_copies, nearest
from evaluation.pictures import nearest_strip, reconstruction_strip
from evaluation.similarity import psnr
from generator.learner import GeneratorLearner
from input_pipeline.pipeline import image_batches
from input_pipeline.records import token_batches
from input_pipeline.transforms import to_float, to_uint8
from jobs.sample import Sampler
from jobs.workdir import describe_generator, describe_tokenizer, load, token_spec
from models import sharding
from models.errors import unknown
from models.files import write_json
from training.loop import make_evaluation

SHOWN = 10  # images in a strip


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """W/eval/<sampler>-<step>.json and pictures; returns the metrics."""
    sampler = Sampler(config, workdir)
    stem = workdir / "eval" / f"{config.sampler.name}-{sampler.step}"
    record = stem.with_suffix(".json")
    settings = {"sampler": config.sampler.to_dict(), "evaluation": config.evaluation.to_dict(), "seed": config.seed,
                "step": sampler.step}  # fmt: skip
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if record.exists() and (found := json.loads(record.read_text()))["settings"] == settings:
        print(f"evaluated already: {record}")
        return found["metrics"]
    stem.parent.mkdir(exist_ok=True)

    train, heldout = (read_images(config, split) for split in ("train", "test"))
    metrics = judge_tokenizer(config, workdir, heldout["image"])
    metrics["generator_loss_nats_per_token"] = heldout_loss(config, workdir)
    labels = np.resize(np.arange(config.data.classes, dtype=np.int32), config.evaluation.samples)
    samples = sampler(labels, config.evaluation.batch_size)
    metrics["images_per_second_sampling"] = samples.images_per_second
    metrics["model_calls_per_image"] = samples.calls
    metrics["distinct_samples"] = len(np.unique(samples.ids.reshape(len(labels), -1), axis=0))
    metrics |= judge_classes(config, train, heldout, samples.images, labels)
    augmented = read_images(config, "test", augment=True)["image"]
    shares = near_copies({"": samples.images, "_real": heldout["image"], "_real_augmented": augmented}, train["image"])
    metrics |= {f"near_copy_share{name}": share for name, share in shares.items()}

    shown = samples.images[:SHOWN]
    nearest_strip(stem.parent / "nearest.png", shown, train["image"][nearest(shown, train["image"])[1]])
    write_json(record, {"settings": settings, "metrics": metrics})
    return metrics


def read_images(config: ConfigDict, split: str, *, augment: bool = False) -> dict[str, np.ndarray]:
    """A whole split in memory: {"image": uint8 (N, H, W, C), "label": int32 (N,)}."""
    batches = list(image_batches(config.data, split, batch_size=512, seed=config.seed, augment=augment, repeat=False))
    return {
        "image": np.concatenate([to_uint8(batch["image"]) for batch in batches]),
        "label": np.concatenate([batch["label"] for batch in batches]),
    }


def judge_tokenizer(config: ConfigDict, workdir: Path, images: UInt8[np.ndarray, "N H W C"]) -> dict[str, float]:
    """PSNR and use of the codebook on held-out images; draws the strip of reconstructions."""
    description = describe_tokenizer(config)
    params, _ = load("tokenizer", description, workdir)

    @jax.jit
    def reconstruct(params: Any, images: jax.Array) -> Any:
        tokenizer = description.merge(params)
        tokens = tokenizer.encode(images)
        return tokenizer.decode(tokens), tokens.ids

    pictures, ids = [], []
    for start in range(0, len(images), 256):
        pixels, found = reconstruct(params, to_float(images[start : start + 256]))
        pictures.append(to_uint8(np.asarray(pixels)))
        ids.append(np.asarray(found))
    reconstructions = np.concatenate(pictures)
    reconstruction_strip(workdir / "eval" / "reconstructions.png", images[:SHOWN], reconstructions[:SHOWN])
    usage = codebook_usage(np.concatenate(ids), sum(token_spec(description).sizes))
    return {
        "tokenizer_psnr": float(psnr(reconstructions, images).mean()),
        "codebook_usage": usage["usage"],
        "codebook_perplexity": usage["perplexity"],
    }


def heldout_loss(config: ConfigDict, workdir: Path) -> float:
    """Mean negative log-likelihood of held-out tokens, nats per token."""
    spec = token_spec(describe_tokenizer(config))
    description = describe_generator(config, spec, scan_layers=True)
    params, _ = load("generator", description, workdir)
    evaluate = make_evaluation(GeneratorLearner(description), sharding.make_mesh({"data": -1, "fsdp": 1}))
    batches = token_batches(workdir / "tokens" / "test", batch_size=config.evaluation.batch_size, seed=0, repeat=False)
    return evaluate(params, batches)["heldout/loss"]


def judge_classes(
    config: ConfigDict,
    train: dict[str, np.ndarray],
    heldout: dict[str, np.ndarray],
    samples: UInt8[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, "N"],
) -> dict[str, float]:
    """Share of samples that a classifier of real training images recognises as the class asked for, and its own accuracy."""
    name = config.evaluation.classifier
    if not name:
        return {}
    if name not in CLASSIFIERS:
        raise unknown("classifier", name, CLASSIFIERS)
    predict = CLASSIFIERS[name](train["image"], train["label"], seed=config.seed)
    return {
        "class_accuracy": float(np.mean(predict(samples) == labels)),
        "classifier_accuracy_real": float(np.mean(predict(heldout["image"]) == heldout["label"])),
    }
