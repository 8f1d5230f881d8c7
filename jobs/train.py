"""Train the config's stages, each in its turn; a finished one is left alone, an interrupted one goes on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from generator.generator import describe_generator
from generator.learner import GeneratorLearner
from generator.objectives import progressive
from input_pipeline.pipeline import image_batches
from input_pipeline.records import token_batches
from jobs import extract
from jobs.conditions import need_classes
from jobs.feeds import training_feed
from models import sharding
from models.errors import unknown
from tokenizer.learner import Losses, TokenizerLearner
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.loop import train

Heldout = Callable[[], grain.IterDataset]


def run(config: ConfigDict, workdir: Path) -> None:
    """W/tokenizer, W/tokens, W/generator."""
    for stage in config.stages:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
        section = config.training[stage].to_dict()
        learner, dataset, heldout = STAGES[stage](config, workdir, section)
        mesh = sharding.make_mesh(config.mesh.to_dict())
        train(learner, dataset, heldout, section, workdir / stage, mesh=mesh, seed=config.seed)


def tokenizer_stage(config: ConfigDict, workdir: Path, section: Mapping[str, Any]) -> tuple[Any, Any, Heldout]:
    """Images."""
    learner = TokenizerLearner(describe_tokenizer(config), Losses(**config.losses), config.data.channels)
    share = section["batch_size"] // jax.process_count()
    dataset = image_batches(config.data, "train", batch_size=share, seed=config.seed, augment=True, repeat=True)

    def heldout() -> grain.IterDataset:
        return image_batches(config.data, "test", batch_size=share, seed=0, augment=False, repeat=False)

    return learner, dataset, heldout


def generator_stage(config: ConfigDict, workdir: Path, section: Mapping[str, Any]) -> tuple[Any, Any, Heldout]:
    """Tokens, extracted first if they are not there."""
    need_classes(config, "train")
    extract.run(config, workdir)
    spec = token_spec(describe_tokenizer(config))
    description = describe_generator(config, spec, scan_layers=True)
    layout = description.merge(description.shapes).layout
    weight = progressive(layout, steps=section["steps"], warmup=section["warmup_steps"], **config.objective)
    learner = GeneratorLearner(description, training_feed(config, workdir), weight)
    share = section["batch_size"] // jax.process_count()
    dataset = token_batches(workdir / "tokens" / "train", batch_size=share, seed=config.seed, repeat=True)

    def heldout() -> grain.IterDataset:
        return token_batches(workdir / "tokens" / "test", batch_size=share, seed=0, repeat=False)

    return learner, dataset, heldout


STAGES = {"tokenizer": tokenizer_stage, "generator": generator_stage}
