"""Tiny learners and data, so that a step compiles in a second or two."""

import grain
import jax
import numpy as np
import pytest

from configs import digits
from generator.generator import describe_generator
from generator.learner import GeneratorLearner
from models import sharding
from tokenizer.learner import Losses, TokenizerLearner
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.loop import train


def tiny_config():
    """The demo's config, as small as it gets, without dropout."""
    config = digits.get_config()
    config.data.classes = 10
    config.tokenizer.update(channels=4, latent_channels=8, multipliers=(1, 2))
    config.tokenizer.quantizer.update(codes=16, width=4)
    config.generator.update(width=16, depth=2, heads=2, mlp=32, dropout=0.0, label_dropout=0.0)
    for stage in (config.training.tokenizer, config.training.generator):
        stage.update(
            steps=6, batch_size=8, learning_rate=2e-3, warmup_steps=0, save_every=2, log_every=1, schedule="constant"
        )
    return config


def token_examples(count=32, positions=64, codes=16):
    """Made-up tokens with something to learn in them."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, codes, (count, 1, 1)) + np.zeros((count, positions, 1), np.int64)
    return {"ids": ids.astype(np.int32), "label": rng.integers(0, 10, count).astype(np.int32)}


def token_dataset(seed=0, batch_size=8):
    """Endless batches of them, in a new order every epoch."""
    examples = token_examples()
    rows = [{name: column[i] for name, column in examples.items()} for i in range(len(examples["label"]))]
    return grain.MapDataset.source(rows).seed(seed).shuffle().repeat(None).to_iter_dataset().batch(batch_size)


def heldout_tokens():
    return [{name: column[:8] for name, column in token_examples().items()}]


def image_batch(count=8):
    """Noise in [-1, 1] where the digits would be."""
    rng = np.random.default_rng(1)
    return {
        "image": rng.uniform(-1, 1, (count, 16, 16, 1)).astype(np.float32),
        "label": rng.integers(0, 10, count).astype(np.int32),
    }


def make_generator_learner(config):
    spec = token_spec(describe_tokenizer(config))
    return GeneratorLearner(describe_generator(config, spec, scan_layers=True))


def make_tokenizer_learner(config):
    return TokenizerLearner(describe_tokenizer(config), Losses(**config.losses), config.data.channels)


@pytest.fixture
def config():
    return tiny_config()


@pytest.fixture
def mesh():
    return sharding.make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})


@pytest.fixture
def generator_learner(config):
    return make_generator_learner(config)


@pytest.fixture
def tokenizer_learner(config):
    return make_tokenizer_learner(config)


@pytest.fixture
def train_generator(config, mesh, tmp_path):
    """Train the tiny generator in tmp_path/generator; keyword arguments change the training section."""

    def run(dataset=None, generator=None, profile=False, **fields):
        changed = tiny_config()
        changed.generator.update(generator or {})
        changed.training.generator.update(fields)
        return train(
            make_generator_learner(changed), dataset or token_dataset(), heldout_tokens,
            changed.training.generator.to_dict(), tmp_path / "generator", mesh=mesh, seed=0, profile=profile,
        )  # fmt: skip

    return run


@pytest.fixture
def same():
    """Whether two trees are equal, bit for bit."""

    def equal(first, second):
        first, second = jax.tree.map(np.asarray, (first, second))
        return jax.tree.structure(first) == jax.tree.structure(second) and all(
            a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
            for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second))
        )

    return equal
