"""The randomness of every position of every image: a function of (seed, image, position), of the batch nothing.

Gumbel noise that a position keeps is what a token is drawn with by every sampler that promises the same picture. What is
random anew at every call of the model has streams of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Stream = int | Int[Array, "W"]  # of the randomness of a position, the same at all or each its own
AGAIN = 0xFFFFFFFF  # streams beside the kept one are counted from here down


def gumbel_noise(seed: int, images: Int[Array, "B"], positions: Int[Array, "B n"], size: int) -> Float[Array, "B n V"]:
    """Gumbel noise of each image's positions: a function of (seed, image index, position) and nothing else."""

    def one(image: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), image), position)
        return jax.random.gumbel(key, (size,))

    return jax.vmap(jax.vmap(one, (None, 0)))(images, positions)


class Noise(NamedTuple):
    """The noise of a window's positions at one call of the model.

    Attributes:
      seed: of the run.
      images: int32 (B,), index of each in its run.
      positions: int32 (B, W).
      turn: int32 (), the number of the call.
    """

    seed: int
    images: Int[Array, "B"]
    positions: Int[Array, "B W"]
    turn: Int[Array, ""] | int

    def kept(self, size: int) -> Float[Array, "B W V"]:
        """Gumbel noise, the same at every call."""
        return gumbel_noise(self.seed, self.images, self.positions, size)

    def keys(self, stream: Stream) -> jax.Array:
        """Keys (B, W) of this call."""

        def one(image: jax.Array, position: jax.Array, stream: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(self.seed), image)
            key = jax.random.fold_in(key, jnp.uint32(AGAIN) - position.astype(jnp.uint32))
            return jax.random.fold_in(jax.random.fold_in(key, stream), self.turn)

        streams = jnp.broadcast_to(jnp.asarray(stream, jnp.uint32), self.positions.shape[1:])
        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, 0, None))(self.images, self.positions, streams)

    def fresh(self, size: int, stream: Stream) -> Float[Array, "B W V"]:
        """Gumbel noise of this call alone."""
        return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (size,))))(self.keys(stream))

    def uniform(self, stream: Stream) -> Float[Array, "B W"]:
        """In [0, 1), of this call alone."""
        return jax.vmap(jax.vmap(jax.random.uniform))(self.keys(stream))
