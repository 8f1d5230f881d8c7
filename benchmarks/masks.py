"""The masks of this field, at its lengths, for benchmarks of attention; and splash attention, which serves some of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks

from models import masks
from models.masks import Visibility

SLOTS = np.arange(2048, dtype=np.int32)
SCALES = np.repeat(np.arange(10, dtype=np.int32), np.square([1, 2, 3, 4, 5, 6, 8, 10, 13, 16]))


def neighbours(side: int) -> Visibility:
    """The cells of a square, diagonal by diagonal; every one sees its own diagonal and those before."""
    return masks.groups(np.sort(np.add(*np.divmod(np.arange(side**2, dtype=np.int32), side))))


MASKS = {
    "causal 256": masks.causal(256),
    "causal 1024": masks.causal(1024),
    "causal 4096": masks.causal(4096),
    "ten scales, 680": masks.groups(SCALES),
    "neighbours 16 x 16": neighbours(16),
    "neighbours 32 x 32": neighbours(32),
    "packed 8 x 512": masks.packed(np.repeat(np.arange(8, dtype=np.int32), 512)),
    "window 128 of 1024": masks.window(1024, 128),
    "prefix 120 + 1024": masks.prefix(1144, 120),
    "64 over a cache of 2048": masks.cache(SLOTS[-64:], SLOTS, SLOTS >= 0),
}
# Those that splash attention computes; of the others it reads every entry.
COMPUTED: dict[str, Callable[[tuple[int, int]], Any]] = {
    "causal 256": splash_masks.CausalMask,
    "causal 1024": splash_masks.CausalMask,
    "causal 4096": splash_masks.CausalMask,
    "packed 8 x 512": partial(splash_masks.ChunkedCausalMask, chunk_size=512),
    "window 128 of 1024": partial(splash_masks.LocalMask, window_size=(127, 0), offset=0),
}


class Splash(NamedTuple):
    """Splash attention under a mask.

    Attributes:
      run: of queries (B, T, H, d), keys and values (B, H, S, d).
      visited: blocks of its grid that it computes, of a head.
    """

    run: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    visited: int


def served(name: str, queries: int, keys: int) -> bool:
    """Whether splash attention takes a mask: whole blocks must make up its lengths."""
    T, S = MASKS[name].as_array().shape
    return T % queries == 0 and S % keys == 0


def by_splash(name: str, heads: int, queries: int, keys: int, *, fused: bool = False) -> Splash:
    """Splash attention in blocks of so many queries by so many keys; its backward pass is one kernel or two."""
    array = np.asarray(MASKS[name].as_array())
    mask = COMPUTED[name]((array.shape[0], array.shape[1])) if name in COMPUTED else splash_masks.NumpyMask(array)
    sizes = splash.BlockSizes(
        block_q=queries, block_kv=keys, block_kv_compute=keys, block_q_dkv=queries, block_kv_dkv=keys,
        block_kv_dkv_compute=keys, block_q_dq=None if fused else queries, block_kv_dq=None if fused else keys,
        use_fused_bwd_kernel=fused,
    )  # fmt: skip
    every = splash_masks.MultiHeadMask([mask] * heads)
    kernel = splash.make_splash_mha(every, block_sizes=sizes, head_shards=1, q_seq_shards=1)

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.vmap(kernel)((q * q.shape[-1] ** -0.5).swapaxes(1, 2), k, v).swapaxes(1, 2)

    kinds = kernel.fwd_mask_info.block_mask
    visited = array.size // queries // keys if kinds is None else int((np.asarray(kinds)[0] > 0).sum())
    return Splash(run, visited)
