"""What feeds a generator's slots: made here, where tokenizer and generator are both known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from generator.generator import describe_generator
from jobs.workdir import load
from models.errors import UserError
from models.modules import Params
from tokenizer.quantizers.multi_scale import MultiScaleQuantizer
from tokenizer.tokenizer import Tokenizer, describe_tokenizer, token_spec


class TokenFeed:
    """The token before."""

    def whole(self, ids: jax.Array) -> jax.Array:
        """What feeds all slots under teacher forcing: (B, N, K)."""
        return ids

    def start(self, batch: int) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def next(self, state: Any, drawn: jax.Array, time: Any) -> tuple[Any, jax.Array]:
        """The ids themselves (B, n, K)."""
        if jnp.issubdtype(drawn.dtype, jnp.floating):
            raise UserError(
                "sampler.smooth mixes the codes of scales; a generator that is fed with tokens has none to mix."
            )
        return state, drawn


class ScaleFeed:
    """The codes of the scales before, summed and averaged to the next one's grid; the state is the sum."""

    def __init__(self, quantizer: MultiScaleQuantizer):
        self.quantizer = quantizer

    def whole(self, ids: jax.Array) -> jax.Array:
        """What feeds all slots under teacher forcing: (B, N - n, D), n being the first scale's."""
        return self.quantizer.scale_inputs(ids)

    def start(self, batch: int) -> jax.Array:
        """A sum of nothing (B, h, w, D)."""
        return self.quantizer.start(batch)

    def next(self, state: jax.Array, drawn: jax.Array, time: int) -> tuple[jax.Array, jax.Array | None]:
        """Of the ids of a scale (B, n, K), or of shares in all codes (B, n, V)."""
        shares = jnp.issubdtype(drawn.dtype, jnp.floating)
        codes = drawn @ self.quantizer.inner.rows() if shares else self.quantizer.inner.lookup(drawn)
        return self.quantizer.next_scale(state, codes, time)


FEEDS: dict[str, Callable[[Tokenizer], Any]] = {
    "tokens": lambda tokenizer: TokenFeed(),
    "features": lambda tokenizer: ScaleFeed(tokenizer.quantizer),
}


class TrainingFeed(NamedTuple):
    """What feeds a generator under teacher forcing: `feed(ids, **frozen)`."""

    feed: Callable[..., jax.Array]
    frozen: dict[str, Params]


def training_feed(config: ConfigDict, workdir: Path) -> TrainingFeed:
    """Of the config's generator, by the workdir's tokenizer as it was trained, where it is asked for."""
    tokenizer = describe_tokenizer(config)
    known = layout_feed(config) == "tokens"
    return feed_by(
        config, tokenizer.shapes if known else jax.device_get(load("tokenizer", tokenizer, config, workdir)[0])
    )


def layout_feed(config: ConfigDict) -> str:
    """What the config's generator is fed with, a name of `FEEDS`."""
    generator = describe_generator(config, token_spec(describe_tokenizer(config)), scan_layers=True)
    return generator.merge(generator.shapes).layout.feed


def feed_by(config: ConfigDict, params: Params) -> TrainingFeed:
    """By these parameters of the tokenizer, of which the quantizer's alone are asked for, and only for features."""
    tokenizer, feed = describe_tokenizer(config), layout_feed(config)
    if feed == "tokens":
        return TrainingFeed(lambda ids: ids, {})

    def inputs(ids: jax.Array, quantizer: Params) -> jax.Array:
        return FEEDS[feed](tokenizer.merge({**tokenizer.shapes, "quantizer": quantizer})).whole(ids)

    return TrainingFeed(inputs, {"quantizer": params["quantizer"]})
