"""Attention on TPUs: kernels for Mosaic that visit only blocks in which somebody sees something (arXiv:2205.14135, 2307.08691).

A kernel walks a list of blocks (`models.kernels.visits`). The list is data that the chip reads ahead: what is not on it costs
neither products nor copies, and masks may be traced and differ from sample to sample.

Arrays lie feature by feature, (width, slots), and scores key by query. So a head of 64 fills the memory's tiles of 128,
softmax's maxima and sums run down a tile's rows, its statistics are single rows, and of the seven products of both passes none
turns a matrix of scores. The backward pass visits a block once: the gradient of a whole sequence's queries stays in the
chip's vector memory while the keys pass by.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from models.kernels.block_sizes import LANES, Blocks, best, fitting, rounded
from models.kernels.visits import CLOSES, ENTERS, LEAVES, OPENS, WHOLE, Visits, by_sample, columns, ends, visits
from models.masks import Visibility

HIDDEN = -1e30  # a score that is not seen
LOWEST = -5e29  # what a maximum is at least: exp2(HIDDEN - LOWEST) is 0, so a query that sees nothing sums to 0
VMEM_LIMIT = 64 * 2**20  # bytes, of 64 or 128 MiB; the compiler's own limit is 16 or 32
LOG2_E = math.log2(math.e)  # the chip's exponential is of base 2


@dataclasses.dataclass(frozen=True)
class Call:
    """What is known of a call before it runs.

    Attributes:
      batch: B.
      heads: H, of queries.
      shared: heads of queries that share one of keys.
      width: d.
      blocks: sizes of a block.
      slots: of the queries and of the keys, in whole blocks.
      by_sample: whether every sample has a mask of its own.
      ends: whether some key ends being seen.
      scale: of the scores.
      exact: whether products are of float32, and not of bfloat16.
      interpret: whether the kernel runs as plain JAX, on any device.
    """

    batch: int
    heads: int
    shared: int
    width: int
    blocks: Blocks
    slots: Blocks
    by_sample: bool
    ends: bool
    scale: float
    exact: bool
    interpret: Any

    def product(self, a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
        """A product over these axes of two matrices, in float32."""
        precision = jax.lax.Precision.HIGHEST if self.exact else None
        dims = (((over[0],), (over[1],)), ((), ()))
        return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def turn_columns(call: Call, flags: jax.Array, rows: Sequence[Any], wide: Sequence[Any]) -> None:
    """Where a mask is new, turn its rows of keys (1, 1, S) into columns (S, 128), an entry over all lanes."""

    def turn(number: jax.Array, _: None) -> None:
        at = pl.ds(pl.multiple_of(number * LANES, LANES), LANES)
        for row, column in zip(rows, wide, strict=True):
            column[at, :] = jnp.broadcast_to(row[0, :, at], (LANES, LANES)).T

    @pl.when(flags & ENTERS != 0 if call.by_sample else (pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def entered() -> None:
        jax.lax.fori_loop(0, call.slots.keys // LANES, turn, None)


def scores(call: Call, q: Any, k: Any, time: Any, wide: Sequence[Any], key: jax.Array, *, whole: bool) -> jax.Array:
    """scale k^T q log2(e) (keys, queries) of a block, `HIDDEN` where it is not seen."""
    found = call.product(k[0, 0], q[0, 0], (0, 0)) * (call.scale * LOG2_E)
    if whole:
        return found
    at = pl.ds(pl.multiple_of(key * call.blocks.keys, call.blocks.keys), call.blocks.keys)
    now = time[0]
    start, *end = (jnp.tile(column[at, :], (1, call.blocks.queries // LANES)) for column in wide)
    seen = start <= now
    return jnp.where(seen & (now < end[0]) if end else seen, found, HIDDEN)


def on_blocks(flags: jax.Array, visit: Any) -> None:
    """Run `visit(whole)`, once compiled for blocks that are seen as a whole, and once for the others."""
    for whole in (True, False):
        pl.when((flags & WHOLE != 0) == whole)(functools.partial(visit, whole=whole))


def forward_kernel(call: Call, *refs: Any) -> None:
    """One visit: softmax goes on from what the row of blocks gave so far."""
    count = 1 + call.ends
    _, _, key_of, flags_of, q, k, v, time, *rest = refs
    rows, (out, statistics, most, total, weighted, *wide) = rest[:count], rest[count:]
    n = pl.program_id(2)
    flags, key = flags_of[n], key_of[n]

    turn_columns(call, flags, rows, wide)

    @pl.when(flags & OPENS != 0)
    def opened() -> None:
        most[...] = jnp.full_like(most, LOWEST)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    def visit(*, whole: bool) -> None:
        s = scores(call, q, k, time, wide, key, whole=whole)
        before = most[...]
        now = jnp.maximum(before, s.max(axis=0, keepdims=True))
        weights, fade = jnp.exp2(s - now), jnp.exp2(before - now)
        most[...] = now
        total[...] = total[...] * fade + weights.sum(axis=0, keepdims=True)
        weighted[...] = weighted[...] * fade + call.product(v[0, 0], weights.astype(v.dtype), (1, 0))

    on_blocks(flags, visit)

    @pl.when(flags & CLOSES != 0)
    def closed() -> None:
        summed = jnp.where(total[...] == 0, 1.0, total[...])
        out[0, 0] = (weighted[...] / summed).astype(out.dtype)
        statistics[0, 0] = most[...] + jnp.log2(summed)


def backward_kernel(call: Call, *refs: Any) -> None:
    """One visit of all five products of the backward pass."""
    count = 1 + call.ends
    _, query_of, key_of, flags_of, q, k, v, grad, statistics, delta, time, *rest = refs
    rows, (dq, dk, dv, dq_sum, dk_sum, dv_sum, *wide) = rest[:count], rest[count:]
    n = pl.program_id(2)
    flags, key, query = flags_of[n], key_of[n], query_of[n]
    turn_columns(call, flags, rows, wide)

    @pl.when(flags & ENTERS != 0)
    def entered() -> None:
        dq_sum[...] = jnp.zeros_like(dq_sum)

    @pl.when(flags & OPENS != 0)
    def opened() -> None:
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    def visit(*, whole: bool) -> None:
        weights = jnp.exp2(scores(call, q, k, time, wide, key, whole=whole) - statistics[0, 0])
        by_weight = call.product(v[0, 0], grad[0, 0], (0, 0))
        by_score = (weights * (by_weight - delta[0, 0])).astype(q.dtype)
        # In this order: with the values' gradient before the scores', a visit takes a v6e 493 bundles instead of 372.
        dv_sum[...] += call.product(grad[0, 0], weights.astype(v.dtype), (1, 1))
        dk_sum[...] += call.product(q[0, 0], by_score, (1, 1))
        dq_sum[query] += call.product(k[0, 0], by_score, (1, 0))

    on_blocks(flags, visit)

    @pl.when(flags & CLOSES != 0)
    def closed() -> None:
        dk[0, 0] = (dk_sum[...] * call.scale).astype(dk.dtype)
        dv[0, 0] = dv_sum[...].astype(dv.dtype)

    @pl.when(flags & LEAVES != 0)
    def left() -> None:
        size = call.blocks.queries
        for block in range(call.slots.queries // size):
            dq[0, 0, :, block * size : (block + 1) * size] = (dq_sum[block] * call.scale).astype(dq.dtype)


def run(
    call: Call,
    kernel: Any,
    walk: Visits,
    visibility: Visibility,
    arrays: Sequence[tuple[str, jax.Array]],
    *,
    out: Sequence[tuple[str, Any]],
    scratch: Sequence[Any],
    products: int,
    name: str,
) -> list[jax.Array]:
    """Walk the list for every sample and head.

    Args:
      call: what is known.
      kernel: of one visit.
      walk: the list.
      visibility: the mask.
      arrays: what is read (B, heads, rows, slots), whole blocks, and whose slots they are: of "queries" or of "keys".
      out: likewise, and the dtype, of what is written (B, H, width, slots); "sequence" is all queries, "statistics" one row.
      scratch: what stays on the chip from visit to visit.
      products: of a visit, for the compiler's estimate of the cost.
      name: of the kernel.
    """
    B, H, d, (T, S) = call.batch, call.heads, call.width, call.slots
    last = {"queries": (d, T), "statistics": (1, T), "sequence": (d, T), "keys": (d, S)}
    sizes = {"queries": call.blocks.queries, "statistics": call.blocks.queries, "sequence": T, "keys": call.blocks.keys}

    # Where every sample has a mask of its own, the list says which sample is next; else all walk one list.
    def block(kind: str, heads: int, rows: int) -> pl.BlockSpec:
        def index(b: Any, h: Any, n: Any, sample: Any, query: Any, key: Any, _: Any) -> tuple[Any, ...]:
            slot = {"queries": query, "statistics": query, "keys": key}
            return b + sample[n], h // (H // heads), 0, slot[kind][n] if kind in slot else 0

        return pl.BlockSpec((1, 1, rows, sizes[kind]), index)

    def column(size: int, *, all_slots: bool) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, 1, size), lambda b, h, n, sample, query, *_: (sample[n], 0, 0 if all_slots else query[n])
        )

    time, *of_keys = (x[:, None] for x in columns(visibility, T, S, batch=B)[: 2 + call.ends])  # rows (1, slots)
    inputs: list[Any] = [x for _, x in arrays]
    shapes: list[Any] = [jax.ShapeDtypeStruct((B, H, *last[kind]), dtype) for kind, dtype in out]
    visited = len(walk.query) * H * (1 if call.by_sample else B) * math.prod(call.blocks)
    results = pl.pallas_call(
        functools.partial(kernel, call),
        out_shape=shapes,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(1 if call.by_sample else B, H, walk.length),
            in_specs=[
                *(block(kind, *x.shape[1:3]) for kind, x in arrays),
                column(call.blocks.queries, all_slots=False),
                *[column(S, all_slots=True)] * len(of_keys),
            ],
            out_specs=[block(kind, H, last[kind][0]) for kind, _ in out],
            scratch_shapes=[*scratch, *[pltpu.VMEM((S, LANES), jnp.int32)] * len(of_keys)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * visited * d,
            transcendentals=visited,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*inputs, *shapes)),
        ),
        interpret=call.interpret,
        name=name,
    )(*walk[:4], *inputs, time, *of_keys)
    return list(results)


def described(q: jax.Array, k: jax.Array, visibility: Visibility, scale: float, blocks: Blocks, interpret: Any) -> Call:
    """What is known of a call on queries (B, H, d, T) and keys (B, G, d, S)."""
    (B, H, d, T), S = q.shape, k.shape[3]
    blocks = fitting(blocks, T, S)
    return Call(
        batch=B, heads=H, shared=H // k.shape[1], width=d, blocks=blocks, scale=scale, interpret=interpret,
        slots=Blocks(rounded(T, blocks.queries), rounded(S, blocks.keys)),
        by_sample=by_sample(visibility), ends=ends(visibility), exact=q.dtype == jnp.float32,
    )  # fmt: skip


def filled(x: jax.Array, slots: int) -> jax.Array:
    """An array with zeros behind its last slot."""
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, slots - x.shape[-1]),))


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
    """What attention gives, and log2 of the sums of a query's exponentials, which the backward pass wants."""
    q, k, v = q.transpose(0, 2, 3, 1), k.swapaxes(2, 3), v.swapaxes(2, 3)
    call = described(q, k, visibility, scale, blocks or best(q, visibility, backward=False), interpret)
    T, S = call.slots
    row = pltpu.VMEM((1, call.blocks.queries), jnp.float32)
    out, sums = run(
        call, forward_kernel, visits(visibility, *call.blocks), visibility,
        [("queries", filled(q, T)), ("keys", filled(k, S)), ("keys", filled(v, S))],
        out=[("queries", q.dtype), ("statistics", jnp.float32)],
        scratch=[row, row, pltpu.VMEM((call.width, call.blocks.queries), jnp.float32)],
        products=2, name="attention_forward",
    )  # fmt: skip
    return out[..., : q.shape[-1]].transpose(0, 3, 1, 2), sums[..., : q.shape[-1]]


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
    """Gradients of queries, keys and values, given that of what `forward` gave."""
    delta = (out.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)[:, :, None]
    q, k, v = q.transpose(0, 2, 3, 1), k.swapaxes(2, 3), v.swapaxes(2, 3)
    call = described(q, k, visibility, scale, blocks or best(q, visibility, backward=True), interpret)
    (T, S), (queries, keys), (B, G, d, slots) = call.slots, call.blocks, k.shape
    # Heads of queries that share one of keys each give it a gradient of their own.
    of_keys = k.dtype if call.shared == 1 else jnp.float32
    of_block = pltpu.VMEM((d, keys), jnp.float32)
    dq, dk, dv = run(
        call, backward_kernel, visits(visibility, *call.blocks, by_keys=True), visibility,
        [("queries", filled(q, T)), ("keys", filled(k, S)), ("keys", filled(v, S)),
         *(("queries", filled(x, T)) for x in (gradient.transpose(0, 2, 3, 1), sums, delta))],
        out=[("sequence", q.dtype), ("keys", of_keys), ("keys", of_keys)],
        scratch=[pltpu.VMEM((T // queries, d, queries), jnp.float32), of_block, of_block],
        products=5, name="attention_backward",
    )  # fmt: skip
    dk, dv = (x[..., :slots].reshape(B, G, call.shared, d, slots).sum(axis=2).astype(k.dtype) for x in (dk, dv))
    return dq[..., : q.shape[-1]].transpose(0, 3, 1, 2), dk.swapaxes(2, 3), dv.swapaxes(2, 3)
