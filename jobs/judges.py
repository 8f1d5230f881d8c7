"""What judges the checkpoints and samplers of a workdir, and its judgements that need no samples' features."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from evaluation.feature_metrics import POOLED, suffix
from evaluation.features import BLOCK, Extractor, Features, measure
from evaluation.image_sets import ImageSet, read_split
from evaluation.inception import ABSENT
from evaluation.language import token_statistics
from evaluation.neighbours import near_copies, usual_distance
from evaluation.pictures import reconstruction_strip
from evaluation.references import Reference, open_reference
from evaluation.shards import compute_shards, read_all
from evaluation.statistics import frechet_distance
from evaluation.tokenizer_metrics import judge_reconstructions
from generator.generator import describe_generator
from generator.learner import GeneratorLearner
from input_pipeline.records import token_batches
from interop.download import sha256
from jobs import records
from jobs.feeds import training_feed
from jobs.networks import find_classifier, find_inception
from jobs.sample import to_uint8
from jobs.workdir import load
from models import sharding
from tokenizer.perceptual import load_lpips
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.loop import make_evaluation
from training.step import checksum

LOOKED_AT = 50  # images that Inception is given at once, at most
SHOWN = 10  # images in a strip


@dataclasses.dataclass(frozen=True)
class Judges:
    """All that does not depend on checkpoint and sampler, made once for as many of them as there are.

    Attributes:
      reference: what samples are compared with.
      inception: its features; None where there are no weights.
      classifier: its classes and features; None where the config wants no training images, or no epochs.
      heldout: images that the tokenizer is judged with, {"image": uint8 (N, H, W, C), "label": int32 (N,)}.
      augmented: the same images, augmented as in training, uint8 (N, H, W, C); None where `train` is.
      train: images among which copies are looked for, like `heldout`; None where the config wants none.
      lpips: network -> file of its weights.
    """

    reference: Reference
    inception: Extractor | None
    classifier: Extractor | None
    heldout: dict[str, np.ndarray]
    augmented: UInt8[np.ndarray, "N H W C"] | None
    train: dict[str, np.ndarray] | None
    lpips: dict[str, str]

    @property
    def extractors(self) -> list[Extractor]:
        """Those that samples are looked at through."""
        return [extractor for extractor in (self.inception, self.classifier) if extractor]

    @functools.cached_property
    def expected(self) -> Features:
        """What they see in the reference."""
        return self.reference.features(self.extractors)

    @functools.cached_property
    def weights(self) -> dict[str, str]:
        """Hash of every network's weights, by its name."""
        found = {name: one.weights for name in ("inception", "classifier") if (one := getattr(self, name))}
        return found | {f"lpips_{name}": sha256(path) for name, path in self.lpips.items()}

    @functools.cached_property
    def images(self) -> dict[str, Any]:
        """Count and hash of the images, by what they are for."""
        sets = {"heldout": self.originals}
        if self.train:
            sets["training"] = image_set("training images", self.train["image"])
        return {name: {"count": images.count, "sha256": images.sha256} for name, images in sets.items()}

    @functools.cached_property
    def originals(self) -> ImageSet:
        """The held-out images, hashed once."""
        return image_set("held-out images", self.heldout["image"])

    @functools.cached_property
    def usual_distance(self) -> float:
        """How far training images lie from each other."""
        assert self.train
        return usual_distance(self.train["image"])

    @functools.cached_property
    def real_copies(self) -> dict[str, float]:
        """The share of real images that nobody copied and yet lie near a training image, plain and augmented."""
        assert self.augmented is not None
        return {"near_copy_share_real": self.copies(self.heldout["image"]),
                "near_copy_share_real_augmented": self.copies(self.augmented)}  # fmt: skip

    def copies(self, images: UInt8[np.ndarray, "N H W C"]) -> float:
        """The share of images that lie nearer to a training image than these usually lie to each other."""
        assert self.train
        return near_copies(images, self.train["image"], self.usual_distance)

    @functools.cached_property
    def accuracy_on_real(self) -> float:
        """The share of held-out images whose class the classifier finds."""
        assert self.classifier
        return float(np.mean(self.classifier(self.heldout["image"])["class"] == self.heldout["label"]))


