"""The networks that judge images: Inception, where its weights can be had, and a classifier fitted on the training images."""

import hashlib
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from evaluation.classifiers import Classifier, describe_convnet, fit
from evaluation.features import Extractor, inception_extractor
from evaluation.inception import load_inception
from models.errors import UserError
from models.files import write_npz


def find_inception(weights: str, *, batch_size: int) -> tuple[Extractor | None, str]:
    """The deepest features that the config's weights give, or None and why there are none.

    Raises:
      UserError: a file that was named is not there or is no such weights.
    """
    try:
        inception = load_inception(weights or None)
    except UserError as error:
        if weights:
            raise
        return None, str(error)
    deepest = ("2048", "spatial", "logits") if "2048" in inception.features else ("768", "spatial")
    names = tuple(name for name in deepest if name in inception.features)
    return inception_extractor(inception, names, batch_size=batch_size), ""


def fit_classifier(config: ConfigDict, workdir: Path, train: dict[str, np.ndarray]) -> Extractor:
    """The classifier of the training images; W/eval/classifier.npz keeps it."""
    images, labels = train["image"], train["label"]
    epochs = config.evaluation.classifier_epochs
    digest = hashlib.sha256(np.ascontiguousarray(images))
    digest.update(np.ascontiguousarray(labels))
    digest.update(f"{images.shape} {config.seed} {epochs} {config.data.flip}".encode())
    key = digest.hexdigest()

    def extractor(classifier: Classifier) -> Extractor:
        return Extractor(classifier, classifier.params, ("classifier",), key=key, batch_size=500)

    path = workdir / "eval" / "classifier.npz"
    network = describe_convnet(images.shape[1:], config.data.classes)
    leaves, tree = jax.tree.flatten(network.shapes)
    if path.exists():
        with np.load(path) as file:
            if file["key"] == key:
                params = jax.tree.unflatten(tree, [file[f"{n}"] for n in range(len(leaves))])
                return extractor(Classifier(network, params))
    print(f"fitting a classifier on {len(images)} training images ...")
    classifier = fit(
        images, labels, classes=config.data.classes, seed=config.seed, epochs=epochs, flip=config.data.flip
    )  # fmt: skip
    if jax.process_index() == 0:
        write_npz(path, key=key, **{f"{n}": leaf for n, leaf in enumerate(jax.tree.leaves(classifier.params))})
    return extractor(classifier)
