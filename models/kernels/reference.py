"""Softmax attention as its definition says it, in float64 numpy: what implementations and measured errors are held to."""

import numpy as np
from jaxtyping import Array, Float

from models.masks import Visibility

Passes = tuple[
    Float[np.ndarray, "B T H d"],
    Float[np.ndarray, "B T H d"],
    Float[np.ndarray, "B G S d"],
    Float[np.ndarray, "B G S d"],
]


def reference(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B G S d"],
    v: Float[Array, "B G S d"],
    gradient: Float[Array, "B T H d"],
    visibility: Visibility,
) -> Passes:
    """The output, and given its gradient those of queries, keys and values; 0 where nothing is seen; of known masks."""
    queries, keys, values, gradients = (np.asarray(x, np.float64) for x in (q, k, v, gradient))
    (B, G, S, d), share, scale = k.shape, q.shape[2] // k.shape[1], q.shape[-1] ** -0.5
    wide_k, wide_v = (np.repeat(x, share, axis=1) for x in (keys, values))
    scores = np.einsum("bthd,bhsd->bhts", queries, wide_k, optimize=True) * scale
    mask = np.asarray(visibility.as_array())
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True)) * mask.reshape(-1, 1, *mask.shape[-2:])
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    by_weight = np.einsum("bthd,bhsd->bhts", gradients, wide_v, optimize=True)
    by_score = weights * (by_weight - (weights * by_weight).sum(axis=-1, keepdims=True)) * scale
    dk, dv = (np.einsum("bhts,bthd->bhsd", x, y, optimize=True) for x, y in ((by_score, queries), (weights, gradients)))
    return (
        np.einsum("bhts,bhsd->bthd", weights, wide_v, optimize=True),
        np.einsum("bhts,bhsd->bthd", by_score, wide_k, optimize=True),
        dk.reshape(B, G, share, S, d).sum(axis=2),
        dv.reshape(B, G, share, S, d).sum(axis=2),
    )


def error(found: tuple[Array, ...], expected: tuple[np.ndarray, ...]) -> float:
    """The greatest difference, as a share of the greatest entry of its array, or of 1 if that is more."""
    return max(
        float(np.abs(np.asarray(a, np.float64) - b).max() / max(1, np.abs(b).max())) for a, b in zip(found, expected)
    )
