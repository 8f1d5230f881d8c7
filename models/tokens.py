"""Tokens: the one type at which tokenizers and generators meet."""

import dataclasses
import itertools

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
class Scales:
    """Tokens of several grids of the same image, one after the other, the coarsest first, each row by row."""

    grids: tuple[Grid, ...]

    @property
    def positions(self) -> int:
        """Number of token positions of all grids together."""
        return sum(grid.positions for grid in self.grids)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each grid among the positions."""
        ends = itertools.accumulate((grid.positions for grid in self.grids), initial=0)
        return tuple(itertools.pairwise(ends))


@dataclasses.dataclass(frozen=True)
class TokenSpec:
    """What a tokenizer's tokens look like, known before anything runs.

    Attributes:
      shape: how the T positions lie in the image.
      sizes: vocabulary sizes (V_1, ..., V_K) of the K sub-codes at every position.
      width: of a code's vector, which feeds the generators of some layouts.
    """

    shape: Grid | Scales
    sizes: tuple[int, ...]
    width: int = 0

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
