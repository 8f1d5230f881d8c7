"""A small generator that has learned something: fields of tokens that follow their neighbours, in two classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from conftest import Case

CODES, SIDE, CLASSES = 8, 4, 2
STEPS, BATCH = 400, 64


def fields(count, seed):
    """ids (count, N, 1) and labels: each code is mostly the one to the left, moved on by its class, or the one above."""
    rng = np.random.default_rng(seed)
    label, ids = rng.integers(0, CLASSES, count), rng.integers(0, CODES, (count, SIDE, SIDE))
    for row, column in np.ndindex(SIDE, SIDE):
        way = rng.random(count)
        if column:
            follows = (ids[:, row, column - 1] + 1 + 2 * label) % CODES
            ids[:, row, column] = np.where(way < 0.45, follows, ids[:, row, column])
        if row:
            ids[:, row, column] = np.where(way > 0.65, ids[:, row - 1, column], ids[:, row, column])
    return ids.reshape(count, -1, 1).astype(np.int32), label.astype(np.int32)


@functools.cache
def trained():
    """A `Case` whose parameters are trained, some of the labels being dropped, so that it can be guided."""
    case = Case(height=SIDE, width=SIDE, codes=CODES, classes=CLASSES, label_dropout=0.2)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(params, ids, labels, key):
        def step(carry, batch):
            params, state = carry
            ids, labels, key = batch
            loss = lambda params: case.description.merge(params).loss(ids, ids, labels, key=key)[0]  # noqa: E731
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        batches = (ids, labels, jax.random.split(key, STEPS))
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return params, losses

    ids, labels = fields(STEPS * BATCH, seed=0)
    params = case.description.init(jax.random.key(0))
    case.params, losses = train(
        params, ids.reshape(STEPS, BATCH, -1, 1), labels.reshape(STEPS, BATCH), jax.random.key(1)
    )
    last = float(jnp.mean(losses[-50:]))
    assert last < 0.92 * np.log(CODES), f"nothing was learned: {last}"
    return case
