"""Attention on Hopper GPUs: kernels for Mosaic GPU that visit only blocks in which somebody sees something.

They walk lists of blocks (`models.kernels.visits`): what is not on one costs neither products nor copies, and masks may be
traced and differ from sample to sample. Two warpgroups take turns, one at its softmax while the other has the tensor cores
(FlashAttention-3, arXiv:2407.08608). No two blocks of threads add to one place, so that runs that are repeated are equal bit by
bit: the backward pass walks once by queries and once by keys.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from models.errors import UserError
from models.kernels.block_sizes import Blocks, rounded
from models.kernels.pallas_tpu import LOG2_E, LOWEST
from models.kernels.visits import by_sample, ends
from models.kernels.warpgroups import BY_ROW, ROWS, Call, Turned, Walk, copied, matrices, over, run, written
from models.masks import Visibility


class Sizes(NamedTuple):
    """Of the three kernels' blocks, their stages, and whether the last kernel is run for keys and for values apart."""

    forward: Blocks
    by_queries: Blocks
    by_keys: Blocks
    stages: int
    apart: bool


# By the width of heads, for 64K registers and 227 KB of shared memory. Each of two warpgroups that compute has 232 registers a
# thread, of which a sum over 64 rows takes d / 2, and 64 rows of scores by n take n / 2, and their gradients as many. In shared
# memory a slot of a stage takes 4 d bytes, and one of the row as many (2 d in the forward pass). Heads of 256 leave room for
# one warpgroup in the backward pass, and registers for one of its two sums over keys.
SIZES = {
    64: Sizes(Blocks(128, 128), Blocks(128, 128), Blocks(64, 128), stages=4, apart=False),
    128: Sizes(Blocks(128, 128), Blocks(128, 64), Blocks(64, 128), stages=2, apart=False),
    256: Sizes(Blocks(128, 64), Blocks(64, 64), Blocks(64, 64), stages=2, apart=True),
}


def keys_pass(walk: Walk, sources: tuple[Any, Any, Any], stages: tuple[Any, Any, Any]) -> None:
    """Copy the keys that pass by, their values, and when they are seen."""
    (k, v, spans), (next_k, next_v, next_spans) = sources, stages

    @walk.copies
    def copy(g: Any, at: Any, stage: Any) -> list[tuple[Any, Any]]:
        return [(k.at[walk.sample, g, at], next_k.at[stage]), (v.at[walk.sample, g, at], next_v.at[stage]),
                (spans.at[walk.mask, :, at], next_spans.at[stage])]  # fmt: skip


def forward_kernel(
    walk: Walk, q: Any, k: Any, v: Any, time: Any, spans: Any, out: Any, sums: Any,
    *, own_q: Any, own_time: Any, own_sums: Any, next_k: Any, next_v: Any, next_spans: Any, loaded: Any, turn: Any,
) -> None:  # fmt: skip
    """One row of blocks: softmax goes on, from visit to visit, from what the row gave so far."""
    call, wg, b, h, own = walk.call, walk.warpgroup, walk.sample, walk.head, walk.own

    keys_pass(walk, (k, v, spans), (next_k, next_v, next_spans))

    def pass_on() -> None:
        """Meet the other warpgroup: who had the tensor cores has its softmax next."""
        if call.computing == 2:
            plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(turn)

    def visit(stage: Any, flags: Any, most: jax.Array, total: jax.Array, weighted: jax.Array) -> tuple[jax.Array, ...]:
        zeros = call.constant(0.0, (ROWS, call.passing))
        (s,) = call.products((zeros, own_q.at[wg], Turned(next_k.at[stage])), meanwhile=pass_on)
        s = call.scores(s, flags, own_time.at[wg], next_spans.at[stage])
        now = jnp.maximum(most, s.max(axis=1))
        weights, fade = jnp.exp2(s - over(now, s.shape)), jnp.exp2(most - now)
        total = total * fade + weights.sum(axis=1)
        weighted, weights = weighted * over(fade, weighted.shape), weights.astype(jnp.bfloat16)
        pass_on()
        return now, total, *call.products((weighted, weights, next_v.at[stage]))

    @walk.computes
    def compute() -> None:
        copied(loaded.at[wg], (q.at[b, own, h], own_q.at[wg]), (time.at[walk.mask, own], own_time.at[wg]))
        plgpu.barrier_wait(loaded.at[wg])
        pl.when(wg == 1)(pass_on)  # the second warpgroup is half a visit behind
        most, total = (call.constant(x, (ROWS,), BY_ROW) for x in (LOWEST, 0.0))
        most, total, weighted = walk.fold(visit, (most, total, call.constant(0.0, (ROWS, call.width))))
        pl.when(wg == 0)(pass_on)
        total = jnp.where(total == 0, 1.0, total)
        written((weighted * over(1 / total, weighted.shape), own_q.at[wg], out.at[b, own, h]),
                (most + jnp.log(total) * LOG2_E, own_sums.at[wg], sums.at[b, h, own]))  # fmt: skip


