"""Forecasting heads: what a generator will say of positions, from what it said when it knew less.

Predictive sampling (Wiggers and Hoogeboom, arXiv:2002.09928) forecasts tokens ahead from the hidden state by small heads,
trained beside the model or, as here, on a frozen one. Speculative decoding calls the model on drafts; when some of them turn
out wrong, the hidden states behind them are stale. The head here corrects a hidden state by the tokens near its position:
those that the model was given then, and those that are there now; for a position that no call has seen, by the last one's
hidden state, and all tokens near are new. A state near which nothing changed stays as it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from generator.generator import Generator
from generator.sampling.calls import Caller
from generator.sampling.speculative import Seen
from models.errors import UserError
from models.layers import Linear
from models.modules import Description, Params, describe
from models.tokens import Grid, TokenSpec

REACH = 8  # positions beyond the last that was seen which are told apart


class Forecast(nnx.Module):
    """A residual correction of hidden states.

    Args:
      width: D, of the generator.
      row: tokens of a row of the image.
      hidden: width of the correction.
    """

    def __init__(self, *, width: int, row: int, hidden: int, rngs: nnx.Rngs):
        # How far back the tokens are that count: to the left, and around the one above.
        self.near = tuple(sorted({1, 2, row - 1, row, row + 1} - {0}))
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        shared: dict[str, Any] = {"init": init, "dtype": jnp.float32, "rngs": rngs, "bias": False}
        self.own = Linear(width, hidden, ("embed", "mlp"), **shared)
        self.before = Linear(width, hidden, ("embed", "mlp"), **shared)
        self.news = Linear(len(self.near) * width, hidden, ("embed", "mlp"), **shared)
        self.ahead = nnx.Param(jnp.zeros((REACH + 1, hidden)), axes=("norm", "mlp"))
        self.mix = Linear(hidden, hidden, ("mlp", "embed"), **shared)
        self.out = Linear(
            hidden, width, ("mlp", "embed"), **{**shared, "init": nnx.initializers.normal(0.1 * hidden**-0.5)}
        )

    def __call__(
        self,
        own: Float[Array, "*B D"],
        before: Float[Array, "*B D"],
        ahead: Int[Array, "*B"],
        news: Float[Array, "*B K D"],
    ) -> Float[Array, "*B D"]:
        """Hidden states as they would be.

        Args:
          own: of the positions, as they were; of the last one that was seen, for those beyond.
          before: of the positions before those.
          ahead: how far beyond the last position that was seen, at most `REACH`; 0 for those that were.
          news: embeddings of the tokens near a position as they are, less those as they were.
        """
        known = self.own(scaled(own)) + self.before(scaled(before)) + self.ahead[...][ahead]
        told = known + self.news(news.reshape(*news.shape[:-2], -1))
        change = self.tail(told) - jnp.where((ahead == 0)[..., None], self.tail(known), 0)
        return own + change.astype(own.dtype)

    def tail(self, x: Float[Array, "*B h"]) -> Float[Array, "*B D"]:
        """What a correction is made of."""
        x = jax.nn.gelu(x)
        return self.out(x + jax.nn.gelu(self.mix(x)))


def scaled(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x over its root mean square; zeros stay."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)


def forecast_hidden(
    forecast: Forecast, ask: Caller, seen: Seen, ids: Int[Array, "B N"], positions: Int[Array, "B n"]
) -> Float[Array, "R n D"]:
    """What the head would be asked with at positions, given tokens as they are now.

    Args:
      forecast: the correction.
      ask: how the generator is asked.
      seen: what the last call of the generator saw and gave.
      ids: tokens as they are, drawn or drafted, before each position.
      positions: from `seen.first` on.
    """
    last = seen.first[:, None] + seen.hidden.shape[1] - 1
    anchor = jnp.minimum(positions, last)
    at = positions[..., None] - np.array(forecast.near)  # (B, n, K)
    row = jnp.arange(len(ids))[:, None, None]

    def embedded(tokens: jax.Array, which: jax.Array) -> jax.Array:
        flat = tokens[row, jnp.maximum(at, 0)].reshape(len(tokens), -1, 1)
        return jnp.where(which[..., None], scaled(ask.model.embed(flat)).reshape(*at.shape, -1), 0)

    news = embedded(ids, at >= 0) - embedded(seen.ids, (at >= 0) & (at < anchor[..., None]))
    place = jnp.clip(anchor - seen.first[:, None], 0, seen.hidden.shape[1] - 1)

    def taken(place: jax.Array) -> jax.Array:
        return jnp.take_along_axis(seen.hidden, ask.both(place)[..., None], axis=1)

    ahead = jnp.minimum(positions - anchor, REACH)
    return forecast(taken(place), taken(jnp.maximum(place - 1, 0)), ask.both(ahead), ask.both(news))


class ForecastLearner:
    """Makes the drafts of corrected states as like the generator's as can be; a batch is {"ids": (B, N, 1), "label": (B,)}.

    Every image is cut somewhere. What is behind is known; the token at the cut was drafted wrong, and of those after it a
    share; so the generator is asked twice, of the true tokens and of the drafted ones.

    Args:
      description: of the forecast.
      generator: of the generator, with `scan_layers=False`.
      params: its parameters.
      caller: (generator, labels) -> how it is asked when images are sampled, guidance and all.
      window: W, positions of a call.
    """

    stage = "forecast"
    unit = "loss"  # the metric that curves and progress bars show

    def __init__(
        self,
        description: Description[Forecast],
        generator: Description[Generator],
        params: Params,
        caller: Callable[[Any, jax.Array], Caller],
        window: int,
    ):
        self.description, self.generator, self.caller, self.window = description, generator, caller, window
        self.players = {"forecast": self.loss}
        self.tokens = generator.merge(generator.shapes).spec.positions  # of an image
        self.axes = {"forecast": description.axes}
        self.frozen = {"generator": params}  # parameters that losses see and nobody trains
        self.statistics_axes: Params = {}

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        """Parameters by player, and (no) statistics."""
        return {"forecast": self.description.init(key)}, {}

    def loss(self, params: Params, statistics: Params, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        """(loss, (statistics, metrics))."""
        found = self.metrics(params["forecast"], params["generator"], batch, key)
        return found["loss"], (statistics, found)

    def heldout(self, params: Params, batch: Any, generator: Params) -> dict[str, jax.Array]:
        """Metrics of the averaged forecast on held-out tokens."""
        return self.metrics(params, generator, batch, jax.random.key(0))

    def after_update(self, params: Params, statistics: Params) -> tuple[Params, Params]:
        """Nothing is changed but by gradients."""
        return params, statistics

    def metrics(self, params: Params, generator: Params, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """`loss`: divergence of drafts from the generator's distribution, in nats; total variation of the first draft
        behind the cut, of those that were seen and of those beyond, and of the first and the seen ones as they stood.
        """
        forecast, model = self.description.merge(params), self.generator.merge(generator)
        ids, ask = batch["ids"][..., 0], self.caller(model, batch["label"])
        batch_size, count = ids.shape
        everywhere = jnp.broadcast_to(jnp.arange(count), ids.shape)
        wrong_key, cut_key, share_key, which_key = jax.random.split(key, 4)

        def hidden(ids: jax.Array) -> jax.Array:
            return ask(ask.cache(), jnp.roll(ids, 1, axis=1), everywhere)[0]

        log_p = ask.log_p(hidden(ids), everywhere)
        cut = jax.random.randint(cut_key, (batch_size, 1), 0, count - 1)
        share = jax.random.uniform(share_key, (batch_size, 1))
        wrong = (everywhere == cut) | ((everywhere > cut) & (jax.random.uniform(which_key, ids.shape) < share))
        drafted = jnp.where(wrong, jax.random.categorical(wrong_key, log_p), ids)
        stale = hidden(drafted)
        window = min(self.window, count)
        first = jnp.minimum(cut[:, 0], count - window)
        seen = first[:, None] + jnp.arange(window)
        of_window = Seen(first, drafted, jnp.take_along_axis(stale, ask.both(seen)[..., None], axis=1))

        positions = cut + 1 + jnp.arange(window - 1 + REACH)
        inside, positions = positions < count, jnp.minimum(positions, count - 1)
        beyond = inside & (positions > seen[:, -1:])
        near, next_one = inside & ~beyond, inside & (positions == cut + 1)
        truth = jnp.take_along_axis(log_p, positions[..., None], axis=1)
        forecasts = ask.log_p(forecast_hidden(forecast, ask, of_window, ids, positions), positions)
        stood = ask.log_p(jnp.take_along_axis(stale, ask.both(positions)[..., None], axis=1), positions)

        def mean(x: jax.Array, which: jax.Array) -> jax.Array:
            return jnp.where(which, x, 0).sum() / jnp.maximum(which.sum(), 1)

        def distance(log_q: jax.Array) -> jax.Array:
            return 0.5 * jnp.abs(jnp.exp(log_q) - jnp.exp(truth)).sum(axis=-1)

        # What filters leave out has no logarithm.
        divergence = jnp.where(truth > -jnp.inf, jnp.exp(truth) * (truth - jnp.maximum(forecasts, -30.0)), 0).sum(
            axis=-1
        )
        loss = mean(divergence, next_one) + mean(divergence, near) + 0.3 * mean(divergence, beyond)
        return {
            "loss": loss, "next": mean(distance(forecasts), next_one), "near": mean(distance(forecasts), near),
            "beyond": mean(distance(forecasts), beyond), "next_stale": mean(distance(stood), next_one),
            "near_stale": mean(distance(stood), near),
        }  # fmt: skip


def describe_forecast(config: ConfigDict, spec: TokenSpec) -> Description[Forecast]:
    """A whole config's forecast, without its arrays.

    Raises:
      UserError: the tokens are not drawn one after the other.
    """
    if not isinstance(spec.shape, Grid) or len(spec.sizes) != 1:
        raise UserError("forecasts are for tokens that are drawn one after the other in a grid.")
    row = spec.shape.width
    return describe(lambda rngs: Forecast(width=config.generator.width, row=row, **config.forecast, rngs=rngs))
