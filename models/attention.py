"""Softmax attention under visibility intervals: one call, and the implementations that may serve it."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from models.errors import UserError, unknown
from models.kernels import pallas_tpu, xla
from models.kernels.block_sizes import LANES
from models.masks import Visibility, of_kind
from models.sharding import device, partition_spec, pieces

Implementation = Callable[..., jax.Array]
WIDEST = 256  # of a head
LONG = 2048**2  # scores, more than which a CPU computes faster in chunks
DTYPES = (jnp.float32, jnp.bfloat16)


def attention(
    q_BTHd: Float[Array, "_ _ _ _"],
    k_BGSd: Float[Array, "_ _ _ _"],
    v_BGSd: Float[Array, "_ _ _ _"],
    visibility: Visibility,
    *,
    implementation: str | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H d"]:
    """softmax(scale q k^T) v over the keys that each query sees, and 0 where it sees none; the softmax is float32.

    Keys and values come head by head: one matrix product a (sample, key head), each over memory that lies together, is what
    XLA's CPU and TPU back ends are fastest at; with the heads inside, attention to a cache takes a CPU three times as long.
    Query head h reads key/value head h // (H / G): grouped-query attention where G < H, with G dividing H.

    Args:
      q_BTHd: queries, float32 or bfloat16.
      k_BGSd: keys, of the same dtype.
      v_BGSd: values, of the same dtype.
      visibility: who sees whom, one for all samples or one for each.
      implementation: a name of `IMPLEMENTATIONS`; None leaves the choice to us.
      scale: of the scores, 1 / sqrt(d) by default.

    Raises:
      UserError: shapes or dtypes that do not go together, or an implementation that cannot serve the call.
    """
    check(q_BTHd, k_BGSd, v_BGSd, visibility)
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise unknown("implementation of attention", implementation, IMPLEMENTATIONS)
    run = IMPLEMENTATIONS[implementation or fastest(q_BTHd, k_BGSd, visibility)]
    return run(q_BTHd, k_BGSd, v_BGSd, visibility, scale=q_BTHd.shape[-1] ** -0.5 if scale is None else scale)


def check(q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility) -> None:
    """Refuse what is no attention."""
    B, T, H, d = q.shape
    G, S = k.shape[1:3]
    if k.shape != v.shape or (k.shape[0], k.shape[3]) != (B, d):
        raise UserError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not go together; they are (B, T, H, d) and "
                        "twice (B, G, S, d).")  # fmt: skip
    if H % G:
        raise UserError(f"{G} heads of keys do not divide {H} heads of queries.")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        raise UserError(
            f"queries, keys and values of {q.dtype}, {k.dtype}, {v.dtype}; all must be float32, or all bfloat16."
        )
    for name, column, slots in zip(Visibility._fields, visibility, (T, S, S)):
        if column.shape not in [(slots,), (B, slots), (1, slots)]:
            raise UserError(f"{name} has the shape {column.shape}; for {B} samples of {slots} slots it must be ({slots},), one "
                            f"for all, or ({B}, {slots}).")  # fmt: skip


def recomputed(forward: Callable[..., Any], backward: Callable[..., Any]) -> Implementation:
    """An implementation of two passes, of which the second computes the scores again.

    Args:
      forward: gives what attention gives, and what the backward pass must know of its softmax.
      backward: takes both, and the gradient of the first; gives those of queries, keys and values.
    """

    def run(q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, *, scale: float) -> jax.Array:
        # Columns that are known before the program runs stay so, whoever differentiates: they are no arguments.
        known = [column if isinstance(column, np.ndarray) else None for column in visibility]

        def whole(columns: list[Any]) -> Visibility:
            left = iter(columns)
            return Visibility(*(next(left) if column is None else column for column in known))

        @jax.custom_vjp
        def call(q: jax.Array, k: jax.Array, v: jax.Array, columns: list[Any]) -> jax.Array:
            return forward(q, k, v, whole(columns), scale=scale)[0]

        def ahead(q: jax.Array, k: jax.Array, v: jax.Array, columns: list[Any]) -> tuple[jax.Array, tuple[Any, ...]]:
            out, softmax = (checkpoint_name(x, "attended") for x in forward(q, k, v, whole(columns), scale=scale))
            return out, (q, k, v, columns, out, softmax)

        def back(kept: tuple[Any, ...], gradient: jax.Array) -> tuple[Any, ...]:
            q, k, v, columns, out, softmax = kept
            return (*backward(q, k, v, whole(columns), out, softmax, gradient, scale=scale), None)

        call.defvjp(ahead, back)
        return call(q, k, v, [column for column in visibility if not isinstance(column, np.ndarray)])

    return run


def by_device(run: Implementation) -> Implementation:
    """An implementation that the compiler cannot split: every device of the mesh has its own samples, heads and queries."""

    def split(q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, *, scale: float) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return run(q, k, v, visibility, scale=scale)
        heads = "heads" if pieces(q.shape[2:3], ("heads",)) == pieces(k.shape[1:2], ("heads",)) else None
        of_keys = ("batch", heads, None, None)
        of_columns = [
            ("batch", "sequence")[-x.ndim :] if n == 0 else ("batch", None)[-x.ndim :] for n, x in enumerate(visibility)
        ]
        axes = [("batch", "sequence", heads, None), of_keys, of_keys, *of_columns]
        places = [partition_spec(x.shape, names, dict(mesh.shape)) for x, names in zip((q, k, v, *visibility), axes)]
        # What is known before the program runs, and the same on all devices, stays known.
        known = [
            x if isinstance(x, np.ndarray) and not any(place) else None for x, place in zip(visibility, places[3:])
        ]

        def own(q: jax.Array, k: jax.Array, v: jax.Array, *columns: Any) -> jax.Array:
            left = iter(columns)
            return run(q, k, v, Visibility(*(next(left) if x is None else x for x in known)), scale=scale)

        given = [(x, place) for x, place, fixed in zip(visibility, places[3:], known) if fixed is None]
        specs = (*places[:3], *(place for _, place in given))
        return jax.shard_map(own, in_specs=specs, out_specs=places[0], check_vma=False)(q, k, v, *(x for x, _ in given))

    return split


def on(what: str, here: Callable[[], bool], run: Implementation) -> Implementation:
    """An implementation that only some devices can run."""

    def checked(*arguments: Any, scale: float) -> jax.Array:
        if not here():
            raise UserError(f"this implementation of attention runs on a {what}, and this is a {device().device_kind}; "
                            "'xla' runs everywhere.")  # fmt: skip
        return run(*arguments, scale=scale)

    return checked


def is_tpu() -> bool:
    """Whether the program is traced for TPUs."""
    return device().platform == "tpu"


def is_hopper() -> bool:
    """Whether it is traced for H100, H200, GH200 or their like."""
    return device().platform == "gpu" and device().device_kind.startswith(("NVIDIA H", "NVIDIA GH"))


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module of kernels that is imported only when the function is called, for few will."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"models.kernels.{module}"), name)(*arguments, **options)

    return call


def fastest(q: jax.Array, k: jax.Array, visibility: Visibility) -> str:
    """The implementation that serves these queries and keys soonest, as timed on CPUs and as compiled for TPUs."""
    (_, T, _, d), S = q.shape, k.shape[2]
    if is_tpu() and T >= LANES and d <= WIDEST:
        # Scores never reach memory: a step of VAR-d30 moves 43 GB a v6e instead of 76, as compiled. But fewer queries do not
        # fill a tile, and of wider heads the products outweigh the scores.
        return "pallas_tpu"
    scores = T * S if of_kind(*visibility) is np else 4 * T * S  # a mask that is not known skips nothing in one piece
    if device().platform == "cpu" and scores >= LONG:
        return "xla_chunked"
    return "xla"


IMPLEMENTATIONS: dict[str, Implementation] = {
    "xla": xla.dense,
    "xla_chunked": by_device(recomputed(xla.forward, xla.backward)),
    "pallas_tpu": on("TPU", is_tpu, by_device(recomputed(pallas_tpu.forward, pallas_tpu.backward))),
    "pallas_gpu": on(
        "Hopper GPU", is_hopper, by_device(recomputed(later("pallas_gpu", "forward"), later("pallas_gpu", "backward")))
    ),
}
