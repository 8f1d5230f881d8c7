"""Tokens: the one type at which tokenizers and generators meet."""

import dataclasses

import jax
from jaxtyping import Array, Int


@dataclasses.dataclass(frozen=True)
class Grid:
    """Tokens that lie on a raster of `height` rows and `width` columns."""

    height: int
    width: int

    @property
    def positions(self) -> int:
        """Number of token positions."""
        return self.height * self.width


@dataclasses.dataclass(frozen=True)
class TokenSpec:
    """What a tokenizer's tokens look like, known before anything runs.

    Attributes:
      shape: how the T positions lie in the image.
      sizes: vocabulary sizes (V_1, ..., V_K) of the K sub-codes at every position.
    """

    shape: Grid
    sizes: tuple[int, ...]

    @property
    def positions(self) -> int:
        """T, the number of token positions of an image."""
        return self.shape.positions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A batch of tokenized images.

    Attributes:
      ids: int32 (B, T, K), sub-code k of position t in [0, V_k).
    """

    ids: Int[Array, "B T K"]
