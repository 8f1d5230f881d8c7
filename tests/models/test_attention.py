import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

import models.attention as module
from models import masks
from models.kernels import xla
from models.masks import INFINITY, Visibility
from models.sharding import MESH_AXES
from models.transformer import REMATERIALISATION


def arrays(*, batch=2, queries=5, keys=5, heads=4, key_heads=2, width=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, queries, heads, width), (batch, keys, key_heads, width), (batch, keys, key_heads, width)]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def attention(q, k, v, visibility, **options):
    """With keys and values as the reference has them, (B, S, G, d)."""
    return module.attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visibility, **options)


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
    monkeypatch.setattr(xla, "IN_CACHE", samples * 4 * 5 * 5)
    found = attention(q, k, v, masks.bidirectional(5))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "while" in jax.jit(lambda q: attention(q, k, v, masks.bidirectional(5))).lower(q).as_text()


def scales_then_documents(slots):
    """Masks over so many slots whose runs differ: one is all seen, one starts late, one is seen in part."""
    group = np.searchsorted([1, 5, 14, 30, 55, 91, 155, 255, 424], np.arange(slots), side="right").astype(np.int32)
    document = np.arange(slots, dtype=np.int32) // 200
    ends = (200 * (document + 1)).astype(np.int32)
    return {
        "causal": masks.causal(slots),
        "scales": masks.groups(group),
        "documents": Visibility(masks.causal(slots).q_time, masks.causal(slots).k_start, ends),
        "window": Visibility(
            masks.causal(slots).q_time, masks.causal(slots).k_start, np.arange(slots, dtype=np.int32) + 9
        ),
        "two samples": jax.tree.map(lambda a, b: np.stack([a, b]), masks.causal(slots), masks.groups(group)),
    }


@pytest.mark.parametrize("in_cache", [xla.IN_CACHE, 40_000])
@pytest.mark.parametrize("name", scales_then_documents(300))
def test_runs_of_queries_give_what_all_at_once_give(name, in_cache, monkeypatch):
    """A mask that is traced is not split: values and gradients must agree with those of one that is, and is rematerialised."""
    known = scales_then_documents(300)[name]
    traced = jax.tree.map(jnp.asarray, known)
    qkv = arrays(queries=300, keys=300, heads=2, key_heads=1, width=4)
    weight = jnp.asarray(np.random.default_rng(3).normal(size=qkv[0].shape), jnp.float32)
    loss = lambda qkv, visibility: (attention(*qkv, visibility) * weight).sum()  # noqa: E731
    dense = jax.jit(jax.value_and_grad(loss))(qkv, traced)
    monkeypatch.setattr(xla, "IN_CACHE", in_cache)
    kept = jax.checkpoint(lambda qkv: loss(qkv, known), policy=REMATERIALISATION["none"])
    split = jax.jit(jax.value_and_grad(kept))(qkv)
    np.testing.assert_allclose(split[0], dense[0], rtol=1e-5)
    for found, expected in zip(split[1], dense[1]):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_devices_that_share_a_sequence_keep_their_queries_in_one_run():
    q, k, v = arrays(batch=1, queries=256, keys=256)
    products = lambda: str(jax.make_jaxpr(lambda q: attention(q, k, v, masks.causal(256)))(q)).count("dot_general")  # noqa: E731
    assert products() == 4  # scores and values of two runs
    axes = (AxisType.Auto,) * len(MESH_AXES)
    for sizes, expected in [((2, 1, 1, 1), 4), ((1, 1, 1, 2), 2)]:
        with jax.sharding.use_abstract_mesh(AbstractMesh(sizes, MESH_AXES, axis_types=axes)):
            assert products() == expected


def test_runs_cover_every_query_once_and_every_key_that_it_sees():
    for slots in (1, 127, 257, 680, 3000):
        for visibility in scales_then_documents(slots).values():
            visible = visibility.as_array()
            found = xla.runs(visible, xla.rows(slots))
            assert len(found) <= xla.RUNS
            covered = np.zeros_like(visible)
            for (start, stop), (first, last), mask in found:
                covered[..., start:stop, first:last] = True if mask is None else mask
            np.testing.assert_array_equal(covered, visible)
            edges = [edge for run in found for edge in run.queries]
            assert edges == [0, *np.repeat(edges[1:-1:2], 2), slots]


@pytest.mark.parametrize(("slots", "share"), [(256, 3 / 4), (1024, 9 / 16)])
def test_causal_attention_leaves_out_scores_that_nobody_sees(slots, share):
    q, k, v = arrays(batch=1, queries=slots, keys=slots, heads=1, key_heads=1, width=8)
    known, traced = masks.causal(slots), jax.tree.map(jnp.asarray, masks.causal(slots))
    text = [
        str(jax.make_jaxpr(lambda q, visibility=visibility: attention(q, k, v, visibility, implementation="xla"))(q))
        for visibility in (known, traced)
    ]
    products = [
        sum(math.prod(map(int, size)) for size in re.findall(r"f32\[1,1,(\d+),(\d+)\] = dot_general", t)) for t in text
    ]
    values = slots * 8  # of the second product
    assert (products[0] - values) / (products[1] - values) == share


def test_the_backward_pass_keeps_weights_and_their_values_once_and_their_name_finds_them(capsys):
    q, k, v = arrays(batch=2, queries=8, keys=8, width=4)
    policy = jax.checkpoint_policies.save_only_these_names("attention")
    kept = jax.checkpoint(lambda q, k, v: attention(q, k, v, masks.causal(8)).sum(), policy=policy)
    jax.ad_checkpoint.print_saved_residuals(kept, q, k, v)
    saved = [line for line in capsys.readouterr().out.splitlines() if "argument" not in line and "f32" in line]
    shapes = {line.split()[0] for line in saved}
    assert len(saved) == 2
    assert shapes == {"f32[2,2,16,8]", "f32[2,2,16,4]"}  # (B, G, H / G T, S), and of the width of a head
