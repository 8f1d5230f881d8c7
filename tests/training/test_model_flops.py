"""FLOPs of mathematics, not of programs."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from models import masks
from models.attention import by_device, recomputed
from models.kernels import pallas_tpu
from training.costs import costs_of
from training.model_flops import model_flops

S = jax.ShapeDtypeStruct
DEPTH, ROWS, WIDTH = 5, 16, 8


def count(function, *shapes, **options):
    return model_flops(jax.jit(function).trace(*shapes).jaxpr, **options)


def loss(weights, x, policy):
    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w.T), None

    layer = jax.checkpoint(layer, policy=policy, prevent_cse=False) if policy else layer
    return (jax.lax.scan(layer, x, weights)[0] ** 2).sum()


@pytest.mark.parametrize(
    "policy", [None, jax.checkpoint_policies.nothing_saveable, jax.checkpoint_policies.dots_saveable]
)
def test_what_is_computed_anew_is_not_counted(policy):
    shapes = S((DEPTH, WIDTH, WIDTH), jnp.float32), S((ROWS, WIDTH), jnp.float32)
    forward = DEPTH * 2 * 2 * ROWS * WIDTH**2
    assert count(lambda w, x: loss(w, x, policy), *shapes) == forward
    assert count(lambda w, x: jax.value_and_grad(loss, argnums=(0, 1))(w, x, policy), *shapes) == 3 * forward


def test_what_is_traced_twice_counts_once_and_what_differs_twice():
    def twice(x, w, v):
        return jax.jit(jnp.dot)(x, w) + x @ w + x @ v

    square = S((8, 8), jnp.float32)
    assert count(twice, square, square, square) == 2 * 2 * 8**3


def test_a_body_that_two_loops_share_counts_in_each_unless_they_do_the_same():
    def body(x, w):
        return jnp.tanh(x @ w), None

    @jax.jit
    def layers(x, w):
        return jax.lax.scan(body, x, w)[0]

    x, w = S((ROWS, WIDTH), jnp.float32), S((DEPTH, WIDTH, WIDTH), jnp.float32)
    once = DEPTH * 2 * ROWS * WIDTH**2
    assert count(lambda x, y, w: layers(x, w) + layers(y, w), x, x, w) == 2 * once
    assert count(lambda x, w: layers(x, w) + layers(x, w), x, w) == once
    assert (
        count(jax.value_and_grad(lambda x, y, w: (layers(x, w) + layers(y, w)).sum(), argnums=(0, 1, 2)), x, x, w)
        == 6 * once
    )


def test_every_device_of_a_shard_map_works():
    mesh = AbstractMesh((4, 2), ("a", "b"))
    parts = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"), axis_names={"a"})
    with jax.sharding.use_abstract_mesh(mesh):
        assert count(parts, S((16, 8), jnp.float32), S((8, 8), jnp.float32)) == 2 * 16 * 8 * 8


def test_reductions_over_other_axes_are_other_values():
    def f(x):
        over = lambda axis: jax.lax.reduce(x, jnp.float32(0), lambda a, b: a * b + a, (axis,))  # noqa: E731
        return over(0) @ x + over(1) @ x

    assert count(f, S((8, 8), jnp.float32)) == 2 * 2 * 8 * 8


@pytest.mark.parametrize(("features", "batches"), [(2, 1), (1, 2)])
def test_grouped_convolutions(features, batches):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=features,
            batch_group_count=batches,
        )  # fmt: skip

    shapes = S((4, 9, 9, 6), jnp.float32), S((3, 3, 6 // features, 8), jnp.float32)
    wanted = 2 * 7 * 7 * 3 * 3 * (4 // batches) * 8 * (6 // features)
    assert count(convolve, *shapes) == wanted
    assert sum(costs_of(jax.jit(convolve).lower(*shapes).compile().as_text()).flops.values()) == wanted


def test_loops_and_branches():
    def f(x):
        x = jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x)
        x = jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)
        return jax.lax.cond(x.sum() > 2, lambda x: x @ x @ x, lambda x: x, x)

    assert count(f, S((8, 8), jnp.float32), loops=4) == (3 + 4 + 2) * 2 * 8**3


def test_convolutions_and_their_gradients():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = S((2, 9, 9, 3), jnp.float32), S((3, 3, 3, 5), jnp.float32)
    taps = sum(1 for out in range(0, 9, 2) for tap in (-1, 0, 1) if 0 <= out + tap < 9)
    forward = 2 * 2 * 3 * 5 * taps**2
    assert count(convolve, *shapes) == forward
    # The sum's own value asks for the forward product, each gradient for one more of the same size.
    assert count(jax.value_and_grad(lambda x, k: (convolve(x, k) ** 2).sum(), argnums=(0, 1)), *shapes) == 3 * forward


def test_a_kernel_says_what_it_costs_or_is_refused():
    def double(x, estimate):
        def kernel(x, out):
            out[...] = 2 * x[...]

        return pl.pallas_call(kernel, out_shape=x, interpret=True, cost_estimate=estimate)(x)

    estimate = pl.CostEstimate(flops=123, transcendentals=0, bytes_accessed=0)
    assert count(lambda x: double(x, estimate), S((8, 128), jnp.float32)) == 123
    with pytest.raises(ValueError, match="cost_estimate"):
        count(lambda x: double(x, None), S((8, 128), jnp.float32))


def test_attentions_scores_count_once_though_its_backward_pass_computes_them_again():
    B, T, H, d = 2, 256, 3, 32
    passes = [partial(each, interpret=True) for each in (pallas_tpu.forward, pallas_tpu.backward)]
    kernel = by_device(recomputed(*passes))
    q, k = S((B, T, H, d), jnp.float32), S((B, H, T, d), jnp.float32)

    def both(q, k, v):
        return jax.vjp(lambda *qkv: kernel(*qkv, masks.bidirectional(T), scale=1.0), q, k, v)[1](q)

    assert count(both, q, k, k) == 6 * 2 * B * H * T * T * d  # two products forward, and four backward
