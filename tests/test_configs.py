"""Every experiment builds, says how it is run, and its training steps trace at their real sizes."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import base, llamagen, var
from generator.generator import describe_generator
from generator.learner import GeneratorLearner
from jobs.workdir import flat
from tokenizer.learner import Losses, TokenizerLearner
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.step import make_init, make_step

FOLDER = Path(base.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "arguments", "base"))
EXPERIMENTS = [(name, "") for name in NAMES if name not in ("llamagen", "var")]
EXPERIMENTS += [("llamagen", f"size={size}") for size in llamagen.SIZES] + [("llamagen", "size=B,resolution=384")]
EXPERIMENTS += [("var", f"depth={depth}") for depth in var.SIZES] + [("var", "depth=16,resolution=512")]
EXPERIMENTS += [("digits", "next=scale"), ("fashion_mnist", "next=scale")]
ids = [f"{name}:{argument}".strip(":") for name, argument in EXPERIMENTS]
experiments = pytest.mark.parametrize(("name", "argument"), EXPERIMENTS, ids=ids)


def load(name, argument=""):
    """The config as main.py gets it, with as many classes as the dataset would say."""
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = get_config(argument) if argument else get_config()
    config.data.classes = config.data.classes or 10
    return config


def trace(learner, section, batch):
    """Shapes of the state, before and after a step, and of the metrics; nothing is computed or allocated."""
    state = jax.eval_shape(make_init(learner, section), jax.random.key(0))
    after, metrics = jax.eval_shape(make_step(learner, section, 0), state, batch)
    return state, after, metrics


def structure(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@experiments
def test_fields_are_those_of_base(name, argument):
    known, fields = flat(base.get_config()), flat(load(name, argument))
    if fields["tokenizer.quantizer.name"] == "multi_scale":  # a section of another name has fields of its own
        known, fields = ({field: value for field, value in all_.items() if not field.startswith("tokenizer.quantizer.")}
                         for all_ in (known, fields))  # fmt: skip
    assert fields.keys() == known.keys()
    for field, value in fields.items():
        assert isinstance(value, type(known[field])), f"{field} is {value!r}, in base {known[field]!r}"


# The others' tokenizers, losses and batches are those of llamagen:size=B and var:depth=16; the next test holds that.
tokenizers = [
    item for item in EXPERIMENTS if item[0] != "imagenet256" and item[1] in ("", "size=B", "depth=16", "next=scale")
]
FIRST = {"llamagen": "size=B", "imagenet256": "size=B", "var": "depth=16"}
OTHERS = [
    item for item in EXPERIMENTS if item not in tokenizers and item[1] not in ("depth=36", "depth=16,resolution=512")
]


@pytest.mark.parametrize(("name", "argument"), OTHERS)
def test_a_methods_tokenizer_is_the_same_for_every_generator(name, argument):
    config, other = load(name, argument), load("var" if name == "var" else "llamagen", FIRST[name])
    for section in ("tokenizer", "losses", "extract"):
        assert config[section] == other[section]
    assert config.training.tokenizer == other.training.tokenizer


@pytest.mark.parametrize(("name", "argument"), tokenizers)
def test_tokenizer_step_traces_at_its_real_size(name, argument):
    config = load(name, argument)
    section, side = config.training.tokenizer, config.data.resolution
    learner = TokenizerLearner(describe_tokenizer(config), Losses(**config.losses), config.data.channels)
    batch = {
        "image": jax.ShapeDtypeStruct((section.batch_size, side, side, config.data.channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((section.batch_size,), jnp.int32),
    }
    before, after, metrics = trace(learner, section.to_dict(), batch)
    assert structure(before) == structure(after)
    assert metrics["loss"].shape == metrics["reconstruction_loss"].shape == ()
    assert ("discriminator" in after["params"]) == (config.losses.adversarial > 0)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((after["params"], after["ema"])))


# They are B's, and d16's, program with other widths and depths.
ALIKE = ("size=L", "size=XL", "size=XXL", "depth=20", "depth=24", "depth=30")


@pytest.mark.parametrize(("name", "argument"), [item for item in EXPERIMENTS if item[1] not in ALIKE])
def test_generator_step_traces_at_its_real_size(name, argument):
    config = load(name, argument)
    spec, section = token_spec(describe_tokenizer(config)), config.training.generator
    side, quantizer = config.data.resolution // 2 ** (len(config.tokenizer.multipliers) - 1), config.tokenizer.quantizer
    scales = quantizer.get("scales", (side,))
    assert scales[-1] == side
    assert spec.positions == sum(scale**2 for scale in scales)
    assert spec.sizes == (quantizer.get("inner", quantizer).codes,)
    # What feeds the scales has this shape, whatever the tokenizer.
    fed = lambda ids: jnp.zeros((len(ids), spec.positions - 1, spec.width))  # noqa: E731
    description = describe_generator(config, spec, scan_layers=True)
    learner = GeneratorLearner(description, *([fed] if config.generator.layout == "scales" else []))
    shape = (section.batch_size, spec.positions, len(spec.sizes))
    batch = {
        "ids": jax.ShapeDtypeStruct(shape, jnp.int32),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }
    before, after, metrics = trace(learner, section.to_dict(), batch)
    assert structure(before) == structure(after)
    assert metrics["loss"].shape == ()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((after["params"], after["ema"])))


@pytest.mark.parametrize("name", NAMES)
def test_docstring_opens_with_the_command(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    command = re.search(r"^ *python main\.py(.*)$", text, re.MULTILINE)
    assert command, text
    named = re.search(r"--config=configs/(\w+)\.py", command[1])
    assert (named[1] if named else "digits") == name  # without --config it is the demo
    for field in re.findall(r"--config\.([\w.]+)", text):
        assert field in flat(base.get_config()), field


@pytest.mark.parametrize(
    ("argument", "said"),
    [("size=M", r"size='M'.*B, L, XL, XXL, 3B"), ("sise=B", r"'sise'.*size, resolution"), ("resolution=100", "'100'")],
)
def test_unknown_llamagen_argument_is_a_clear_error(argument, said):
    with pytest.raises(ValueError, match=said):
        llamagen.get_config(argument)


def test_configs_do_not_share_what_they_change():
    first, second = load("digits"), load("digits")
    first.tokenizer.quantizer.codes = 7
    first.training.generator.optimizer.b1 = 0.1
    assert flat(second) == flat(load("digits"))
