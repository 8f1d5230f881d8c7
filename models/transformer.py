"""The transformer that every generator shares: LlamaGen's (arXiv:2406.06525) and VAR's (arXiv:2404.02905) are choices of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import attention
from models.layers import Initializer, LayerNorm, Linear, RMSNorm, drop_path, dropout
from models.masks import Visibility
from models.modules import stack
from models.rotary import rotate
from models.sharding import constrain

Cache = tuple[Float[Array, "B G _S d"], Float[Array, "B G _S d"]]  # keys and values of one layer; S may grow
Table = Float[Array, "*B T 2 d2"]  # of the rotary embedding
Modulation = Float[Array, "B 6 D"]  # gates, scales, shifts of both branches: gate, gate, scale, scale, shift, shift
Modulations = tuple[list[Modulation | None], Float[Array, "B 2 D"] | None]  # of the blocks, of the last norm
Slots = Int[Array | np.ndarray, "n"] | Int[Array, "B n"]

# Of attention that keeps no scores, what comes out is kept as products are: it is as small.
KEEP_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("attended"),
)
REMATERIALISATION: dict[str, Any] = {
    # All that is dear to redo: dense products, attention's weights, masks of dropout. The cheap rest is quicker redone than
    # kept, even on a CPU: that is memory written, read and given back.
    "none": jax.checkpoint_policies.save_from_both_policies(
        KEEP_PRODUCTS, jax.checkpoint_policies.save_only_these_names("attention", "dropout")
    ),
    "dots": KEEP_PRODUCTS,  # dense products are kept, the rest is redone
    "full": jax.checkpoint_policies.nothing_saveable,  # only each layer's input is kept
}
LARGEST_LOG_SCALE = float(np.log(100))  # of l2-normalised queries


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a transformer is made of; the fields of a generator's config section say the same.

    Attributes:
      width: D.
      depth: number of blocks.
      heads: of queries.
      kv_heads: of keys and values (grouped-query attention); must divide `heads`.
      mlp: hidden width.
      activation: a name of `MLPS`.
      norm: "rms", or layer norms that the condition scales, shifts and gates: "adaptive", "adaptive_shared" (of one
        projection for all blocks).
      qk_norm: "none", "rms", or "l2" with a learned scale a head.
      attention_scale: of the scores, in 1 / sqrt(head width); without meaning where qk_norm is "l2".
      bias: in all products but those of keys.
      dropout: of residual branches.
      drop_path: share of samples that skip a branch of the last block; falls linearly to 0 at the first.
      remat: a name of `REMATERIALISATION`.
      init: of kernels.
      init_residual: factor on the initial kernels that end a branch.
      init_gates: factor on the initial kernels of gates; it is 1/2 for all other modulation.
      dtype: of the arithmetic.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp: int
    activation: str
    norm: str
    qk_norm: str
    attention_scale: float
    bias: bool
    dropout: float
    drop_path: float
    remat: str
    init: Initializer
    init_residual: float
    init_gates: float
    dtype: DTypeLike

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    def linear(self, inputs: int, outputs: int, axes: tuple[str, str], *, rngs: nnx.Rngs, factor: float = 1.0,
               bias: bool | None = None) -> Linear:  # fmt: skip
        """A product in this transformer's way."""
        init = lambda key, shape: factor * self.init(key, shape)  # noqa: E731
        return Linear(
            inputs, outputs, axes, bias=self.bias if bias is None else bias, init=init, dtype=self.dtype, rngs=rngs
        )