def by_queries_kernel(
    walk: Walk, q: Any, k: Any, v: Any, grad: Any, statistics: Any, time: Any, spans: Any, dq: Any,
    *, own_q: Any, own_grad: Any, own_statistics: Any, own_time: Any, next_k: Any, next_v: Any, next_spans: Any, loaded: Any,
) -> None:  # fmt: skip
    """Gradients of the queries of one row of blocks."""
    call, wg, b, h, own = walk.call, walk.warpgroup, walk.sample, walk.head, walk.own

    keys_pass(walk, (k, v, spans), (next_k, next_v, next_spans))

    def visit(stage: Any, flags: Any, total: jax.Array) -> list[jax.Array]:
        zeros = call.constant(0.0, (ROWS, call.passing))
        s, by_weight = call.products(
            (zeros, own_q.at[wg], Turned(next_k.at[stage])), (zeros, own_grad.at[wg], Turned(next_v.at[stage]))
        )
        s = call.scores(s, flags, own_time.at[wg], next_spans.at[stage])
        weights = jnp.exp2(s - call.spread(own_statistics.at[wg, 0], s.shape, of_keys=False))
        by_score = weights * (by_weight - call.spread(own_statistics.at[wg, 1], s.shape, of_keys=False))
        return call.products((total, by_score.astype(jnp.bfloat16), next_k.at[stage]))

    @walk.computes
    def compute() -> None:
        copied(loaded.at[wg], (q.at[b, own, h], own_q.at[wg]), (grad.at[b, own, h], own_grad.at[wg]),
               (statistics.at[b, h, :, own], own_statistics.at[wg]), (time.at[walk.mask, own], own_time.at[wg]))  # fmt: skip
        plgpu.barrier_wait(loaded.at[wg])
        (total,) = walk.fold(visit, [call.constant(0.0, (ROWS, call.width))])
        written((total * call.scale, own_q.at[wg], dq.at[b, own, h]))


