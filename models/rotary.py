"""Rotary position embedding over two axes (Su et al., arXiv:2104.09864; its two-dimensional form as in LlamaGen)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BASE = 10_000.0


def rotary_table(
    positions: Int[Array | np.ndarray, "*B T 2"], head_dim: int, nowhere: float
) -> Float[Array, "*B T 2 d2"]:
    """Cosines and sines that turn the head_dim / 2 adjacent pairs of a query or key.

    The first half of the pairs turns with the row, the second half with the column; pair j of either half has frequency
    BASE^(-2j / (head_dim / 2)).

    Args:
      positions: (row, column) of each slot; -1 for slots that lie nowhere, those of the condition.
      head_dim: width of a head, divisible by 4.
      nowhere: factor of the identity that stands for the rotation of such slots: 1 leaves their queries and keys as they
        are; 0 makes them vanish, so that everybody's score to them is exactly 0, as in LlamaGen's released models.

    Returns:
      float32 (*B, T, 2, head_dim / 2): cosine, then sine.
    """
    pairs = head_dim // 4
    frequencies = BASE ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)
    angles = positions[..., None].astype(jnp.float32) * frequencies  # (*B, T, 2, pairs)
    angles = angles.reshape(*positions.shape[:-1], 2 * pairs)
    placed = positions[..., :1] >= 0
    return jnp.stack([jnp.where(placed, jnp.cos(angles), nowhere), jnp.where(placed, jnp.sin(angles), 0.0)], axis=-2)


def rotate(x: Float[Array, "B T H d"], table: Float[Array, "*B T 2 d2"]) -> Float[Array, "B T H d"]:
    """Turn the adjacent pairs (2j, 2j + 1) of x by the table's angles, in float32."""
    cos, sin = table[..., 0, None, :], table[..., 1, None, :]  # (*B, T, 1, d / 2)
    even, odd = x[..., ::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
