"""The networks that judge images: Inception, where its weights can be had, and a classifier fitted on the training images."""

import hashlib
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from evaluation.classifiers import Classifier, describe_convnet, fit
from evaluation.features import Extractor, inception_extractor
from evaluation.inception import find_weights, load_inception
from evaluation.shards import at_once
from models.files import write_npz
from training.step import checksum


def find_inception(weights: str, *, batch_size: int) -> Extractor | None:
    """The deepest features that the weights give; None where none are named and none were downloaded.

    Raises:
      UserError: a file that was named is not there or is no such weights.
    """
    if find_weights(weights) is None:
        return None
    inception = load_inception(weights)
    deepest = ("2048", "spatial", "logits") if "2048" in inception.features else ("768", "spatial")
    names = tuple(name for name in deepest if name in inception.features)
    return inception_extractor(inception, names, batch_size=batch_size)


def find_classifier(config: ConfigDict, workdir: Path, train: dict[str, np.ndarray]) -> Extractor:
    """The classifier of the training images, from W/eval/classifier.npz, fitted where that is of other images or settings.

    One process fits and all read the file, so that there is one classifier: its arithmetic is not the same everywhere.
    """
    images, labels, epochs = train["image"], train["label"], config.evaluation.classifier_epochs
    settings = f"{images.shape} {config.data.classes} {config.seed} {epochs} {config.data.flip} {fit.__kwdefaults__}"
    digest = hashlib.sha256(settings.encode())
    digest.update(np.ascontiguousarray(images))
    digest.update(np.ascontiguousarray(labels))
    path, key = workdir / "eval" / "classifier.npz", digest.hexdigest()
    if jax.process_index() == 0 and not is_of(path, key):
        print(f"fitting a classifier on {len(images)} training images ...", flush=True)
        fitted = fit(
            images, labels, classes=config.data.classes, seed=config.seed, epochs=epochs, flip=config.data.flip
        )
        write_npz(path, key=key, **{f"{n}": leaf for n, leaf in enumerate(jax.tree.leaves(fitted.params))})
    at_once("a classifier is there")
    network = describe_convnet(images.shape[1:], config.data.classes)
    leaves, tree = jax.tree.flatten(network.shapes)
    with np.load(path) as file:
        params = jax.tree.unflatten(tree, [file[f"{n}"] for n in range(len(leaves))])
    return Extractor(Classifier(network, params), params, ("classifier",), weights=checksum(params), batch_size=500)


def is_of(path: Path, key: str) -> bool:
    """Whether a classifier is there and was fitted on these images with these settings."""
    if not path.exists():
        return False
    with np.load(path) as file:
        return bool(file["key"] == key)
