"""The judgements of an evaluation that need no samples' features: tokenizer, likelihood, copies."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from evaluation.feature_metrics import POOLED, suffix
from evaluation.features import BLOCK, Extractor, measure
from evaluation.image_sets import ImageSet
from evaluation.language import token_statistics
from evaluation.neighbours import near_copies
from evaluation.pictures import reconstruction_strip
from evaluation.shards import compute_shards, read_all
from evaluation.statistics import frechet_distance
from evaluation.tokenizer_metrics import judge_reconstructions
from generator.learner import GeneratorLearner
from input_pipeline import transforms
from input_pipeline.pipeline import image_batches
from input_pipeline.records import token_batches
from interop.download import sha256
from jobs import records
from jobs.sample import to_uint8
from jobs.workdir import describe_generator, describe_tokenizer, load, token_spec
from models import sharding
from tokenizer.perceptual import load_lpips
from training.loop import make_evaluation

SHOWN = 10  # images in a strip


def judge_tokenizer(
    config: ConfigDict, workdir: Path, heldout: UInt8[np.ndarray, "N H W C"], inception: Extractor | None
) -> records.Record:
    """W/eval/tokenizer-<step>.json and reconstructions.png: the tokenizer on held-out images."""
    description = describe_tokenizer(config)
    params, step = load("tokenizer", description, workdir)
    originals = ImageSet(f"{config.data.name}:test", len(heldout), heldout.__getitem__)
    weights = {name: config.evaluation[f"lpips_{name}"] for name in ("vgg", "alex")}
    settings = {
        "step": step, "images": {"count": len(heldout), "sha256": originals.sha256},
        "weights": {name: sha256(path) for name, path in weights.items() if path}
        | ({"inception": inception.key} if inception else {}),
    }  # fmt: skip
    path, found = records.find(workdir, f"tokenizer-{step}", settings)
    if found:
        return found
    spec = token_spec(description)

    def network(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        tokenizer = description.merge(params)
        tokens = tokenizer.encode(images / 127.5 - 1)
        return {"images": to_uint8(tokenizer.decode(tokens)), "ids": tokens.ids}

    reconstruct = Extractor(network, params, (), key="", batch_size=min(len(heldout), config.evaluation.batch_size))
    folder, pieces = records.work_folder(path, settings), -(-len(heldout) // BLOCK)

    compute_shards(
        folder, pieces, lambda k: reconstruct(heldout[k * BLOCK : (k + 1) * BLOCK]), title="reconstruct",
        images_per_shard=BLOCK,
    )  # fmt: skip
    made = read_all(folder, pieces, ("images", "ids"))
    blocks = ((heldout[n : n + BLOCK], made["images"][n : n + BLOCK]) for n in range(0, len(heldout), BLOCK))
    metrics, missing = judge_reconstructions(
        blocks, lpips={name: load_lpips(path) for name, path in weights.items() if path}
    )  # fmt: skip
    metrics |= token_statistics(made["ids"], spec.sizes, pixels=math.prod(heldout.shape[1:3]))
    warnings: list[str] = []
    if inception:
        reconstructions = ImageSet("reconstructions", len(heldout), made["images"].__getitem__)
        seen, real = measure(reconstructions, inception, folder / "features"), measure(originals, inception)
        for name in inception.names:
            if name in POOLED:
                distance = frechet_distance(seen.gaussians[name], real.gaussians[name])
                metrics[f"rfid{suffix(name)}"] = distance.value
                warnings += [f"rfid{suffix(name)}: {warning}" for warning in distance.warnings]
    reconstruction_strip(workdir / "eval" / "reconstructions.png", heldout[:SHOWN], made["images"][:SHOWN])
    record = records.Record(settings, {f"tokenizer_{k}": v for k, v in metrics.items()}, missing, warnings)
    records.write(path, record)
    records.remove(folder)
    return record


def heldout_loss(config: ConfigDict, workdir: Path, step: int) -> float:
    """Mean negative log-likelihood of held-out tokens, nats per token."""
    spec = token_spec(describe_tokenizer(config))
    description = describe_generator(config, spec, scan_layers=True)
    params, _ = load("generator", description, workdir, step)
    evaluate = make_evaluation(GeneratorLearner(description), sharding.local_mesh())
    batches = token_batches(
        workdir / "tokens" / "test", batch_size=config.evaluation.batch_size, seed=0, repeat=False, whole=True
    )
    return evaluate(params, batches)["heldout/loss"]


def judge_copies(
    config: ConfigDict, samples: UInt8[np.ndarray, "N H W C"], heldout: UInt8[np.ndarray, "M H W C"],
    train: UInt8[np.ndarray, "L H W C"],
) -> dict[str, float]:  # fmt: skip
    """Share of samples, of held-out images and of augmented ones that lie as near to a training image as a copy would."""
    batches = image_batches(
        config.data, "test", batch_size=500, seed=config.seed, augment=True, repeat=False, whole=True
    )
    augmented = np.concatenate([transforms.to_uint8(batch["image"]) for batch in batches])[: len(heldout)]
    shares = near_copies({"": samples, "_real": heldout, "_real_augmented": augmented}, train)
    return {f"near_copy_share{name}": share for name, share in shares.items()}
