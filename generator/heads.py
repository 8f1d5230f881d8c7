"""Heads: what a slot's output says about its target."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from generator.cross_entropy import cross_entropy
from models.layers import Linear


class Categorical(nnx.Module):
    """One softmax over the V codes, from float32 logits; zero weights at first, so that the loss starts at ln V."""

    def __init__(self, width: int, sizes: tuple[int, ...], *, bias: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        (self.size,) = sizes  # factorised codes need a head of their own
        self.projection = Linear(
            width, self.size, ("embed", "vocab"), bias=bias, init=nnx.initializers.zeros, dtype=dtype, rngs=rngs
        )

    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return self.projection(hidden).astype(jnp.float32)

    def loss(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T 1"]
    ) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
        """Cross-entropy in nats of every slot, and whether its target is the most likely code."""
        return cross_entropy(self, hidden, targets[..., 0], self.size)

    def log_probs(self, outputs: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
        """Normalised log-probabilities."""
        return jax.nn.log_softmax(outputs, axis=-1)


HEADS: dict[str, Callable[..., Categorical]] = {"categorical": Categorical}
