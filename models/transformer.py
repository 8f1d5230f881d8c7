"""The Llama-style transformer (arXiv:2302.13971, as in LlamaGen, arXiv:2406.06525) that every generator shares."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import attention
from models.layers import Initializer, Linear, RMSNorm, dropout
from models.masks import Visibility
from models.modules import stack
from models.rotary import rotate
from models.sharding import constrain

Cache = tuple[Float[Array, "B S GD"], Float[Array, "B S GD"]]  # keys and values of one layer, heads flattened

REMATERIALISATION: dict[str, Any] = {
    "none": None,  # every activation is kept for the backward pass
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # dense products are kept, the rest is redone
    "full": jax.checkpoint_policies.nothing_saveable,  # only each layer's input is kept
}


def mlp_width(width: int) -> int:
    """LlamaGen's hidden width of SwiGLU: 8/3 of the model's, rounded up to a multiple of 256."""
    return -(-int(2 * 4 * width / 3) // 256) * 256


class SwiGLU(nnx.Module):
    """out(silu(gate x) * up x) (arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, *, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs):
        # Gate and up share one product, as do query, key and value below.
        self.gate_up = Linear(width, 2 * hidden, ("embed", "mlp"), init=init, dtype=dtype, rngs=rngs)
        self.out = Linear(hidden, width, ("mlp", "embed"), init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.out(jax.nn.silu(gate) * up)


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU, both residual."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, qk_norm: bool, dropout_rate: float,
                 *, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs):  # fmt: skip
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.dropout_rate = dropout_rate
        self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        qkv_width = (heads + 2 * kv_heads) * self.head_dim
        self.qkv = Linear(width, qkv_width, ("embed", "heads"), init=init, dtype=dtype, rngs=rngs)
        self.out = Linear(heads * self.head_dim, width, ("heads", "embed"), init=init, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.mlp = SwiGLU(width, hidden, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        table: Float[Array, "*B T 2 d2"],
        visibility: Visibility,
        *,
        cache: Cache | None = None,
        slots: Int[Array, "B T"] | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Transform T slots; with a cache, their keys and values are first written into it at `slots`."""
        B, T, _ = x.shape
        sizes = [self.heads * self.head_dim, (self.heads + self.kv_heads) * self.head_dim]
        q, k, v = jnp.split(self.qkv(self.attention_norm(x)), sizes, axis=-1)
        q = q.reshape(B, T, self.heads, self.head_dim)
        k = k.reshape(B, T, self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            rows = jnp.arange(B)[:, None]
            cache = (cache[0].at[rows, slots].set(k.reshape(B, T, -1)), cache[1].at[rows, slots].set(v))
            k, v = cache[0].reshape(B, -1, self.kv_heads, self.head_dim), cache[1]
        v = v.reshape(B, -1, self.kv_heads, self.head_dim)
        keys = (None, None) if key is None else jax.random.split(key)
        attended = self.out(attention(q, k, v, visibility).reshape(B, T, -1))
        x = constrain(x + dropout(attended, self.dropout_rate, keys[0]), ("batch", "sequence", None))
        transformed = self.mlp(self.mlp_norm(x))
        x = constrain(x + dropout(transformed, self.dropout_rate, keys[1]), ("batch", "sequence", None))
        return x, cache


class Transformer(nnx.Module):
    """`depth` blocks and a last norm.

    The blocks' parameters are stacked (`scan_layers`, one compiled block walked by `lax.scan`: for training) or a list of
    their own (twice as fast for sampling on a CPU); `models.modules.unstack` turns the first form into the second.
    """

    def __init__(self, width: int, depth: int, heads: int, *, kv_heads: int, hidden: int, qk_norm: bool, dropout: float,
                 remat: str, scan_layers: bool, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs):  # fmt: skip
        def block(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, kv_heads, hidden, qk_norm, dropout, init=init, dtype=dtype, rngs=rngs)

        self.depth, self.remat, self.kv_width = depth, remat, kv_heads * (width // heads)
        self.dtype = dtype
        self.blocks: Any = stack(block, depth, rngs) if scan_layers else nnx.List([block(rngs) for _ in range(depth)])
        self.norm = RMSNorm(width)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        table: Float[Array, "*B T 2 d2"],
        visibility: Visibility,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """All slots at once, for training; `key` turns dropout on. Needs `scan_layers`."""
        graph, stacked = nnx.split(self.blocks)

        def layer(x: jax.Array, inputs: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            state, number = inputs
            layer_key = None if key is None else jax.random.fold_in(key, number)
            return nnx.merge(graph, state)(x, table, visibility, key=layer_key)[0], None

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMATERIALISATION[self.remat], prevent_cse=False)
        x, _ = jax.lax.scan(layer, x, (stacked, jnp.arange(self.depth)))
        return self.norm(x)

    def init_cache(self, batch: int, slots: int) -> list[Cache]:
        """Room for the keys and values of `slots` slots; what is not written yet must not be visible."""
        # Heads are flattened: TPUs pad a last axis of one head's 64 numbers to 128.
        empty = jnp.zeros((batch, slots, self.kv_width), self.dtype)
        return [(empty, empty) for _ in range(self.depth)]

    def extend(
        self,
        cache: list[Cache],
        x: Float[Array, "B n D"],
        table: Float[Array, "*B n 2 d2"],
        visibility: Visibility,
        slots: Int[Array, "B n"],
    ) -> tuple[Float[Array, "B n D"], list[Cache]]:
        """Transform n slots of each row given the cache of the others. Needs a list of blocks.

        Args:
          cache: from `init_cache`, or from the call before.
          x: inputs of the slots.
          table: their rotary table.
          visibility: their times (B, n) against the intervals of all S slots of the cache.
          slots: where they stand; rows of a batch may stand at different places.
        """
        extended: list[Any] = []
        for block, before in zip(self.blocks, cache, strict=True):
            x, after = block(x, table, visibility, cache=before, slots=slots)
            extended.append(after)
        return self.norm(x), extended
