"""Teacher forcing through the cache: the logits that a sampler sees when it draws given tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from generator.generator import Condition, Generator, Inputs, take_slots
from generator.sampling.sequential import pieces
from models.transformer import grown


def replay(generator: Generator, inputs: Inputs, condition: Condition) -> Float[Array, "B N V"]:
    """Outputs of every token by one call of `extend` for each time of the layout, as `sequential` makes them.

    Args:
      generator: with `scan_layers=False`.
      inputs: as of `Generator.logits`.
      condition: what is asked for.
    """
    layout = generator.layout
    known = [generator.start(condition), take_slots(generator.embed(inputs), layout.source[layout.conditions :])]
    x, context = jnp.concatenate(known, axis=1), generator.context(condition)
    cache = generator.init_cache(len(x), 0)
    found = []
    for piece in pieces(layout, 0, len(layout.groups)):

        def call(cache, time, piece=piece):
            slots = piece.slots(time)
            fed = jax.lax.dynamic_slice_in_dim(x, slots[0], piece.size, axis=1)
            outputs, cache = generator.extend(cache, fed, slots, context)
            return cache, outputs[:, -piece.tokens :]

        if piece.end - piece.begin == 1:
            cache, outputs = call(cache, piece.begin)
        else:
            cache = grown(cache, piece.read)
            cache, outputs = jax.lax.scan(call, cache, jnp.arange(piece.begin, piece.end))
            outputs = jnp.moveaxis(outputs, 0, 1).reshape(len(x), -1, outputs.shape[-1])
        found.append(outputs)
    return jnp.concatenate(found, axis=1)
