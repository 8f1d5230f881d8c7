"""Train the config's stages, each in its turn; a finished one is left alone, an interrupted one goes on."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from generator.forecast import ForecastLearner, describe_forecast
from generator.generator import describe_generator, sampling_params
from generator.learner import GeneratorLearner
from generator.objectives import progressive
from generator.sampling.calls import Caller, caller
from generator.sampling.samplers import WINDOW, sampler_settings
from input_pipeline.pipeline import image_batches
from input_pipeline.records import token_batches
from jobs import extract
from jobs.conditions import need_classes
from jobs.feeds import TrainingFeed, training_feed
from jobs.workdir import checkpoints_of, load
from models import sharding
from models.errors import unknown
from models.sharding import Reader
from tokenizer.learner import Losses, TokenizerLearner
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.loop import check_batch, train

Heldout = Callable[[], Iterable[Any]]
HELDOUT = 32  # batches that forecasts are judged with, each of two calls of the generator


def run(config: ConfigDict, workdir: Path, *, profile: bool = False) -> None:
    """W/tokenizer, W/tokens, W/generator, W/forecast; with `profile`, a trace of a few steps of each."""
    mesh = sharding.make_mesh(config.mesh.to_dict())
    for stage in config.stages:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
        check_batch(config.training[stage].batch_size, config.training[stage].accumulate, mesh)
    for number, stage in enumerate(config.stages):
        section = config.training[stage].to_dict()
        before = sum(config.training[earlier].steps for earlier in config.stages[:number])
        learner, dataset, heldout = STAGES[stage](config, workdir, section, sharding.reader_of(mesh))
        train(
            learner, dataset, heldout, section, workdir / stage, mesh=mesh, seed=config.seed, before=before,
            profile=profile, checkpoints_in=checkpoints_of(stage, config, workdir),
        )  # fmt: skip


def tokenizer_stage(
    config: ConfigDict, workdir: Path, section: Mapping[str, Any], reader: Reader
) -> tuple[Any, Any, Heldout]:
    """Images."""
    learner, size = tokenizer_learner(config), section["batch_size"]
    dataset = image_batches(
        config.data,
        "train",
        batch_size=size // reader.readers,
        seed=config.seed,
        augment=True,
        repeat=True,
        reader=reader,
    )

    def heldout() -> grain.IterDataset:
        return image_batches(config.data, "test", batch_size=size, seed=0, augment=False, repeat=False)

    return learner, dataset, heldout


def generator_stage(
    config: ConfigDict, workdir: Path, section: Mapping[str, Any], reader: Reader
) -> tuple[Any, Any, Heldout]:
    """Tokens, extracted first if they are not there."""
    need_classes(config, "train")
    extract.run(config, workdir)
    learner = generator_learner(config, training_feed(config, workdir))
    return learner, *token_data(config, workdir, section, reader)


def tokenizer_learner(config: ConfigDict) -> TokenizerLearner:
    """What the loop trains in the tokenizer's stage."""
    return TokenizerLearner(describe_tokenizer(config), Losses(**config.losses), config.data.channels)


def generator_learner(config: ConfigDict, feed: TrainingFeed) -> GeneratorLearner:
    """What the loop trains in the generator's stage."""
    description = describe_generator(config, token_spec(describe_tokenizer(config)), scan_layers=True)
    layout, section = description.merge(description.shapes).layout, config.training.generator
    weight = progressive(layout, steps=section.steps, warmup=section.warmup_steps, **config.objective)
    return GeneratorLearner(description, *feed, weight)


def forecast_stage(
    config: ConfigDict, workdir: Path, section: Mapping[str, Any], reader: Reader
) -> tuple[Any, Any, Heldout]:
    """Forecasting heads of the trained generator, for drafts of the config's sampler."""
    need_classes(config, "train")
    extract.run(config, workdir)
    spec = token_spec(describe_tokenizer(config))
    description, generator = describe_forecast(config, spec), describe_generator(config, spec, scan_layers=False)
    params, _ = load("generator", describe_generator(config, spec, scan_layers=True), config, workdir)
    settings = sampler_settings(config.sampler.to_dict(), config.seed)

    def asked(model: Any, labels: jax.Array) -> Caller:
        options = settings.of(model)
        return caller(model, labels, scales=options["scales"], filters=options["filters"])

    frozen = jax.device_get(sampling_params(params, config.generator.depth))  # the loop puts it where it is needed
    learner = ForecastLearner(description, generator, frozen, asked, config.sampler.window or WINDOW)
    dataset, heldout = token_data(config, workdir, section, reader)
    return learner, dataset, lambda: itertools.islice(heldout(), HELDOUT)


def token_data(config: ConfigDict, workdir: Path, section: Mapping[str, Any], reader: Reader) -> tuple[Any, Heldout]:
    """Extracted tokens: a reader's share for training, and all held-out ones."""
    size = section["batch_size"]
    dataset = token_batches(
        workdir / "tokens" / "train", batch_size=size // reader.readers, seed=config.seed, repeat=True, reader=reader
    )

    def heldout() -> grain.IterDataset:
        return token_batches(workdir / "tokens" / "test", batch_size=size, seed=0, repeat=False)

    return dataset, heldout


STAGES = {"tokenizer": tokenizer_stage, "generator": generator_stage, "forecast": forecast_stage}
