"""What samplers ask of a model and of the job, and what they give back."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

from generator.generator import Condition
from generator.layouts import SequenceLayout
from models.masks import Branches
from models.tokens import Tokens, TokenSpec


@runtime_checkable
class Model(Protocol):
    """A generator as samplers see it, `generator.generator.Generator` with `scan_layers=False`: calls of a cache."""

    layout: SequenceLayout
    spec: TokenSpec
    condition: Any  # `null(condition)` is what nothing is asked for with

    def start(self, condition: Condition) -> Any:
        """What feeds the slots of the condition (B, n, D)."""

    def embed(self, inputs: Any) -> Any:
        """What feeds slots (B, n, D), of what the feed gives."""

    def context(self, condition: Condition) -> Any:
        """What every call must know of the condition."""

    def init_cache(self, batch: int, slots: int | None = None) -> Any:
        """An empty cache, of all slots or the first ones."""

    def hidden(
        self,
        cache: Any,
        inputs: Any,
        slots: Any,
        context: Any,
        branches: Branches | None = None,
        unwritten: Bool[Array, "S"] | None = None,
    ) -> Any:
        """What the head is asked with of n slots of each row, or nodes of a tree, (B, n, D), and the cache that knows them."""

    def head(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Logits."""

    def extend(self, cache: Any, inputs: Any, slots: Any, context: Any) -> tuple[Float[Array, "B n V"], Any]:
        """Logits of n slots of each row, given the slots before, and the cache that knows them."""


@runtime_checkable
class Feed(Protocol):
    """What feeds the model's next call, from what has been drawn: the job's, as it knows the tokenizer."""

    def start(self, batch: int) -> Any:
        """The state before anything is drawn, a pytree."""

    def next(self, state: Any, drawn: jax.Array, time: Any) -> tuple[Any, Any]:
        """(state, inputs of the next time's slots) after the ids (B, n, K) of a time, or shares of the codes (B, n, V)."""


class Aids(NamedTuple):
    """What samplers draft with and judge by, beside the model; who samples gives what `samplers.asks` names.

    Attributes:
      frequencies: float32 (B, N, V), log of the share of each code at each position in training images of the class.
      pairs: how often codes are neighbours, `first_drafts.Pairs`.
      codebook: float32 (V, C), the vector of each code.
      draft: a smaller model of the same tokens.
      forecast: what tells how tokens change the model's hidden state, `generator.forecast.Forecast`.
    """

    frequencies: Float[Array, "B N V"] | None = None
    pairs: Any = None
    codebook: Float[Array, "V C"] | None = None
    draft: Any = None
    forecast: Any = None


class SampleOutput(NamedTuple):
    """What a sampler gives back.

    Attributes:
      tokens: what was drawn.
      calls: of the model (B,).
      state: of the feed at the end; for scales the sum of the codes, which `smooth` mixes.
      accepted: tokens that each call drew (B, C), 0 where there was none.
    """

    tokens: Tokens
    calls: Int[Array, "B"]
    state: Any
    accepted: Int[Array, "B C"] | None = None
