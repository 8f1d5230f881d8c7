"""Softmax attention under visibility intervals."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models import masks

HIDDEN = -1e30  # finite, so that a query that sees nothing gives a mean and not NaN


def attention(
    q_BTHd: Float[Array, "B T H d"],
    k_BSGd: Float[Array, "B S G d"],
    v_BSGd: Float[Array, "B S G d"],
    visibility: masks.Visibility,
) -> Float[Array, "B T H d"]:
    """softmax(q k^T / sqrt(d)) v over the keys that each query sees; the softmax is float32.

    Query head h reads key/value head h // (H / G): grouped-query attention where G < H, with G dividing H.
    """
    B, T, H, d = q_BTHd.shape
    S, G = k_BSGd.shape[1:3]
    # One matrix product a (sample, key head): XLA's CPU and TPU back ends are fastest on (batch, rows, columns).
    q = q_BTHd.reshape(B, T, G, H // G, d).transpose(0, 2, 3, 1, 4).reshape(B, G, H // G * T, d)
    k, v = k_BSGd.transpose(0, 2, 1, 3), v_BSGd.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bgtd,bgsd->bgts", q, k, preferred_element_type=jnp.float32) * d**-0.5
    mask = jnp.asarray(masks.visible(visibility)).reshape(-1, 1, 1, T, S)
    scores = jnp.where(mask, scores.reshape(B, G, H // G, T, S), HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(B, G, H // G * T, S)
    out = jnp.einsum("bgts,bgsd->bgtd", weights, v).reshape(B, G, H // G, T, d)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, d)
