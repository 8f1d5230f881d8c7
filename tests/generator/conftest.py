import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generator.generator import Generator, sampling_params
from jobs.feeds import ScaleFeed, TokenFeed
from models.modules import describe
from models.tokens import Grid, TokenSpec
from tokenizer.quantizers import build_quantizer

SCALES = (1, 2, 3)


def multi_scale(codes, scales):
    """What feeds a next-scale generator."""
    inner = {"name": "vector", "codes": codes, "width": 5, "l2_norm": False}
    quantizer = build_quantizer({"name": "multi_scale", "inner": inner, "scales": scales, "phi": 2}, nnx.Rngs(0))
    quantizer.inner.codebook[...] = jax.random.normal(jax.random.key(0), (codes, 5))
    return quantizer


class Case:
    """A small generator in both its forms, every parameter random (the head's too)."""

    def __init__(self, *, height=3, width=4, codes=17, classes=5, seed=0, scale=1.0, sides=SCALES, **options):
        self.options = {"width": 32, "depth": 2, "heads": 4, "mlp": 48, "dropout": 0.0} | options
        if options.get("layout") == "scales":
            quantizer = multi_scale(codes, sides)
            spec, self.feed = (
                TokenSpec(quantizer.shape(Grid(sides[-1], sides[-1])), (codes,), quantizer.width),
                ScaleFeed(quantizer),
            )
        else:
            spec, self.feed = TokenSpec(Grid(height, width), (codes,)), TokenFeed()
        shared = {"spec": spec, "classes": classes}
        self.spec, self.codes, self.classes = spec, codes, classes
        self.description = describe(lambda rngs: Generator(**shared, **self.options, scan_layers=True, rngs=rngs))
        self.sampling = describe(lambda rngs: Generator(**shared, **self.options, scan_layers=False, rngs=rngs))
        rng = np.random.default_rng(seed)

        def random(path, leaf):
            name = jax.tree_util.keystr(path)
            noise = rng.normal(size=leaf.shape)
            return 1 + 0.1 * noise if "scale" in name else noise * (scale / 5 if "head" in name else 0.18)

        params = jax.tree_util.tree_map_with_path(random, self.description.shapes)
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

    @property
    def sampling_params(self):
        return sampling_params(self.params, self.options["depth"])

    @property
    def generator(self):
        return self.description.merge(self.params)

    @property
    def sampling_generator(self):
        return self.sampling.merge(self.sampling_params)

    def inputs(self, ids):
        """What feeds the layout under teacher forcing."""
        return self.feed.whole(ids)

    def batch(self, size=3, seed=1):
        """ids (B, T, 1) and labels (B,)."""
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, self.codes, (size, self.spec.positions, 1))
        return jnp.asarray(ids, jnp.int32), jnp.asarray(rng.integers(0, self.classes, size), jnp.int32)


@pytest.fixture(scope="session")
def make():
    """Makes a `Case`; its keyword arguments are those of `Generator` and the sizes of the data."""
    return Case
