"""What a generator is asked for, and its empty twin for guidance."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.layers import Embedding, Initializer


class ClassCondition(nnx.Module):
    """A class id as one entry before the tokens; row `classes` of the table is "no class" (arXiv:2207.12598)."""

    entries = 1

    def __init__(
        self, classes: int, width: int, *, dropout: float, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.null = classes
        self.dropout = dropout
        self.table = Embedding(classes + 1, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, labels: Int[Array, "B"]) -> Float[Array, "B 1 D"]:
        return self.table(labels)[:, None]

    def drop(self, labels: Int[Array, "B"], key: jax.Array) -> Int[Array, "B"]:
        """Replace a share `dropout` of the labels by "no class", as training does."""
        return jnp.where(jax.random.bernoulli(key, self.dropout, labels.shape), self.null, labels)
