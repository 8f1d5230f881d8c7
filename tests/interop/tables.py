"""What the tests of the name tables share."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from interop.names import leaves, their_shapes
from interop.sources import SOURCES, apply
from interop.state_dicts import read_state

SMALL_TOKENIZER = {"tokenizer.channels": 4, "tokenizer.multipliers": (1,) * 5, "tokenizer.blocks": 1,
                   "tokenizer.latent_channels": 4, "tokenizer.attention": False, "tokenizer.groups": 1}  # fmt: skip


def blank(shape, dtype=np.float32):
    """An array of that shape which takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def configured(source, fields):
    """A config of a source's models."""
    return apply(base.get_config(), {**SOURCES[source].defaults, **fields})


def describe(source, kind, fields):
    """(shapes of our parameters, blank tensors of theirs with their buffers), of a config, without allocating anything."""
    config, of = configured(source, fields), SOURCES[source].kinds[kind]
    shapes = of.describe(config).shapes
    blanks = {path: blank(leaf.shape) for path, leaf in leaves(shapes).items()}
    state = {name: blank(shape) for name, shape in their_shapes(of.entries(config), blanks)}
    state |= {buffer.theirs: buffer.value() for buffer in of.buffers(config) if buffer.value is not None}
    return shapes, state


def rule_models(folder):
    """{model: (its config, {name: shape})} of the models of a parity folder, stored and made by a rule."""
    manifest = json.loads((folder / "manifest.json").read_text())["models"]
    rules = json.loads((folder / "rule_weights.json").read_text())["models"]
    made = {
        name: (rule["config"], {t["key"]: tuple(t["shape"]) for t in rule["tensors"]}) for name, rule in rules.items()
    }
    stored = {name: (model["config"], {key: tuple(shape) for key, shape in model["keys"].items()})
              for name, model in manifest.items() if "keys" in model}  # fmt: skip
    return made | stored


def load(source, paths, overrides):
    """(config, {kind: (our module with its parameters, parameters, tensors)}) of files."""
    states = {}
    for path in paths:
        state = read_state(path, SOURCES[source].containers)
        states[SOURCES[source].kind_of(state)] = state
    config = SOURCES[source].configure(base.get_config(), states, overrides)
    found = {}
    for kind, state in states.items():
        of = SOURCES[source].kinds[kind]
        params = of.params(state, config)
        found[kind] = of.describe(config).merge(jax.tree.map(jnp.asarray, params)), params, state
    return config, found


class Reference:
    """The arrays of a parity folder's ref.npz and their tolerances."""

    def __init__(self, folder):
        self.arrays = np.load(folder / "ref.npz")
        self.facts = json.loads((folder / "manifest.json").read_text())["arrays"]["ref.npz"]

    def __getitem__(self, name):
        return self.arrays[name]

    def ids(self, name):
        """An array of indices as ours: int32 (B, T, 1)."""
        return jnp.asarray(self.arrays[name].astype(np.int32))[..., None]

    def channels_last(self, name):
        """An array of images as ours: (B, H, W, C)."""
        return self.arrays[name].transpose(0, 2, 3, 1)

    def agree(self, name, got):
        """Fail where an array is not that one within its tolerance; images may be ours."""
        want, tolerance = self.arrays[name], self.facts[name]["tolerance"]
        got = np.asarray(got)
        if got.ndim == 4 and got.shape != want.shape:
            got = got.transpose(0, 3, 1, 2)
        if tolerance == "exact":
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, **tolerance)


def assert_identical(ours, theirs):
    """Every tensor of `theirs` is among `ours`, bit for bit."""
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert np.ascontiguousarray(ours[name]).tobytes() == np.ascontiguousarray(tensor).tobytes(), name
