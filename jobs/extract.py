"""Turn the dataset into tokens, once: W/tokens/train and W/tokens/test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.frequencies import FREQUENCIES, count_codes
from input_pipeline.pipeline import image_batches
from input_pipeline.records import read_manifest, token_batches, write_tokens
from input_pipeline.sources import open_source
from jobs.workdir import load
from models import distributed
from models.errors import UserError
from models.progress import Progress
from models.tokens import Grid
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.step import checksum


def run(config: ConfigDict, workdir: Path) -> None:
    """Extract what is missing; of several processes the first does, while the others wait."""
    distributed.first(lambda: extract(config, workdir))


def extract(config: ConfigDict, workdir: Path) -> None:
    """Tokens of both splits, and the codes' frequencies.

    Raises:
      UserError: tokens are there, but another tokenizer or another dataset made them.
    """
    description = describe_tokenizer(config)
    params, step = load("tokenizer", description, workdir)
    spec = token_spec(description)
    manifest = {
        "tokenizer": checksum(params),
        "tokenizer_step": step,
        "dataset": config.data.name,
        "resolution": config.data.resolution,
        "vocabulary": list(spec.sizes),
    }
    encode = jax.jit(lambda params, images: description.merge(params).encode(images).ids)

    def batches(split: str, copies: int) -> Iterator[dict[str, Any]]:
        total = copies * len(open_source(config.data, split))
        progress, done = Progress(f"extract {split}", total), 0
        for copy in range(copies):
            images = image_batches(
                config.data, split, batch_size=config.extract.batch_size, seed=config.seed + copy, augment=copy > 0,
                repeat=False,
            )  # fmt: skip
            for batch in images:
                yield {"ids": np.asarray(encode(params, batch["image"])), "label": batch["label"]}
                done += len(batch["label"])
                progress.update(done)
        progress.close()

    for split, copies in (("train", config.extract.copies), ("test", 1)):
        directory = workdir / "tokens" / split
        wanted = {**manifest, "split": split, "copies": copies}
        found = read_manifest(directory)
        if found is None:
            write_tokens(directory, batches(split, copies), wanted)
            continue
        for field, value in wanted.items():
            if found.get(field) != value:
                raise UserError(
                    f"{directory} has {field} {found.get(field)!r}, not {value!r}; delete it to extract anew."
                )
    if isinstance(spec.shape, Grid) and len(spec.sizes) == 1:
        count_frequencies(workdir / "tokens", spec.sizes[0], spec.shape.width)


def count_frequencies(directory: Path, codes: int, width: int) -> None:
    """Of the training images' codes, where they are not counted yet."""
    path = directory / FREQUENCIES
    if not path.exists():
        batches = token_batches(directory / "train", batch_size=1024, seed=0, repeat=False)
        count_codes(path, batches, codes, width)