def swiglu_width(width: int) -> int:
    """LlamaGen's hidden width of SwiGLU: 8/3 of the model's, rounded up to a multiple of 256."""
    return -(-int(2 * 4 * width / 3) // 256) * 256


class SwiGLU(nnx.Module):
    """out(silu(gate x) * up x) (arXiv:2002.05202)."""

    def __init__(self, of: Architecture, *, rngs: nnx.Rngs):
        # Gate and up share one product, as do query, key and value below.
        self.mlp = of.mlp
        self.gate_up = of.linear(of.width, 2 * of.mlp, ("embed", "mlp"), rngs=rngs)
        self.out = of.linear(of.mlp, of.width, ("mlp", "embed"), factor=of.init_residual, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = self.gate_up.parts(x, [self.mlp] * 2)
        return self.out(constrain(jax.nn.silu(gate) * up, ("batch", "sequence", "mlp")))


class GELU(nnx.Module):
    """out(gelu(up x)), with the tanh form of GELU (arXiv:1606.08415)."""

    def __init__(self, of: Architecture, *, rngs: nnx.Rngs):
        self.up = of.linear(of.width, of.mlp, ("embed", "mlp"), rngs=rngs)
        self.out = of.linear(of.mlp, of.width, ("mlp", "embed"), factor=of.init_residual, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.out(constrain(jax.nn.gelu(self.up(x), approximate=True), ("batch", "sequence", "mlp")))


MLPS: dict[str, Callable[..., nnx.Module]] = {"swiglu": SwiGLU, "gelu": GELU}
NORMS = ("rms", "adaptive", "adaptive_shared")
QK_NORMS = ("none", "rms", "l2")


class Block(nnx.Module):
    """Pre-norm attention and MLP, both residual."""

    def __init__(self, of: Architecture, *, rngs: nnx.Rngs):
        self.of = of
        norm = RMSNorm if of.norm == "rms" else LayerNorm
        self.attention_norm, self.mlp_norm = norm(of.width), norm(of.width)
        kv_width = of.kv_heads * of.head_dim
        self.qkv = of.linear(of.width, of.width + 2 * kv_width, ("embed", "heads"), bias=False, rngs=rngs)
        self.q_bias = nnx.Param(jnp.zeros(of.width), axes=("norm",)) if of.bias else None
        self.v_bias = nnx.Param(jnp.zeros(kv_width), axes=("norm",)) if of.bias else None
        self.q_norm = RMSNorm(of.head_dim) if of.qk_norm == "rms" else None
        self.k_norm = RMSNorm(of.head_dim) if of.qk_norm == "rms" else None
        self.log_scale = nnx.Param(jnp.full(of.heads, np.log(4)), axes=("norm",)) if of.qk_norm == "l2" else None
        self.out = of.linear(of.width, of.width, ("heads", "embed"), factor=of.init_residual, rngs=rngs)
        self.mlp = MLPS[of.activation](of, rngs=rngs)
        self.modulation = modulation(of, 6, rngs=rngs) if of.norm == "adaptive" else None
        if of.norm == "adaptive_shared":
            offset = jax.random.normal(rngs.params(), (6, of.width)) * (0.5 * of.width**-0.5)
            self.modulation_offset = nnx.Param(offset.at[:2].multiply(2 * of.init_gates), axes=("norm", "norm"))

    def modulation_by(self, active: Float[Array, "B D"] | None, shared: Modulation | None) -> Modulation | None:
        """What the condition does to this block; None where the norms know none."""
        if shared is not None:
            return shared + self.modulation_offset[...].astype(shared.dtype)
        return None if self.modulation is None or active is None else parts(self.modulation(active), 6)

    def queries_keys_values(
        self, x: Float[Array, "B T D"], table: Table | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (B, T, heads, head width), keys and values (B, heads, T, head width)."""
        of, (B, T, _) = self.of, x.shape
        q, k, v = self.qkv.parts(x, [of.width, of.kv_heads * of.head_dim, of.kv_heads * of.head_dim])
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias[...].astype(q.dtype), v + self.v_bias[...].astype(v.dtype)
        q, k, v = q.reshape(B, T, of.heads, -1), k.reshape(B, T, of.kv_heads, -1), v.reshape(B, T, of.kv_heads, -1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.log_scale is not None:
            scale = jnp.exp(jnp.minimum(self.log_scale[...], LARGEST_LOG_SCALE))
            q, k = unit(q) * scale[:, None].astype(q.dtype), unit(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        k, v = (constrain(x.swapaxes(1, 2), ("batch", "heads", None, None)) for x in (k, v))
        return constrain(q, ("batch", "sequence", "heads", None)), k, v

    def __call__(
        self,
        x: Float[Array, "B T D"],
        table: Table | None,
        visibility: Visibility,
        *,
        modulation: Modulation | None = None,
        cache: Cache | None = None,
        slots: Slots | None = None,
        drop: Float[Array, ""] | float = 0.0,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Transform T slots; with a cache, their keys and values are first written into it at `slots`."""
        of, (B, T, _) = self.of, x.shape
        q, k, v = self.queries_keys_values(modulated(self.attention_norm(x), modulation, 0), table)
        if cache is not None and slots is not None:
            cache = (written(cache[0], slots, k), written(cache[1], slots, v))
            k, v = cache
        scale = 1.0 if of.qk_norm == "l2" else of.attention_scale * of.head_dim**-0.5
        attended = attention(q, k, v, visibility, scale=scale).reshape(B, T, -1)
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)

        def add(x: jax.Array, branch: jax.Array, number: int) -> jax.Array:
            branch = gated(dropout(branch, of.dropout, keys[number]), modulation, number)
            return constrain(x + drop_path(branch, drop, keys[2 + number]), ("batch", "sequence", None))

        x = add(x, self.out(attended), 0)
        return add(x, self.mlp(modulated(self.mlp_norm(x), modulation, 1)), 1), cache


def modulation(of: Architecture, count: int, *, rngs: nnx.Rngs) -> Linear:
    """condition -> `count` vectors for adaptive norms; of six, the first two are gates and nearly closed at first."""

    def init(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        factors = [of.init_gates] * 2 + [0.5] * 4 if count == 6 else [0.5] * count
        return of.init(key, shape) * jnp.repeat(jnp.array(factors), of.width)

    return Linear(of.width, count * of.width, ("embed", "mlp"), bias=True, init=init, dtype=of.dtype, rngs=rngs)


def parts(modulation: Float[Array, "B PD"], count: int) -> Float[Array, "B P D"]:
    """The vectors that a modulation consists of."""
    return modulation.reshape(len(modulation), count, -1)


def modulated(x: Float[Array, "B T D"], modulation: Modulation | None, branch: int) -> Float[Array, "B T D"]:
    """x (1 + scale) + shift, for the input of branch 0 or 1."""
    if modulation is None:
        return x
    return x * (1 + modulation[:, None, 2 + branch]) + modulation[:, None, 4 + branch]


def gated(x: Float[Array, "B T D"], modulation: Modulation | None, branch: int) -> Float[Array, "B T D"]:
    """x gate, for the output of branch 0 or 1."""
    return x if modulation is None else x * modulation[:, None, branch]


def unit(x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
    """x / max(||x||, 1e-12), computed in float32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.maximum(jnp.sum(wide**2, axis=-1, keepdims=True), 1e-24))).astype(x.dtype)


def written(cache: Float[Array, "B G S d"], slots: Slots, x: Float[Array, "B G n d"]) -> Float[Array, "B G S2 d"]:
    """The cache with x at `slots`; what is known to begin where it ends makes it longer."""
    if isinstance(slots, np.ndarray) and slots[0] == cache.shape[2]:
        return jnp.concatenate([cache, x], axis=2)
    if slots.ndim == 1:  # consecutive, and the same in every row
        return jax.lax.dynamic_update_slice_in_dim(cache, x, slots[0], axis=2)
    return cache.at[jnp.arange(len(x))[:, None], :, slots].set(x.swapaxes(1, 2))


def grown(cache: list[Cache], slots: int) -> list[Cache]:
    """The cache with room for so many slots: attention takes the time of the room that there is."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0))), cache)


def moved(cache: list[Cache], source: Int[Array, "B n"], target: Int[Array, "B n"]) -> list[Cache]:
    """The cache with what is at `source` at `target` as well; targets of a row must differ."""

    def copied(x: jax.Array) -> jax.Array:
        taken = jnp.take_along_axis(x, source[:, None, :, None], axis=2)
        return x.at[jnp.arange(len(x))[:, None], :, target].set(taken.swapaxes(1, 2))

    return jax.tree.map(copied, cache)


class Transformer(nnx.Module):
    """`depth` blocks and a last norm.

    The blocks' parameters are stacked (`scan_layers`, one compiled block walked by `lax.scan`: for training) or a list of
    their own (twice as fast for sampling on a CPU); `models.modules.unstack` turns the first form into the second.
    """

    def __init__(self, of: Architecture, *, scan_layers: bool, rngs: nnx.Rngs):
        def block(rngs: nnx.Rngs) -> Block:
            return Block(of, rngs=rngs)

        self.of = of
        self.blocks: Any = (
            stack(block, of.depth, rngs) if scan_layers else nnx.List([block(rngs) for _ in range(of.depth)])
        )
        self.norm = RMSNorm(of.width) if of.norm == "rms" else LayerNorm(of.width)
        adaptive = of.norm != "rms"
        self.modulation = modulation(of, 6, rngs=rngs) if of.norm == "adaptive_shared" else None
        self.last_modulation = modulation(of, 2, rngs=rngs) if adaptive else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        table: Table | None,
        visibility: Visibility,
        condition: Float[Array, "B D"] | None = None,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """All slots at once, for training; `key` turns dropout on. Needs `scan_layers`.

        Args:
          x: inputs of the slots.
          table: rotary table of the slots; None without rotary embedding.
          visibility: who attends to whom.
          condition: what adaptive norms follow.
          key: of dropout and drop path.
        """
        of, active = self.of, None if condition is None else jax.nn.silu(condition)
        graph, stacked = nnx.split(self.blocks)
        shared = self.shared_modulation(active)

        def layer(x: jax.Array, inputs: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            state, number = inputs
            block = nnx.merge(graph, state)
            layer_key = None if key is None else jax.random.fold_in(key, number)
            drop = number * (of.drop_path / max(of.depth - 1, 1)) if of.drop_path else 0.0
            by = block.modulation_by(active, shared)
            return block(x, table, visibility, modulation=by, drop=drop, key=layer_key)[0], None

        kept = jax.checkpoint(layer, policy=REMATERIALISATION[of.remat], prevent_cse=False)
        x, _ = jax.lax.scan(kept, x, (stacked, jnp.arange(of.depth)))
        return self.last(x, self.modulation_of_last(active))

    def init_cache(self, batch: int, slots: int) -> list[Cache]:
        """Room for the keys and values of `slots` slots; what is not written yet must not be visible."""
        empty = jnp.zeros((batch, self.of.kv_heads, slots, self.of.head_dim), self.of.dtype)
        return [(empty, empty) for _ in range(self.of.depth)]

    def modulations(self, condition: Float[Array, "B D"] | None) -> Modulations:
        """What the condition does to every block and to the last norm; the same in every call of `extend`."""
        active = None if condition is None else jax.nn.silu(condition)
        shared = self.shared_modulation(active)
        return [block.modulation_by(active, shared) for block in self.blocks], self.modulation_of_last(active)

    def extend(
        self,
        cache: list[Cache],
        x: Float[Array, "B n D"],
        table: Table | None,
        visibility: Visibility,
        slots: Slots,
        modulations: Modulations,
    ) -> tuple[Float[Array, "B n D"], list[Cache]]:
        """Transform n slots of each row given the cache of the others. Needs a list of blocks.

        Args:
          cache: from `init_cache`, or from the call before.
          x: inputs of the slots.
          table: their rotary table; None without rotary embedding.
          visibility: their times against the intervals of the cache's slots.
          slots: where they stand: (B, n), as rows of a batch may stand at different places, or (n,) consecutive ones.
          modulations: of the condition.
        """
        extended: list[Any] = []
        by_block, by_last = modulations
        for block, before, by in zip(self.blocks, cache, by_block, strict=True):
            x, after = block(x, table, visibility, modulation=by, cache=before, slots=slots)
            extended.append(after)
        return self.last(x, by_last), extended

    def shared_modulation(self, active: Float[Array, "B D"] | None) -> Modulation | None:
        """What all blocks add their own offset to, where they share one projection."""
        return None if self.modulation is None or active is None else parts(self.modulation(active), 6)

    def modulation_of_last(self, active: Float[Array, "B D"] | None) -> Float[Array, "B 2 D"] | None:
        """Scale and shift of the last norm."""
        return None if self.last_modulation is None or active is None else parts(self.last_modulation(active), 2)

    def last(self, x: Float[Array, "B T D"], by: Float[Array, "B 2 D"] | None) -> Float[Array, "B T D"]:
        """The last norm."""
        x = self.norm(x)
        return x if by is None else x * (1 + by[:, None, 0]) + by[:, None, 1]
