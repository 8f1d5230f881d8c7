"""Sequential decoding: one call of the model a token, the reference that every faster sampler is compared with."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generator.generator import Generator
from generator.sampling.distribution import Filters, draw, gumbel_noise, target_distribution
from generator.sampling.guidance import guidance_scales, runs
from models.tokens import Tokens


class SampleOutput(NamedTuple):
    """What a sampler gives back: the tokens, and how often it called the model (per row of the batch)."""

    tokens: Tokens
    calls: Int[Array, "B"]


def sequential(
    generator: Generator,
    labels: Int[Array, "B"],
    images: Int[Array, "B"],
    *,
    seed: int,
    filters: Filters,
    scales: Float[np.ndarray, "T"],
) -> SampleOutput:
    """Sample token after token, in the layout's order; traced whole, so that a batch is one program.

    Guided positions are computed with the conditional and the unconditional rows in one batch. Where the scale is 1 the
    unconditional rows are left out; should guidance come back later, their cache is filled with one call.

    Args:
      generator: with `scan_layers=False`; its layout must be one token a call.
      labels: class of each image.
      images: index of each image in its run, which with the seed decides its noise.
      seed: of the run.
      filters: temperature, top-k and top-p.
      scales: guidance scale at each token (`guidance_scales`).
    """
    batch, count = len(labels), generator.spec.positions
    nothing = jnp.full_like(labels, generator.condition.null)
    ids = jnp.zeros((batch, count), jnp.int32)
    caches = {False: generator.init_cache(batch), True: generator.init_cache(batch)}
    conditions = {False: generator.condition(labels), True: generator.condition(nothing)}  # by "is unconditional"
    behind = 0  # tokens that the unconditional cache lacks start here

    def slots(start: Any, length: int, rows: int) -> jax.Array:
        return jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (rows, length))

    def inputs(ids: jax.Array, at: Any, condition: jax.Array) -> jax.Array:
        previous = jax.lax.dynamic_slice_in_dim(ids, jnp.maximum(at - 1, 0), 1, axis=1)
        return jnp.where(at == 0, condition, generator.embed(previous[..., None]))

    def step(at: jax.Array, carry: Any, *, guided: bool) -> Any:
        ids, cache = carry
        condition = jnp.concatenate([conditions[False], conditions[True]]) if guided else conditions[False]
        rows = jnp.concatenate([ids, ids]) if guided else ids
        outputs, cache = generator.extend(cache, inputs(rows, at, condition), slots(at, 1, len(rows)))
        conditional, *unconditional = jnp.split(outputs[:, 0], 2 if guided else 1)
        scale = jnp.asarray(scales)[at]
        log_probs = target_distribution(conditional, unconditional[0] if guided else None, scale, filters)
        noise = gumbel_noise(seed, images, jnp.broadcast_to(at, (batch, 1)), log_probs.shape[-1])[:, 0]
        return ids.at[:, at].set(draw(log_probs, noise)), cache

    calls = 0
    for start, stop, guided in runs(scales):
        if guided and start > behind:
            known = jnp.concatenate([conditions[True], generator.embed(ids[:, : start - 1, None])], axis=1)
            _, caches[True] = generator.extend(
                caches[True], known[:, behind:start], slots(behind, start - behind, batch)
            )
            calls += 1
        both = (caches[False], caches[True]) if guided else (caches[False],)
        cache = jax.tree.map(lambda *rows: jnp.concatenate(rows), *both)
        ids, cache = jax.lax.fori_loop(start, stop, partial(step, guided=guided), (ids, cache))
        caches[False] = jax.tree.map(lambda rows: rows[:batch], cache)
        if guided:
            caches[True], behind = jax.tree.map(lambda rows: rows[batch:], cache), stop
        calls += stop - start
    return SampleOutput(Tokens(ids[..., None]), jnp.full((batch,), calls, jnp.int32))


def sampler(*, positions: int, seed: int, temperature: float, top_k: int, top_p: float, guidance_scale: float,
            guidance_schedule: str, guidance_interval: Sequence[float]) -> Callable[..., SampleOutput]:  # fmt: skip
    """`sequential` with the fields of a sampler's config section: (generator, labels, images) -> SampleOutput."""
    filters = Filters(temperature, top_k, top_p)
    scales = guidance_scales(
        positions,
        scale=guidance_scale,
        schedule=guidance_schedule,
        interval=(guidance_interval[0], guidance_interval[1]),
    )

    def sample(generator: Generator, labels: jax.Array, images: jax.Array) -> SampleOutput:
        return sequential(generator, labels, images, seed=seed, filters=filters, scales=scales)

    return sample


SAMPLERS = {"sequential": sampler}