def by_keys_kernel(
    walk: Walk, q: Any, k: Any, v: Any, grad: Any, statistics: Any, time: Any, spans: Any, *results: Any,
    of: str, own_k: Any, own_v: Any, own_spans: Any, next_q: Any, next_grad: Any, next_statistics: Any, next_time: Any,
    loaded: Any,
) -> None:  # fmt: skip
    """Gradients of the keys ("k"), the values ("v") or both ("kv") of one row of blocks."""
    call, wg, b, g, own = walk.call, walk.warpgroup, walk.sample, walk.head, walk.own

    @walk.copies
    def copy(h: Any, at: Any, stage: Any) -> list[tuple[Any, Any]]:
        return [(q.at[b, at, h], next_q.at[stage]), (grad.at[b, at, h], next_grad.at[stage]),
                (statistics.at[b, h, :, at], next_statistics.at[stage]),
                (time.at[walk.mask, at], next_time.at[stage])]  # fmt: skip

    def visit(stage: Any, flags: Any, *totals: jax.Array) -> list[jax.Array]:
        zeros = call.constant(0.0, (ROWS, call.passing))
        of_weights = [(zeros, own_v.at[wg], Turned(next_grad.at[stage]))] if "k" in of else []
        s, *by_weight = call.products((zeros, own_k.at[wg], Turned(next_q.at[stage])), *of_weights)
        s = call.scores(s, flags, next_time.at[stage], own_spans.at[wg])
        weights = jnp.exp2(s - call.spread(next_statistics.at[stage, 0], s.shape, of_keys=False))
        factors = {"v": (weights, next_grad.at[stage])}
        for gradient in by_weight:
            by_score = weights * (gradient - call.spread(next_statistics.at[stage, 1], s.shape, of_keys=False))
            factors["k"] = by_score, next_q.at[stage]
        return call.products(
            *((total, factors[x][0].astype(jnp.bfloat16), factors[x][1]) for total, x in zip(totals, of))
        )

    @walk.computes
    def compute() -> None:
        copied(loaded.at[wg], (k.at[b, g, own], own_k.at[wg]), (v.at[b, g, own], own_v.at[wg]),
               (spans.at[walk.mask, :, own], own_spans.at[wg]))  # fmt: skip
        plgpu.barrier_wait(loaded.at[wg])
        totals = walk.fold(visit, [call.constant(0.0, (ROWS, call.width)) for _ in of])
        ways = {"k": (call.scale, own_k.at[wg]), "v": (1.0, own_v.at[wg])}
        written(*((total * ways[x][0], ways[x][1], to.at[b, g, own]) for total, x, to in zip(totals, of, results)))


def described(
    q: jax.Array,
    k: jax.Array,
    visibility: Visibility,
    scale: float,
    blocks: Blocks,
    interpret: Any,
    *,
    by_keys: bool = False,
) -> Call:
    """What is known of a call on queries (B, T, H, d) and keys (B, G, S, d)."""
    (B, T, H, _), (G, S) = q.shape, k.shape[1:3]
    width = width_of(q)
    return Call(
        batch=B, heads=H, shared=H // G, width=width, blocks=blocks, stages=SIZES[width].stages, scale=scale,
        slots=Blocks(rounded(T, blocks.queries), rounded(S, blocks.keys)),
        by_keys=by_keys, by_sample=by_sample(visibility), interpret=interpret,
        ends=ends(visibility),
    )  # fmt: skip


def width_of(q: jax.Array) -> int:
    """The least width of `SIZES` that heads fit.

    Raises:
      UserError: they are wider, or not of bfloat16.
    """
    if q.dtype != jnp.bfloat16:
        raise UserError(f"a GPU's tensor cores multiply bfloat16, and {q.dtype} not exactly; 'xla' serves {q.dtype}.")
    if q.shape[-1] > max(SIZES):
        raise UserError(f"heads of {q.shape[-1]} exceed a GPU's registers, which hold {max(SIZES)}; 'xla' serves any.")
    return min(width for width in SIZES if width >= q.shape[-1])


def filled(x: jax.Array, sizes: Mapping[int, int]) -> jax.Array:
    """An array with zeros behind, up to these sizes of some axes."""
    return jnp.pad(x, [(0, sizes.get(axis, size) - size) for axis, size in enumerate(x.shape)])


