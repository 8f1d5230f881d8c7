"""What a generator is asked for, and its empty twin for guidance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.layers import Embedding, Initializer, Linear
from models.masks import INFINITY, Visibility


class ClassCondition(nnx.Module):
    """A class id as one entry before the tokens; row `classes` of the table is "no class" (arXiv:2207.12598).

    A condition is int32 (B,).
    """

    entries = 1

    def __init__(
        self, *, classes: int, width: int, dropout: float, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs
    ):  # fmt: skip
        self.none = classes
        self.dropout = dropout
        self.table = Embedding(classes + 1, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, labels: Int[Array, "B"]) -> Float[Array, "B 1 D"]:
        return self.table(labels)[:, None]

    def null(self, labels: Int[Array, "B"]) -> Int[Array, "B"]:
        """The label of no class for each."""
        return jnp.full_like(labels, self.none)

    def drop(self, labels: Int[Array, "B"], key: jax.Array) -> Int[Array, "B"]:
        """Replace a share `dropout` of the labels by "no class", as training does."""
        return jnp.where(jax.random.bernoulli(key, self.dropout, labels.shape), self.none, labels)

    def visibility(self, labels: Int[Array, "B"], layout: Visibility) -> Visibility:
        """The layout's: a class is seen by all."""
        return layout


class Captions(NamedTuple):
    """Features of captions, the last ones of each sequence its own, those before padding.

    Attributes:
      features: float32 (B, S, F), of a text encoder.
      present: int32 (B, S), 1 for a caption's own, 0 for padding.
    """

    features: Float[Array | np.ndarray, "B S F"]
    present: Int[Array | np.ndarray, "B S"]


def left_padded(features: Float[np.ndarray, "B S F"], mask: Int[np.ndarray, "B S"]) -> Captions:
    """Captions whose own features come first, turned so that they come last; padding becomes 0, as in LlamaGen."""
    lengths = mask.sum(axis=1, keepdims=True)
    places = (np.arange(mask.shape[1]) + lengths) % mask.shape[1]
    present = np.flip(mask, axis=1).astype(np.int32)
    turned = np.take_along_axis(features, places[..., None], axis=1)
    return Captions(np.where(present[..., None] == 1, turned, 0).astype(features.dtype), present)


class TextCondition(nnx.Module):
    """The features of a caption as entries before the tokens (LlamaGen's text-conditional models).

    Two products with tanh-GELU between bring them to the model's width. Padding is seen by nobody but itself. The features of
    "no caption" are drawn once and never trained, as LlamaGen's are, and keep the caption's padding.

    A condition is `Captions`.
    """

    def __init__(
        self, *, entries: int, features: int, width: int, dropout: float, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs
    ):  # fmt: skip
        self.entries, self.dropout = entries, dropout
        start = jax.random.normal(rngs.params(), (entries, features)) * features**-0.5
        self.none = nnx.Param(start, axes=("norm", "norm"))
        self.up = Linear(features, width, (None, "embed"), init=init, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, ("mlp", "embed"), init=init, dtype=dtype, rngs=rngs)

    def __call__(self, captions: Captions) -> Float[Array, "B S D"]:
        return self.out(jax.nn.gelu(self.up(jnp.asarray(captions.features)), approximate=True))

    def null(self, captions: Captions) -> Captions:
        """The features of no caption for each, as long as it is."""
        none = jax.lax.stop_gradient(self.none[...])
        return captions._replace(features=jnp.broadcast_to(none, captions.features.shape))

    def drop(self, captions: Captions, key: jax.Array) -> Captions:
        """Replace a share `dropout` of the captions by "no caption", as training does."""
        gone = jax.random.bernoulli(key, self.dropout, (len(captions.features), 1, 1))
        return captions._replace(features=jnp.where(gone, self.null(captions).features, captions.features))

    def visibility(self, captions: Captions, layout: Visibility) -> Visibility:
        """The layout's without padding, which only its own slots see."""
        padding = jnp.pad(captions.present == 0, ((0, 0), (0, len(layout.k_end) - self.entries)))
        return layout._replace(k_end=jnp.where(padding, jnp.asarray(layout.k_start) + 1, INFINITY))


CONDITIONS: dict[str, Callable[..., Any]] = {"class": ClassCondition, "text": TextCondition}
