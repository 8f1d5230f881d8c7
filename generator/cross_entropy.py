"""Cross-entropy of large vocabularies: logits are split over the mesh, never gathered, and never there in numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.sharding import constrain, pieces

MOST_LOGITS = 2**27  # float32 logits of a device: half a gibibyte
LOGITS = ("batch", "sequence", "vocab")


def cross_entropy(
    project: Callable[[Float[Array, "B t D"]], Float[Array, "B t V"]],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    vocabulary: int,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """-log softmax(logits)[target] in nats, and whether the target is the most likely code (the first among equals).

    Where a device would hold more than `MOST_LOGITS` logits, some slots are computed at a time, and once more in the backward
    pass. Reductions over the vocabulary are all that devices which share it exchange.

    Args:
      project: hidden states -> float32 logits.
      hidden: of the slots.
      targets: codes.
      vocabulary: V.
    """
    (B, T), V = targets.shape, vocabulary
    count = part_count(B, T, V)
    if count == 1:
        return of_some(project, hidden, targets)

    def split(x: jax.Array) -> jax.Array:  # every count-th slot, so that devices that share the sequence keep their own
        return jnp.moveaxis(x.reshape(B, T // count, count, *x.shape[2:]), 2, 0)

    some = jax.checkpoint(lambda xs: of_some(project, *xs), prevent_cse=False)
    losses, hits = jax.lax.map(some, (split(hidden), split(targets)))
    return jnp.moveaxis(losses, 0, 2).reshape(B, T), jnp.moveaxis(hits, 0, 2).reshape(B, T)


def part_count(B: int, T: int, V: int) -> int:
    """The least number of equal parts of T slots whose logits fit, each split over the mesh as the whole is."""
    whole = pieces((B, T, V), LOGITS)
    fits = [n for n in range(1, T + 1) if T % n == 0 and pieces((B, T // n, V), LOGITS) == whole]
    return next((n for n in fits if n * whole * MOST_LOGITS >= B * T * V), fits[-1])


def of_some(
    project: Callable[[jax.Array], jax.Array], hidden: Float[Array, "B t D"], targets: Int[Array, "B t"]
) -> tuple[Float[Array, "B t"], Bool[Array, "B t"]]:
    """`cross_entropy` of slots whose logits are computed at once."""
    logits = constrain(project(hidden), LOGITS)
    code = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    # Sums and comparisons over the vocabulary, where an indexed look-up would gather it.
    of_target = jnp.where(code == targets[..., None], logits, 0).sum(axis=-1)
    ahead = jax.lax.stop_gradient(logits - of_target[..., None])
    beaten = (ahead > 0) | ((ahead == 0) & (code < targets[..., None]))
    return jax.nn.logsumexp(logits, axis=-1) - of_target, ~beaten.any(axis=-1)
