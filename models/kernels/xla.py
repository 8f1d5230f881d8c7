"""Attention in plain XLA: dense, the reference, and in chunks whose memory does not grow with the square of the sequence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from models.kernels.visits import OPENS, Visits, listed
from models.masks import INFINITY, NEVER, Visibility, block_kinds
from models.sharding import pieces

HIDDEN = -1e30  # a score that is not seen: finite, as a query may see nothing
LOWEST = -5e29  # what a maximum is at least: exp(HIDDEN - LOWEST) is 0, so a query that sees nothing sums to 0
IN_CACHE = 2**21  # scores that a CPU core's cache and a little more hold
ROWS = 128  # queries of a run, or a multiple
RUNS = 8  # of a sequence at most: each is code of its own
CHUNK = (256, 512)  # queries and keys


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


def dense(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B G S d"],
    v: Float[Array, "B G S d"],
    visibility: Visibility,
    *,
    scale: float,
) -> Float[Array, "B T H d"]:
    """All scores at once.

    Where the mask is known before anything runs, the queries go in runs, and a run computes no score of keys that nobody of
    it sees: of a causal mask over 256 slots a quarter is never computed, and of long sequences nearly half.
    """
    B, T, H, d = q.shape
    G = k.shape[1]
    q_BGhTd = q.reshape(B, T, G, H // G, d).transpose(0, 2, 3, 1, 4)
    shared = pieces((T,), ("sequence",)) > 1  # by devices, each of which keeps its own queries, in one run
    parts = []
    for (start, stop), (first, last), mask in runs(visibility.as_array(), T if shared else rows(T)):
        some = q_BGhTd[:, :, :, start:stop].reshape(B, G, -1, d)
        out = of_run(some, k[:, :, first:last], v[:, :, first:last], mask, scale=scale)
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
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 1)
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
        most = (
            scores.max(axis=-1, keepdims=True) if mask is None else scores.max(axis=-1, keepdims=True, initial=LOWEST)
        )
        weights = exponential(scores - jax.lax.stop_gradient(most))
        out = jnp.einsum("...ts,...sd->...td", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        out = checkpoint_name(out, "attention")  # as small as a query, and a product to redo
        # Their sum divides the few numbers that come out, not all the weights.
        total = weights.sum(axis=-1, keepdims=True)
        return (out / (total if mask is None else jnp.where(total == 0, 1, total))).astype(v.dtype)

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


def forward(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B G S d"],
    v: Float[Array, "B G S d"],
    visibility: Visibility,
    *,
    scale: float,
) -> tuple[Float[Array, "B T H d"], Float[Array, "B G h T"]]:
    """What attention gives, and the logarithms of the sums of exponentials, chunk by chunk (arXiv:2205.14135)."""
    walk, chunks = union(visibility), Chunks(k.shape[1], q.shape[1], k.shape[2], scale)
    queries, keys, values, columns = chunks.queries(q), chunks.keys(k), chunks.keys(v), chunks.columns(visibility)
    row = jnp.zeros((*queries.shape[:3], CHUNK[0], 1), jnp.float32)
    out, sums = jnp.zeros(queries.shape, jnp.float32), jnp.zeros((*queries.shape[:4], 1), jnp.float32)

    def visit(n: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, sums, most, total, weighted = carry
        i, j, opens = walk.query[n], walk.key[n], walk.flags[n] & OPENS != 0
        before = jnp.where(opens, LOWEST, most)
        s = chunks.scores(part(queries, i), part(keys, j), columns, i, j)
        most = jnp.maximum(before, s.max(axis=-1, keepdims=True))
        weights, fade = jnp.exp(s - most), jnp.where(opens, 0, jnp.exp(before - most))
        total = total * fade + weights.sum(axis=-1, keepdims=True)
        weighted = weighted * fade + products("bghts,bgsd->bghtd", weights.astype(v.dtype), part(values, j))
        summed = jnp.where(total == 0, 1, total)  # the last visit of a row of chunks is the one that stands
        return put(out, i, weighted / summed), put(sums, i, most + jnp.log(summed)), most, total, weighted

    start = (out, sums, row, row, jnp.zeros((*queries.shape[:3], CHUNK[0], q.shape[-1]), jnp.float32))
    out, sums, *_ = jax.lax.fori_loop(0, walk.length, visit, start)
    return chunks.back(out).astype(q.dtype), sums[..., : q.shape[1], 0]


def backward(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B G S d"],
    v: Float[Array, "B G S d"],
    visibility: Visibility,
    out: Float[Array, "B T H d"],
    sums: Float[Array, "B G h T"],
    gradient: Float[Array, "B T H d"],
    *,
    scale: float,
) -> tuple[Float[Array, "B T H d"], Float[Array, "B G S d"], Float[Array, "B G S d"]]:
    """Gradients of queries, keys and values, given that of what `forward` gave."""
    walk, chunks = union(visibility), Chunks(k.shape[1], q.shape[1], k.shape[2], scale)
    queries, keys, values, columns = chunks.queries(q), chunks.keys(k), chunks.keys(v), chunks.columns(visibility)
    gradients, sums = chunks.queries(gradient), filled(sums[..., None], 3, CHUNK[0])
    delta = (chunks.queries(out).astype(jnp.float32) * gradients.astype(jnp.float32)).sum(axis=-1, keepdims=True)

    def visit(n: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        dq, dk, dv = carry
        i, j = walk.query[n], walk.key[n]
        query, key, value, given = part(queries, i), part(keys, j), part(values, j), part(gradients, i)
        weights = jnp.exp(chunks.scores(query, key, columns, i, j) - part(sums, i))
        by_weight = products("bghtd,bgsd->bghts", given, value)
        by_score = (weights * (by_weight - part(delta, i)) * scale).astype(q.dtype)
        return (
            put(dq, i, part(dq, i) + products("bghts,bgsd->bghtd", by_score, key)),
            put(dk, j, part(dk, j) + products("bghts,bghtd->bgsd", by_score, query)),
            put(dv, j, part(dv, j) + products("bghts,bghtd->bgsd", weights.astype(v.dtype), given)),
        )

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (queries, keys, values))
    dq, dk, dv = jax.lax.fori_loop(0, walk.length, visit, start)
    dk, dv = (x[:, :, : k.shape[2]].astype(k.dtype) for x in (dk, dv))
    return chunks.back(dq).astype(q.dtype), dk, dv


class Chunks(NamedTuple):
    """How a call's arrays lie in chunks: queries (B, G, h, T, d), keys and values (B, G, S, d), each filled up with zeros.

    Attributes:
      heads: G, of keys.
      T: queries.
      S: keys.
      scale: of the scores.
    """

    heads: int
    T: int
    S: int
    scale: float

    def queries(self, x: Float[Array, "B T H d"]) -> Float[Array, "B G h T2 d"]:
        """Queries, or what belongs to them."""
        B, T, H, d = x.shape
        return filled(x.reshape(B, T, self.heads, H // self.heads, d).transpose(0, 2, 3, 1, 4), 3, CHUNK[0])

    def back(self, x: Float[Array, "B G h T2 d"]) -> Float[Array, "B T H d"]:
        """The inverse of `queries`."""
        B, G, h, _, d = x.shape
        return x[:, :, :, : self.T].transpose(0, 3, 1, 2, 4).reshape(B, self.T, G * h, d)

    def keys(self, x: Float[Array, "B G S d"]) -> Float[Array, "B G S2 d"]:
        """Keys or values."""
        return filled(x, 2, CHUNK[1])

    def columns(self, visibility: Visibility) -> Visibility:
        """The mask: what is filled up sees nothing and is seen by nobody."""
        sizes, beyond = (CHUNK[0], CHUNK[1], CHUNK[1]), (NEVER, INFINITY, NEVER)
        return Visibility(*(filled(jnp.asarray(x), x.ndim - 1, *of) for x, *of in zip(visibility, sizes, beyond)))

    def scores(self, query: jax.Array, key: jax.Array, columns: Visibility, i: jax.Array, j: jax.Array) -> jax.Array:
        """Of chunk i of the queries and chunk j of the keys, (B, G, h, rows, keys), `HIDDEN` where they are not seen."""
        found = products("bghtd,bgsd->bghts", query, key) * self.scale
        cut = [
            jax.lax.dynamic_slice_in_dim(x, n * size, size, axis=-1)
            for x, n, size in zip(columns, (i, j, j), (*CHUNK, CHUNK[1]))
        ]
        seen = Visibility(*cut).as_array()
        return jnp.where(seen.reshape(-1, 1, 1, *seen.shape[-2:]), found, HIDDEN)


def union(visibility: Visibility) -> Visits:
    """The chunks in which somebody of some sample sees something."""
    kinds = block_kinds(visibility, *CHUNK)
    walk = listed(kinds.max(axis=0) if kinds.ndim == 3 else kinds)
    return Visits(*map(jnp.asarray, walk[:4]), length=walk.length)  # a loop's counter picks out of them


def products(axes: str, a: jax.Array, b: jax.Array) -> Float[Array, "..."]:
    """An einsum in float32."""
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def filled(x: jax.Array, axis: int, size: int, beyond: int = 0) -> jax.Array:
    """An array whose axis is filled up to whole chunks."""
    missing = [(0, -x.shape[axis] % size if n == axis else 0) for n in range(x.ndim)]
    return jnp.pad(x, missing, constant_values=beyond)


def part(x: jax.Array, n: jax.Array) -> jax.Array:
    """Chunk n, of queries (B, G, h, T, d) or of keys (B, G, S, d)."""
    size = CHUNK[x.ndim == 4]
    return jax.lax.dynamic_slice_in_dim(x, n * size, size, axis=-2)


def put(x: jax.Array, n: jax.Array, chunk: jax.Array) -> jax.Array:
    """The array with this chunk n."""
    return jax.lax.dynamic_update_slice_in_dim(x, chunk, n * CHUNK[x.ndim == 4], axis=-2)
