"""Softmax attention under visibility intervals."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from models import masks
from models.sharding import pieces

HIDDEN = -1e30  # finite, so that a query that sees nothing gives a mean and not NaN
IN_CACHE = 2**21  # scores that a CPU core's cache and a little more hold
ROWS = 128  # queries of a run, or a multiple
RUNS = 8  # of a sequence at most: each is code of its own


class Run(NamedTuple):
    """Consecutive queries, and the keys that somebody of them sees.

    Attributes:
      queries: from where to where.
      keys: the first that is seen, and the one after the last.
      mask: who sees what of them; None where everybody sees everything.
    """

    queries: tuple[int, int]
    keys: tuple[int, int]
    mask: Bool[Array | np.ndarray, "*B t s"] | None


def attention(
    q_BTHd: Float[Array, "B T H d"],
    k_BGSd: Float[Array, "B G S d"],
    v_BGSd: Float[Array, "B G S d"],
    visibility: masks.Visibility,
    *,
    scale: float | None = None,
) -> Float[Array, "B T H d"]:
    """softmax(scale q k^T) v over the keys that each query sees; the softmax is float32, the scale 1 / sqrt(d) by default.

    Keys and values come head by head: one matrix product a (sample, key head), each over memory that lies together, is what
    XLA's CPU and TPU back ends are fastest at; with the heads inside, attention to a cache takes a CPU three times as long.
    Query head h reads key/value head h // (H / G): grouped-query attention where G < H, with G dividing H.

    Where the mask is known before anything runs, the queries go in runs, and a run computes no score of keys that nobody of
    it sees: of a causal mask over 256 slots a quarter is never computed, and of long sequences nearly half.
    """
    B, T, H, d = q_BTHd.shape
    G = k_BGSd.shape[1]
    scale = d**-0.5 if scale is None else scale
    q_BGhTd = q_BTHd.reshape(B, T, G, H // G, d).transpose(0, 2, 3, 1, 4)
    shared = pieces((T,), ("sequence",)) > 1  # by devices, each of which keeps its own queries, in one run
    parts = []
    for (start, stop), (first, last), mask in runs(masks.visible(visibility), T if shared else rows(T)):
        q = q_BGhTd[:, :, :, start:stop].reshape(B, G, -1, d)
        out = of_run(q, k_BGSd[:, :, first:last], v_BGSd[:, :, first:last], mask, scale=scale)
        parts.append(out.reshape(B, G, H // G, stop - start, d))
    return jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, H, d)


def rows(T: int) -> int:
    """The length of a run of T queries."""
    return ROWS * -(-T // (ROWS * RUNS))


def runs(visible: Bool[Array | np.ndarray, "*B T S"], length: int) -> list[Run]:
    """The runs of a mask, of so many queries; a single one of a mask that is traced, or that hides nothing."""
    T, S = visible.shape[-2:]
    whole = Run((0, T), (0, S), visible)
    if not isinstance(visible, np.ndarray):
        return [whole]
    if visible.all():
        return [whole._replace(mask=None)]
    found = []
    for start in range(0, T, length):
        mask = visible[..., start : start + length, :]
        seen = np.flatnonzero(mask.any(axis=tuple(range(mask.ndim - 1))))
        blind = not mask.any(axis=-1).all()  # a query that sees nothing takes the mean of everything
        first, last = (0, S) if blind else (int(seen[0]), int(seen[-1]) + 1)
        mask = mask[..., first:last]
        found.append(Run((start, min(start + length, T)), (first, last), None if mask.all() else mask))
    return found


def of_run(
    q: Float[Array, "B G hT d"],
    k: Float[Array, "B G S d"],
    v: Float[Array, "B G S d"],
    mask: Bool[Array | np.ndarray, "*B T S"] | None,
    *,
    scale: float,
) -> Float[Array, "B G hT d"]:
    """Attention to the keys that the mask leaves; without one, a CPU takes some samples at a time: scores stay in its cache."""

    def some(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, k, v = qkv
        scores = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=jnp.float32) * scale
        if mask is not None:
            hidden = ~jnp.asarray(mask).reshape(-1, 1, 1, *mask.shape[-2:])
            shape = scores.shape
            by_head = scores.reshape(*shape[:2], -1, *mask.shape[-2:])  # (B, G, H / G, T, S)
            scores = jnp.where(hidden, HIDDEN, by_head).reshape(shape)
        weights = exponential(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        out = jnp.einsum("...ts,...sd->...td", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        out = checkpoint_name(out, "attention")  # as small as a query, and a product to redo
        # Their sum divides the few numbers that come out, not all the weights.
        return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

    B, G, T, _ = q.shape
    samples = max(IN_CACHE // (G * T * k.shape[2]), 1)
    if mask is not None or samples >= B:
        return some((q, k, v))
    return jax.lax.platform_dependent(
        q, k, v, cpu=lambda *qkv: jax.lax.map(some, qkv, batch_size=samples), default=lambda *qkv: some(qkv)
    )


@jax.custom_jvp
def exponential(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """e^x; where it is differentiated, under the name "attention": all that the backward pass must know of the scores."""
    return jnp.exp(x)


@exponential.defjvp
def exponential_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    """The derivative is the named value itself, where that of `jnp.exp` would be another, nameless one."""
    y = checkpoint_name(jnp.exp(primals[0]), "attention")
    return y, y * tangents[0]
