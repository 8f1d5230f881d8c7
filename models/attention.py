"""Softmax attention under visibility intervals."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models import masks

HIDDEN = -1e30  # finite, so that a query that sees nothing gives a mean and not NaN
IN_CACHE = 2**21  # scores that a CPU core's cache and a little more hold


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
    """
    B, T, H, d = q_BTHd.shape
    G, S = k_BGSd.shape[1:3]
    scale = d**-0.5 if scale is None else scale
    q = q_BTHd.reshape(B, T, G, H // G, d).transpose(0, 2, 3, 1, 4).reshape(B, G, H // G * T, d)
    visible = masks.visible(visibility)
    if isinstance(visible, np.ndarray) and visible.all():  # known before anything runs: nothing to hide
        out = unmasked(q, k_BGSd, v_BGSd, scale=scale)
    else:
        scores = jnp.einsum("bgtd,bgsd->bgts", q, k_BGSd, preferred_element_type=jnp.float32) * scale
        mask = jnp.asarray(visible).reshape(-1, 1, 1, T, S)
        scores = jnp.where(mask, scores.reshape(B, G, H // G, T, S), HIDDEN)
        weights = jax.nn.softmax(scores, axis=-1).astype(v_BGSd.dtype).reshape(B, G, H // G * T, S)
        out = jnp.einsum("bgts,bgsd->bgtd", weights, v_BGSd)
    return out.reshape(B, G, H // G, T, d).transpose(0, 3, 1, 2, 4).reshape(B, T, H, d)


def unmasked(
    q: Float[Array, "B G T d"], k: Float[Array, "B G S d"], v: Float[Array, "B G S d"], *, scale: float
) -> Float[Array, "B G T d"]:
    """Attention that sees everything; a CPU takes some samples at a time, so that the scores stay in its cache."""

    def some(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, k, v = qkv
        scores = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=jnp.float32) * scale
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        out = jnp.einsum("...ts,...sd->...td", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        # Their sum divides the few numbers that come out, not all the weights.
        return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

    B, G, T, _ = q.shape
    samples = max(IN_CACHE // (G * T * k.shape[2]), 1)
    if samples >= B:
        return some((q, k, v))
    return jax.lax.platform_dependent(
        q, k, v, cpu=lambda *qkv: jax.lax.map(some, qkv, batch_size=samples), default=lambda *qkv: some(qkv)
    )
