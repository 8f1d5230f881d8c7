"""The generator: layout, conditioning, transformer and head put together."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from generator.conditioning import CONDITIONS, Captions
from generator.heads import HEADS
from generator.layouts import LAYOUTS, SequenceLayout
from models.errors import UserError, unknown
from models.layers import DTYPES, Embedding, Initializer, Linear, dropout
from models.masks import INFINITY, Branches, Visibility, behind
from models.modules import Description, Params, describe, unstack
from models.registry import build
from models.rotary import rotary_table
from models.sharding import constrain
from models.tokens import TokenSpec
from models.transformer import (
    MLPS,
    NORMS,
    QK_NORMS,
    REMATERIALISATION,
    Architecture,
    Cache,
    Modulations,
    Slots,
    Transformer,
    swiglu_width,
)

Condition = Int[Array, "B"] | Captions
Inputs = Int[Array, "B n K"] | Float[Array, "B n F"]  # what feeds the slots: ids, or features of the scales before
POSITIONS = ("rotary", "learned")


class Context(NamedTuple):
    """What a condition decides for every call of `extend`."""

    visibility: Visibility
    modulations: Modulations


class Generator(nnx.Module):
    """An autoregressive model of a tokenizer's tokens; its defaults are LlamaGen's (arXiv:2406.06525).

    Two calls: `logits` for training (teacher forcing, all slots at once), `extend` for sampling.
    """

    def __init__(
        self,
        *,
        spec: TokenSpec,
        classes: int,
        width: int,
        depth: int,
        heads: int,
        condition: Mapping[str, Any] = {"name": "class"},
        kv_heads: int = 0,
        mlp: int = 0,
        activation: str = "swiglu",
        norm: str = "rms",
        qk_norm: str = "none",
        attention_scale: float = 1.0,
        bias: bool = False,
        position: str = "rotary",
        rotate_condition: bool = False,
        init_std: float = 0.02,
        init_residual: float = 1.0,
        init_gates: float = 1e-3,
        dropout: float = 0.1,
        drop_path: float = 0.0,
        label_dropout: float = 0.1,
        layout: str = "raster",
        head: str = "categorical",
        dtype: str = "float32",
        remat: str = "none",
        scan_layers: bool = True,
        rngs: nnx.Rngs,
    ):
        for kind, name, table in (
            ("layout", layout, LAYOUTS), ("head", head, HEADS), ("dtype", dtype, DTYPES), ("activation", activation, MLPS),
            ("norm", norm, NORMS), ("qk_norm", qk_norm, QK_NORMS), ("position", position, POSITIONS),
            ("rematerialisation policy", remat, REMATERIALISATION),
        ):  # fmt: skip
            if name not in table:
                raise unknown(kind, name, table)
        for name, share in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= share < 1:
                raise UserError(f"generator.{name} is {share}; it must be at least 0 and less than 1.")
        kv_heads = kv_heads or heads
        if width % heads or width // heads % 4 or heads % kv_heads:
            raise UserError(f"generator: width {width} with {heads} heads and {kv_heads} key heads does not work; a head "
                            "must be width / heads = a multiple of 4 wide, and kv_heads must divide heads.")  # fmt: skip
        compute, init = DTYPES[dtype], nnx.initializers.normal(init_std)
        shared: dict[str, Any] = {"init": init, "dtype": compute, "rngs": rngs}
        of_classes = {"classes": classes} if condition["name"] == "class" else {}
        self.spec, self.dropout = spec, dropout
        self.condition = build(
            "condition", CONDITIONS, condition, width=width, dropout=label_dropout, **of_classes, **shared
        )
        self.layout = LAYOUTS[layout](spec, self.condition.entries)
        if self.layout.feed == "tokens":
            self.tokens = Embedding(sum(spec.sizes), width, **shared)
        else:
            self.features = Linear(spec.width, width, (None, "embed"), bias=bias, **shared)
        self.head_dim, self.nowhere = width // heads, float(rotate_condition)
        self.positions = LearnedPositions(self.layout, width, **shared) if position == "learned" else None
        self.transformer = Transformer(
            Architecture(
                width=width, depth=depth, heads=heads, kv_heads=kv_heads, mlp=mlp or swiglu_width(width),
                activation=activation, norm=norm, qk_norm=qk_norm, attention_scale=attention_scale, bias=bias,
                dropout=dropout, drop_path=drop_path, remat=remat, init=init, init_residual=init_residual,
                init_gates=init_gates, dtype=compute,
            ), scan_layers=scan_layers, rngs=rngs,
        )  # fmt: skip
        self.head = HEADS[head](width, spec.sizes, bias=bias, dtype=compute, rngs=rngs)

    def embed(self, inputs: Inputs) -> Float[Array, "B n D"]:
        """What feeds slots, in the model's width: for ids the sum over the sub-codes, each with rows of its own."""
        if self.layout.feed == "features":
            return self.features(inputs)
        offsets = np.cumsum((0, *self.spec.sizes[:-1]))
        return self.tokens(inputs + offsets).sum(axis=-2)

    def start(self, condition: Condition) -> Float[Array, "B n D"]:
        """What feeds the slots of the condition."""
        return take_slots(self.condition(condition), -1 - self.layout.source[: self.layout.conditions])

    def place(self, x: Float[Array, "B n D"], slots: Slots) -> tuple[Float[Array, "B n D"], Any]:
        """Inputs with learned positions added, and the slots' table of rotary ones, where there are such."""
        if self.positions is not None:
            return x + self.positions(slots), None
        return x, rotary_table(of_slots(self.layout.position, slots), self.head_dim, self.nowhere)

    def states(self, inputs: Inputs, condition: Condition, *, key: jax.Array | None = None) -> Float[Array, "B N D"]:
        """What the head is asked with of every token, each slot fed with the truth before it; `key` turns dropout on."""
        layout = self.layout
        known = [self.start(condition), take_slots(self.embed(inputs), layout.source[layout.conditions :])]
        keys = (None, None) if key is None else jax.random.split(key)
        x = dropout(jnp.concatenate(known, axis=1), self.dropout, keys[0])
        x, table = self.place(constrain(x, ("batch", "sequence", None)), np.arange(layout.slots))
        visibility = self.condition.visibility(condition, layout.visibility)
        hidden = self.transformer(x, table, visibility, self.vector(condition), key=keys[1])
        return take_slots(hidden, layout.predicting)

    def vector(self, condition: Condition) -> Float[Array, "B D"] | None:
        """The condition as what adaptive norms follow."""
        return self.condition(condition)[:, 0] if self.transformer.last_modulation is not None else None

    def logits(self, inputs: Inputs, condition: Condition) -> Float[Array, "B N V"]:
        """Teacher-forced logits of every token, without dropout.

        Args:
          inputs: what the layout is fed with: the tokens' ids (B, N, K), or the tokenizer's `scale_inputs` of them.
          condition: what is asked for.
        """
        return self.head(self.states(inputs, condition))

    def loss(
        self,
        inputs: Inputs,
        ids: Int[Array, "B N K"],
        condition: Condition,
        *,
        weight: Float[Array, "N"] | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross-entropy in nats per token; `key` turns dropout and the dropping of conditions on.

        Args:
          inputs: as of `logits`.
          ids: the tokens.
          condition: what they are of.
          weight: of every token, beside the layout's own.
          key: of dropout.
        """
        if key is not None:
            condition_key, key = jax.random.split(key)
            condition = self.condition.drop(condition, condition_key)
        losses, hits = self.head.loss(self.states(inputs, condition, key=key), ids)
        own = self.layout.weight[self.layout.predicting]
        weighted = losses.mean(axis=0) * own
        loss = (weighted if weight is None else weighted * weight).sum() / own.sum()
        return loss, {"loss": loss, "token_accuracy": hits.mean()}

    def init_cache(self, batch: int, slots: int | None = None) -> list[Cache]:
        """An empty cache for the first slots of the layout, or all; it may grow (`models.transformer.grown`)."""
        return self.transformer.init_cache(batch, self.layout.slots if slots is None else slots)

    def context(self, condition: Condition) -> Context:
        """What `extend` must know of the condition, the same in every call. Needs `scan_layers=False`."""
        visibility = self.condition.visibility(condition, self.layout.visibility)
        return Context(visibility, self.transformer.modulations(self.vector(condition)))

    def hidden(
        self,
        cache: list[Cache],
        inputs: Float[Array, "B n D"],
        slots: Slots,
        context: Context,
        branches: Branches | None = None,
        unwritten: Bool[Array, "S"] | None = None,
    ) -> tuple[Float[Array, "B n D"], list[Cache]]:
        """The one incremental call: what the head is asked with of n slots of each row, given the cache of the slots before.

        Slots are computed anew however often they are fed, and what the cache holds at later times is never seen: a cache
        need not be rolled back. Nodes of a tree lie behind the layout's slots, node m at row S + m, until one of each time is
        settled (`models.transformer.moved`). Needs `scan_layers=False` (see `sampling_params`).

        Args:
          cache: `init_cache`, or what the last call gave back; with room for the slots, or ending where numpy's begin.
          inputs: what feeds the slots: `start(condition)`, `embed(...)`.
          slots: which slots, int32: (B, n), as rows may be at different places, or (n,), consecutive and the same for all;
            numpy's are known to the compiler.
          context: of the condition.
          branches: where the inputs are nodes of a tree of drafts, (B, n) slots being their places in the sequence.
          unwritten: slots that nobody sees; for who feeds slots out of order.
        """
        x, table = self.place(inputs, slots)
        whole = context.visibility
        if branches is None:
            rows, room = slots, cache[0][0].shape[2]
            if isinstance(slots, np.ndarray):
                room = max(room, int(slots[-1]) + 1)
            time = of_slots(whole.q_time, slots)
            start = whole.k_start if unwritten is None else jnp.where(unwritten, INFINITY, whole.k_start)
            behind_slots = max(room - self.layout.slots, 0)  # rows of trees, which no slot sees
            visibility = Visibility(
                time,
                unseen_behind(start[..., :room], behind_slots),
                unseen_behind(whole.k_end[..., :room], behind_slots),
            )
        else:
            rows, visibility = self.layout.slots + branches.nodes, behind(whole, branches)
        return self.transformer.extend(cache, x, table, visibility, rows, context.modulations)

    def extend(
        self,
        cache: list[Cache],
        inputs: Float[Array, "B n D"],
        slots: Slots,
        context: Context,
    ) -> tuple[Float[Array, "B n V"], list[Cache]]:
        """`hidden`, and the head's outputs."""
        hidden, cache = self.hidden(cache, inputs, slots, context)
        return self.head(hidden), cache


class LearnedPositions(nnx.Module):
    """Embeddings of every slot, of its time, and of the slots that the condition feeds, summed (VAR)."""

    def __init__(self, layout: SequenceLayout, width: int, *, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Param:
            return nnx.Param(init(rngs.params(), (rows, width)), axes=("slots", "embed"))

        self.slots, self.levels, self.start = table(layout.slots), table(len(layout.groups)), table(layout.conditions)
        self.layout, self.dtype = layout, dtype

    def __call__(self, slots: Slots) -> Float[Array, "*B n D"]:
        rows = self.slots[...] + self.levels[...][self.layout.time]
        return rows.at[: len(self.start[...])].add(self.start[...]).astype(self.dtype)[slots]


def of_slots(column: Int[Array | np.ndarray, "T *n"], slots: Slots) -> Int[Array | np.ndarray, "..."]:
    """The rows of a layout's column, numpy's where the slots are known before anything runs."""
    return column[slots] if isinstance(slots, np.ndarray) else jnp.asarray(column)[slots]


def unseen_behind(column: Int[Array | np.ndarray, "*B S"], count: int) -> Int[Array | np.ndarray, "*B S2"]:
    """A column of intervals with rows behind it that nobody sees."""
    if not count:
        return column
    pad = np.pad if isinstance(column, np.ndarray) else jnp.pad
    return pad(column, [(0, 0)] * (column.ndim - 1) + [(0, count)], constant_values=INFINITY)


def take_slots(x: Float[Array, "B S D"], indices: Int[np.ndarray, "T"]) -> Float[Array, "B T D"]:
    """x[:, indices] for static indices: a slice where they are consecutive, whose gradient is no scatter."""
    if len(indices) and (np.diff(indices) == 1).all():
        return x[:, indices[0] : indices[-1] + 1]
    return x[:, indices]


def sampling_params(params: Params, depth: int) -> Params:
    """The parameters of a generator with `scan_layers=True` for one with `scan_layers=False`."""
    transformer = params["transformer"]
    return {**params, "transformer": {**transformer, "blocks": unstack(transformer["blocks"], depth)}}


GENERATORS: dict[str, Any] = {"autoregressive": Generator}


def describe_generator(config: ConfigDict, spec: TokenSpec, *, scan_layers: bool) -> Description[Generator]:
    """A whole config's generator of such tokens, without its arrays: layers stacked for training, apart for sampling."""
    return describe(
        lambda rngs: build(
            "generator", GENERATORS, config.generator.to_dict(), spec=spec, classes=config.data.classes,
            scan_layers=scan_layers, rngs=rngs,
        )
    )  # fmt: skip