def call_judges(config: ConfigDict, workdir: Path) -> Judges:
    """The judges that the config's `evaluation` section names.

    Raises:
      UserError: one of them cannot be had.
    """
    options, data = config.evaluation, config.data
    reference = open_reference(options.reference, data=data, channels=data.channels, resolution=data.resolution)
    inception = find_inception(options.inception, batch_size=min(options.batch_size, LOOKED_AT))
    if not inception:
        print(f"no FID: {ABSENT}")
    train = read_split(data, "train", options.training_images) if options.training_images else None
    return Judges(
        reference=reference,
        inception=inception,
        classifier=find_classifier(config, workdir, train) if train and options.classifier_epochs else None,
        heldout=read_split(data, "test", options.heldout),
        augmented=read_split(data, "test", options.heldout, augment=config.seed)["image"] if train else None,
        train=train,
        lpips={name: options[f"lpips_{name}"] for name in ("vgg", "alex") if options[f"lpips_{name}"]},
    )


def image_set(name: str, images: UInt8[np.ndarray, "N H W C"]) -> ImageSet:
    """Images in memory."""
    return ImageSet(name, len(images), images.__getitem__)


def judge_tokenizer(config: ConfigDict, workdir: Path, judges: Judges) -> records.Record:
    """W/eval/tokenizer-<step>.json and reconstructions-tokenizer-<step>.png: the tokenizer on held-out images."""
    description = describe_tokenizer(config)
    params, step = load("tokenizer", description, config, workdir)
    weights = {name: value for name, value in judges.weights.items() if name != "classifier"}
    settings = {"step": step, "images": judges.images["heldout"], "weights": weights | {"tokenizer": checksum(params)}}
    path, earlier = records.find(workdir, f"tokenizer-{step}", settings)
    if earlier:
        return records.Record.of(earlier)
    spec, heldout = token_spec(description), judges.heldout["image"]

    def network(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        tokenizer = description.merge(params)
        tokens = tokenizer.encode(images / 127.5 - 1)
        return {"images": to_uint8(tokenizer.decode(tokens)), "ids": tokens.ids}

    reconstruct = Extractor(network, params, (), weights="", batch_size=min(len(heldout), config.evaluation.batch_size))
    folder, pieces = records.work_folder(path, settings), -(-len(heldout) // BLOCK)
    compute_shards(
        folder, pieces, lambda k: reconstruct(heldout[k * BLOCK : (k + 1) * BLOCK]), title="reconstruct",
        images_per_shard=BLOCK,
    )  # fmt: skip
    made = read_all(folder, pieces, ("images", "ids"))
    blocks = ((heldout[n : n + BLOCK], made["images"][n : n + BLOCK]) for n in range(0, len(heldout), BLOCK))
    metrics, missing = judge_reconstructions(
        blocks, lpips={name: load_lpips(file) for name, file in judges.lpips.items()}
    )
    metrics |= token_statistics(made["ids"], spec.sizes, pixels=math.prod(heldout.shape[1:3]))
    warnings: list[str] = []
    if judges.inception:
        seen = measure(image_set("reconstructions", made["images"]), judges.inception, folder / "features")
        real = measure(judges.originals, judges.inception)
        for name in (name for name in judges.inception.names if name in POOLED):
            distance = frechet_distance(seen.gaussians[name], real.gaussians[name])
            metrics[f"rfid{suffix(name)}"] = distance.value
            warnings += [f"rfid{suffix(name)}: {warning}" for warning in distance.warnings]
    else:
        missing["rfid"] = ABSENT
    if jax.process_index() == 0:
        strip = path.with_name(f"reconstructions-{path.stem}.png")
        reconstruction_strip(strip, heldout[:SHOWN], made["images"][:SHOWN])
    record = records.Record(settings, prefixed(metrics), prefixed(missing), warnings)
    records.write(path, record)
    records.remove(folder)
    return record


def prefixed(found: dict[str, Any]) -> dict[str, Any]:
    """Names of the tokenizer's metrics as they stand among others."""
    return {f"tokenizer_{name}": value for name, value in found.items()}


def heldout_loss(config: ConfigDict, workdir: Path, step: int) -> float:
    """Mean negative log-likelihood of held-out tokens, nats per token."""
    spec = token_spec(describe_tokenizer(config))
    description = describe_generator(config, spec, scan_layers=True)
    params, _ = load("generator", description, config, workdir, step)
    mesh = sharding.local_mesh()
    learner = GeneratorLearner(description, *training_feed(config, workdir))
    evaluate = make_evaluation(learner, sharding.place_whole(learner.frozen, mesh), mesh)
    size = config.evaluation.batch_size
    batches = token_batches(workdir / "tokens" / "test", batch_size=size + -size % mesh.size, seed=0, repeat=False)
    return evaluate(params, batches)["heldout/loss"]
