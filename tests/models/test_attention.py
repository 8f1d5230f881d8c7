import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models.attention as module
from models import masks
from models.masks import INFINITY, Visibility


def arrays(*, batch=2, queries=5, keys=5, heads=4, key_heads=2, width=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, queries, heads, width), (batch, keys, key_heads, width), (batch, keys, key_heads, width)]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def attention(q, k, v, visibility):
    """With keys and values as the reference has them, (B, S, G, d)."""
    return module.attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visibility)


def reference(q, k, v, mask):
    """One query at a time, in float64; mask (B, T, S)."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    share = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = np.flatnonzero(mask[b, t])
        scores = k[b, seen, h // share] @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ v[b, seen, h // share]
    return out


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_causal_attention_is_a_softmax_over_the_keys_before(key_heads):
    q, k, v = arrays(key_heads=key_heads)
    expected = reference(q, k, v, np.tril(np.ones((2, 5, 5), bool)))
    np.testing.assert_allclose(attention(q, k, v, masks.causal(5)), expected, atol=2e-6)


def test_every_sample_has_intervals_of_its_own():
    q, k, v = arrays(batch=3, queries=4, keys=6)
    rng = np.random.default_rng(1)
    time = rng.integers(0, 6, (3, 4)).astype(np.int32)
    start = rng.integers(0, 6, (3, 6)).astype(np.int32)
    end = (start + rng.integers(1, 5, (3, 6))).astype(np.int32)
    start[:, 0], end[:, 0] = 0, INFINITY  # so that everybody sees somebody
    mask = np.array([[[start[b, s] <= time[b, t] < end[b, s] for s in range(6)] for t in range(4)] for b in range(3)])
    assert not (mask[0] == mask[1]).all()
    out = attention(q, k, v, Visibility(time, start, end))
    np.testing.assert_allclose(out, reference(q, k, v, mask), atol=2e-6)


def test_query_heads_share_key_heads_in_consecutive_groups():
    q, k, v = arrays(heads=6, key_heads=3)
    gradient = jax.jit(jax.jacobian(lambda v: attention(q, k, v, masks.bidirectional(5)).sum((0, 1, 3))))(v)
    reads = np.abs(np.asarray(gradient)).sum((1, 2, 4)) > 0  # (query head, key head)
    np.testing.assert_array_equal(reads, np.repeat(np.eye(3, dtype=bool), 2, axis=0))


def test_hidden_keys_and_values_have_zero_gradient():
    q, k, v = arrays(batch=1, queries=6, keys=6)
    weight = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)

    @jax.jit
    def gradients(t):
        return jax.grad(lambda k, v: (attention(q, k, v, masks.causal(6)) * weight)[0, t].sum(), (0, 1))(k, v)

    for t in range(1, 6):
        for gradient in gradients(t):
            size = np.abs(np.asarray(gradient)[0]).sum((1, 2))
            assert (size[: t + 1] > 0).all()
            assert (size[t + 1 :] == 0).all()


def test_a_query_that_sees_nothing_stays_finite():
    q, k, v = arrays(batch=1, queries=1, keys=5)
    never = Visibility(np.zeros(1, np.int32), np.ones(5, np.int32), np.full(5, INFINITY, np.int32))
    out, gradient = jax.value_and_grad(lambda q: attention(q, k, v, never).sum())(q)
    assert np.isfinite(out)
    assert np.isfinite(gradient).all()


def test_large_scores_do_not_overflow_in_bfloat16():
    q, k, v = (x.astype(jnp.bfloat16) for x in arrays())
    q = q * 1000
    out = attention(q, k, v, masks.causal(5))
    assert out.dtype == jnp.bfloat16
    expected = reference(q, k, v, np.tril(np.ones((2, 5, 5), bool)))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.03)


def test_scores_may_be_scaled_otherwise():
    q, k, v = arrays()
    found = module.attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), masks.causal(5), scale=1.0)
    np.testing.assert_allclose(found, attention(q * 8**0.5, k, v, masks.causal(5)), atol=2e-6)


def test_a_mask_known_to_hide_nothing_changes_nothing():
    q, k, v = arrays()
    known, traced = masks.bidirectional(5), jax.tree.map(jnp.asarray, masks.bidirectional(5))
    np.testing.assert_allclose(attention(q, k, v, known), attention(q, k, v, traced), atol=2e-6)
    assert "select" not in jax.jit(lambda q: attention(q, k, v, known)).lower(q).as_text()
    assert "select" in jax.jit(lambda q: attention(q, k, v, traced)).lower(q).as_text()


@pytest.mark.parametrize("samples", [1, 2])
def test_a_few_samples_at_a_time_give_what_all_at_once_give(samples, monkeypatch):
    q, k, v = arrays(batch=5, heads=4, key_heads=2)
    expected = attention(q, k, v, masks.bidirectional(5))
    monkeypatch.setattr(module, "IN_CACHE", samples * 4 * 5 * 5)
    found = attention(q, k, v, masks.bidirectional(5))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "while" in jax.jit(lambda q: attention(q, k, v, masks.bidirectional(5))).lower(q).as_text()
