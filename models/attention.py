"""Softmax attention under visibility intervals."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models import masks

HIDDEN = -1e30  # finite, so that a query that sees nothing gives a mean and not NaN


def attention(
    q_BTHd: Float[Array, "B T H d"],
    k_BSGd: Float[Array, "B S G d"],
    v_BSGd: Float[Array, "B S G d"],
    visibility: masks.Visibility,
    *,
    scale: float | None = None,
) -> Float[Array, "B T H d"]:
    """softmax(scale q k^T) v over the keys that each query sees; the softmax is float32, the scale 1 / sqrt(d) by default.

    Query head h reads key/value head h // (H / G): grouped-query attention where G < H, with G dividing H.
    """
    B, T, H, d = q_BTHd.shape
    S, G = k_BSGd.shape[1:3]
    # One matrix product a (sample, key head): XLA's CPU and TPU back ends are fastest on (batch, rows, columns).
    q = q_BTHd.reshape(B, T, G, H // G, d).transpose(0, 2, 3, 1, 4).reshape(B, G, H // G * T, d)
    k, v = k_BSGd.transpose(0, 2, 1, 3), v_BSGd.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bgtd,bgsd->bgts", q, k, preferred_element_type=jnp.float32) * (
        d**-0.5 if scale is None else scale
    )
    scores = scores.reshape(B, G, H // G, T, S)
    visible = masks.visible(visibility)
    if not (isinstance(visible, np.ndarray) and visible.all()):  # known before anything runs: nothing to hide
        scores = jnp.where(jnp.asarray(visible).reshape(-1, 1, 1, T, S), scores, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(B, G, H // G * T, S)
    out = jnp.einsum("bgts,bgsd->bgtd", weights, v).reshape(B, G, H // G, T, d)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, d)
