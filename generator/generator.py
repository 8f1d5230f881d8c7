"""The generator: layout, conditioning, transformer and head put together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from generator.conditioning import ClassCondition
from generator.heads import HEADS
from generator.layouts import LAYOUTS
from models.errors import UserError, unknown
from models.layers import DTYPES, Embedding, dropout
from models.masks import Visibility
from models.modules import Params, unstack
from models.rotary import rotary_table
from models.sharding import constrain
from models.tokens import Tokens, TokenSpec
from models.transformer import REMATERIALISATION, Cache, Transformer, mlp_width


class Generator(nnx.Module):
    """An autoregressive model of a tokenizer's tokens (LlamaGen, arXiv:2406.06525, with its defaults).

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
        kv_heads: int = 0,
        mlp: int = 0,
        qk_norm: bool = False,
        rotate_condition: bool = False,
        init_std: float = 0.02,
        dropout: float = 0.1,
        label_dropout: float = 0.1,
        layout: str = "raster",
        head: str = "categorical",
        dtype: str = "float32",
        remat: str = "none",
        scan_layers: bool = True,
        rngs: nnx.Rngs,
    ):
        for kind, name, table in (("layout", layout, LAYOUTS), ("head", head, HEADS), ("dtype", dtype, DTYPES),
                                  ("rematerialisation policy", remat, REMATERIALISATION)):  # fmt: skip
            if name not in table:
                raise unknown(kind, name, table)
        kv_heads = kv_heads or heads
        if width % heads or width // heads % 4 or heads % kv_heads:
            raise UserError(f"generator: width {width} with {heads} heads and {kv_heads} key heads does not work; a head "
                            "must be width / heads = a multiple of 4 wide, and kv_heads must divide heads.")  # fmt: skip
        compute, init = DTYPES[dtype], nnx.initializers.normal(init_std)
        self.spec, self.layout, self.dropout = spec, LAYOUTS[layout](spec), dropout
        self.head_dim, self.nowhere = width // heads, float(rotate_condition)
        self.condition = ClassCondition(classes, width, dropout=label_dropout, init=init, dtype=compute, rngs=rngs)
        self.tokens = Embedding(sum(spec.sizes), width, init=init, dtype=compute, rngs=rngs)
        self.transformer = Transformer(
            width, depth, heads, kv_heads=kv_heads, hidden=mlp or mlp_width(width), qk_norm=qk_norm, dropout=dropout,
            remat=remat, scan_layers=scan_layers, init=init, dtype=compute, rngs=rngs,
        )  # fmt: skip
        self.head = HEADS[head](width, spec.sizes, dtype=compute, rngs=rngs)

    def embed(self, ids: Int[Array, "B n K"]) -> Float[Array, "B n D"]:
        """Input embedding of tokens: the sum over the sub-codes, each with rows of its own."""
        offsets = np.cumsum((0, *self.spec.sizes[:-1]))
        return self.tokens(ids + offsets).sum(axis=-2)

    def outputs(
        self, tokens: Tokens, labels: Int[Array, "B"], *, key: jax.Array | None = None
    ) -> Float[Array, "B T V"]:
        """The head's outputs at every slot, each fed with the true tokens before it; `key` turns dropout on."""
        known = jnp.concatenate([self.condition(labels), self.embed(tokens.ids)], axis=1)
        entries = ClassCondition.entries
        source = np.where(self.layout.source < 0, -1 - self.layout.source, entries + self.layout.source)
        keys = (None, None) if key is None else jax.random.split(key)
        x = dropout(take_slots(known, source), self.dropout, keys[0])
        x = constrain(x, ("batch", "sequence", None))
        table = rotary_table(self.layout.position, self.head_dim, self.nowhere)
        return self.head(self.transformer(x, table, self.layout.visibility, key=keys[1]))

    def logits(self, tokens: Tokens, labels: Int[Array, "B"]) -> Float[Array, "B T V"]:
        """Teacher-forced logits: row t is about token `layout.target[t]`, without dropout."""
        return self.outputs(tokens, labels)

    def loss(
        self, tokens: Tokens, labels: Int[Array, "B"], *, key: jax.Array | None = None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross-entropy in nats per token; `key` turns dropout and the dropping of labels on."""
        if key is not None:
            label_key, key = jax.random.split(key)
            labels = self.condition.drop(labels, label_key)
        outputs = self.outputs(tokens, labels, key=key)
        targets = tokens.ids[:, self.layout.target]
        weight = self.layout.weight * (self.layout.target >= 0)
        loss = (self.head.loss(outputs, targets) * weight).mean(axis=0).sum() / weight.sum()
        hits = (outputs.argmax(axis=-1) == targets[..., 0]).mean()
        return loss, {"loss": loss, "token_accuracy": hits}

    def init_cache(self, batch: int) -> list[Cache]:
        """An empty cache for every slot of the layout."""
        return self.transformer.init_cache(batch, self.layout.slots)

    def extend(
        self, cache: list[Cache], inputs: Float[Array, "B n D"], slots: Int[Array, "B n"]
    ) -> tuple[Float[Array, "B n V"], list[Cache]]:
        """The one incremental call: outputs of n slots of each row, given the cache of the slots before.

        Slots are computed anew however often they are fed, and what the cache holds at later times is never seen: a cache
        need not be rolled back. Needs `scan_layers=False` (see `sampling_params`).

        Args:
          cache: `init_cache`, or what the last call gave back.
          inputs: what feeds the slots: `condition(labels)`, `embed(ids)`.
          slots: which slots, int32; rows may be at different places.
        """
        table = rotary_table(jnp.asarray(self.layout.position)[slots], self.head_dim, self.nowhere)
        times = jnp.asarray(self.layout.visibility.q_time)[slots]
        visibility = self.layout.visibility._replace(q_time=times)
        batch = lambda column: jnp.broadcast_to(column, (slots.shape[0], self.layout.slots))  # noqa: E731
        visibility = Visibility(times, batch(visibility.k_start), batch(visibility.k_end))
        hidden, cache = self.transformer.extend(cache, inputs, table, visibility, slots)
        return self.head(hidden), cache


def take_slots(x: Float[Array, "B S D"], indices: Int[np.ndarray, "T"]) -> Float[Array, "B T D"]:
    """x[:, indices] for static indices: a slice where they are consecutive, whose gradient is no scatter."""
    if (np.diff(indices) == 1).all():
        return x[:, indices[0] : indices[-1] + 1]
    return x[:, indices]


def sampling_params(params: Params, depth: int) -> Params:
    """The parameters of a generator with `scan_layers=True` for one with `scan_layers=False`."""
    transformer = params["transformer"]
    return {**params, "transformer": {**transformer, "blocks": unstack(transformer["blocks"], depth)}}


GENERATORS: dict[str, Any] = {"autoregressive": Generator}