def forward(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B G S d"],
    v: Float[Array, "B G S d"],
    visibility: Visibility,
    *,
    scale: float,
    blocks: Blocks | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B T H d"], Float[Array, "B H 1 T"]]:
    """What attention gives, and log2 of the sums of a query's exponentials, which the backward pass wants.

    Raises:
      UserError: heads that are not of bfloat16, or wider than 256.
    """
    call = described(q, k, visibility, scale, blocks or SIZES[width_of(q)].forward, interpret)
    (T, S), d, own, passing = call.slots, call.width, (call.computing, ROWS), (call.stages, call.passing)
    out, sums = run(
        call, forward_kernel, visibility,
        [filled(q, {1: T, 3: d}), filled(k, {2: S, 3: d}), filled(v, {2: S, 3: d})],
        out=[jax.ShapeDtypeStruct((call.batch, T, call.heads, d), q.dtype),
             jax.ShapeDtypeStruct((call.batch, call.heads, T), jnp.float32)],
        scratch={
            "own_q": matrices(*own, d), "own_time": plgpu.SMEM(own, jnp.int32), "own_sums": plgpu.SMEM(own, jnp.float32),
            "next_k": matrices(*passing, d), "next_v": matrices(*passing, d),
            "next_spans": plgpu.SMEM((call.stages, 1 + call.ends, call.passing), jnp.int32),
            "turn": plgpu.Barrier(num_arrivals=2),
        },
        copies=(2, 3), name="attention_forward",
    )  # fmt: skip
    return out[:, : q.shape[1], :, : q.shape[3]], sums[:, :, None, : q.shape[1]]


def backward(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B G S d"],
    v: Float[Array, "B G S d"],
    visibility: Visibility,
    out: Float[Array, "B T H d"],
    sums: Float[Array, "B H 1 T"],
    gradient: Float[Array, "B T H d"],
    *,
    scale: float,
    blocks: Blocks | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B T H d"], Float[Array, "B G S d"], Float[Array, "B G S d"]]:
    """Gradients of queries, keys and values, given that of what `forward` gave; raises as it does."""
    delta = (out.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)[:, :, None]
    statistics, sizes = jnp.concatenate([sums, delta], axis=2), SIZES[width_of(q)]

    def whole(call: Call) -> list[jax.Array]:
        (T, S), d = call.slots, call.width
        of_queries, of_keys = {1: T, 3: d}, {2: S, 3: d}
        return [filled(q, of_queries), filled(k, of_keys), filled(v, of_keys), filled(gradient, of_queries),
                filled(statistics, {3: T})]  # fmt: skip

    call = described(q, k, visibility, scale, blocks or sizes.by_queries, interpret)
    d, own, passing = call.width, (call.computing, ROWS), (call.stages, call.passing)
    (dq,) = run(
        call, by_queries_kernel, visibility, whole(call),
        out=[jax.ShapeDtypeStruct((call.batch, call.slots.queries, call.heads, d), q.dtype)],
        scratch={
            "own_q": matrices(*own, d), "own_grad": matrices(*own, d), "own_time": plgpu.SMEM(own, jnp.int32),
            "own_statistics": plgpu.SMEM((call.computing, 2, ROWS), jnp.float32),
            "next_k": matrices(*passing, d), "next_v": matrices(*passing, d),
            "next_spans": plgpu.SMEM((call.stages, 1 + call.ends, call.passing), jnp.int32),
        },
        copies=(4, 3), name="attention_backward_queries",
    )  # fmt: skip

    call = described(q, k, visibility, scale, blocks or sizes.by_keys, interpret, by_keys=True)
    own, passing = (call.computing, ROWS), (call.stages, call.passing)
    shape = jax.ShapeDtypeStruct((*k.shape[:2], call.slots.keys, d), k.dtype)
    of_keys: list[jax.Array] = []
    for of in ("k", "v") if sizes.apart else ("kv",):
        of_keys += run(
            call, functools.partial(by_keys_kernel, of=of), visibility, whole(call), out=[shape] * len(of),
            scratch={
                "own_k": matrices(*own, d), "own_v": matrices(*own, d),
                "own_spans": plgpu.SMEM((call.computing, 1 + call.ends, ROWS), jnp.int32),
                "next_q": matrices(*passing, d), "next_grad": matrices(*passing, d),
                "next_statistics": plgpu.SMEM((call.stages, 2, call.passing), jnp.float32),
                "next_time": plgpu.SMEM(passing, jnp.int32),
            },
            copies=(3, 4), name="attention_backward_keys",
        )  # fmt: skip
    dk, dv = (x[:, :, : k.shape[2], : q.shape[3]] for x in of_keys)
    return dq[:, : q.shape[1], :, : q.shape[3]], dk, dv
