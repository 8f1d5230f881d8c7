"""The training state and the one compiled step, sharded from the start."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, UInt32

from models import sharding
from models.modules import Params
from training.optimizers import learning_rate_schedule, make_optimizer

State = dict[str, Any]
Batch = dict[str, Any]


def make_init(learner: Any, config: Mapping[str, Any]) -> Callable[[jax.Array], State]:
    """key -> {"step", "params", "statistics", "ema", "optimizer"}: all that a run is, beside its place in the data.

    `ema` averages the first player alone: it is what is sampled from and evaluated.
    """
    optimizers = {player: make_optimizer(config, learner.axes[player]) for player in learner.players}

    def init(key: jax.Array) -> State:
        params, statistics = learner.init(key)
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "statistics": statistics,
            "ema": jax.tree.map(jnp.copy, params[first_player(learner)]),
            "optimizer": {player: optimizers[player].init(params[player]) for player in learner.players},
        }

    return init


def first_player(learner: Any) -> str:
    """The player that is kept for sampling."""
    return next(iter(learner.players))


def state_shardings(learner: Any, config: Mapping[str, Any], shapes: State, mesh: Mesh) -> State:
    """Where each array of the state lies: optimizer and EMA like the parameters."""
    whole = sharding.replicated(mesh)
    params = {p: sharding.shardings(shapes["params"][p], learner.axes[p], mesh) for p in learner.players}
    optimizers = {}
    for player, placed in params.items():
        optimizers[player] = optax.tree_utils.tree_map_params(
            make_optimizer(config, learner.axes[player]), lambda _, place: place, shapes["optimizer"][player], placed,
            transform_non_params=lambda _: whole,
        )  # fmt: skip
    return {
        "step": whole,
        "params": params,
        "statistics": sharding.shardings(shapes["statistics"], learner.statistics_axes, mesh),
        "ema": params[first_player(learner)],
        "optimizer": optimizers,
    }


def make_step(learner: Any, config: Mapping[str, Any], seed: int) -> Callable[..., tuple[State, Batch]]:
    """(state, batch, frozen) -> (next state, metrics); its randomness is fold_in(key(seed), step) and nothing is carried.

    All players' gradients are taken at the same parameters, over `accumulate` equal parts of the batch. `frozen` are parameters
    that losses see beside the players' and nobody trains.
    """
    optimizers = {player: make_optimizer(config, learner.axes[player]) for player in learner.players}
    schedule, parts = learning_rate_schedule(config), config["accumulate"]

    def gradients(
        params: Params, frozen: Params, statistics: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Any:
        grads: Params = {}
        metrics: Batch = {}
        for player, loss in learner.players.items():

            def of_player(own: Params, loss: Any = loss, player: str = player, statistics: Params = statistics) -> Any:
                return loss({**params, **frozen, player: own}, statistics, batch, key, step)

            (_, (statistics, found)), grads[player] = jax.value_and_grad(of_player, has_aux=True)(params[player])
            metrics |= found
        return grads, statistics, metrics

    def step(state: State, batch: Batch, frozen: Params | None = None) -> tuple[State, Batch]:
        number, params = state["step"], state["params"]
        key = jax.random.fold_in(jax.random.key(seed), number)
        if parts == 1:
            grads, statistics, metrics = gradients(params, frozen or {}, state["statistics"], batch, key, number)
        else:

            def part(carry: Any, inputs: Any) -> Any:
                grads, statistics = carry
                found, statistics, metrics = gradients(params, frozen or {}, statistics, inputs[0], inputs[1], number)
                return (jax.tree.map(lambda a, b: a + b / parts, grads, found), statistics), metrics

            # Part i takes every parts-th example, so that each device keeps its own.
            split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
            zero = jax.tree.map(jnp.zeros_like, params)
            carry, metrics = jax.lax.scan(part, (zero, state["statistics"]), (split, jax.random.split(key, parts)))
            (grads, statistics), metrics = carry, jax.tree.map(jnp.mean, metrics)

        updated, optimizer = {}, {}
        for player in learner.players:
            updates, optimizer[player] = optimizers[player].update(
                grads[player], state["optimizer"][player], params[player]
            )
            updated[player] = optax.apply_updates(params[player], updates)
            metrics[f"gradient_norm/{player}"] = optax.tree.norm(grads[player])
        updated, statistics = learner.after_update(updated, statistics)
        decay = jnp.minimum(config["ema_decay"], (1 + number) / (10 + number))  # short at first, as nothing is learned
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state["ema"], updated[first_player(learner)])
        metrics["learning_rate"] = schedule(number)
        state = {"step": number + 1, "params": updated, "statistics": statistics, "ema": ema, "optimizer": optimizer}
        return state, metrics

    return step


def place_batch(batch: Any, mesh: Mesh, *, whole: bool = False) -> Any:
    """Examples, a tree of arrays, as global ones, split over the batch's axes where they divide.

    Args:
      batch: this reader's share (`models.sharding.reader_of`), or all of them.
      mesh: of all processes.
      whole: every process has all of them.

    Raises:
      ValueError: shares of several readers do not divide over the devices.
    """
    split, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    readers = 1 if whole else sharding.reader_of(mesh).readers
    parts = sharding.batch_parts(mesh) // readers
    if any(len(leaf) % parts for leaf in jax.tree.leaves(batch)):
        if readers > 1:
            raise ValueError(f"{len(jax.tree.leaves(batch)[0])} examples of each of {readers} readers do not divide")
        split = replicated

    def place(leaf: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(split, leaf, (len(leaf) * readers, *leaf.shape[1:]))

    with jax.transfer_guard("allow"):  # this is the one transfer that a step has
        return jax.tree.map(place, batch)


def checksum(params: State) -> str:
    """A tree's `fingerprint` in hex, for people."""
    return np.asarray(jax.jit(fingerprint)(params)).tobytes().hex()


def fingerprint(state: State) -> UInt32[Array, "2"]:
    """Two 32-bit checksums of every bit of a tree, the same however it is sharded (sums of integers do not round)."""

    def of_leaf(leaf: jax.Array, number: int) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        bits = leaf.astype(jnp.uint32)
        place = jnp.full(bits.shape, number, jnp.uint32)
        for axis in range(bits.ndim):
            place = place * jnp.uint32(2654435761) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        mixed = (bits ^ (bits >> 15)) * (2 * place + 1)
        return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)])

    sums = [of_leaf(leaf, number) for number, leaf in enumerate(jax.tree.leaves(state))]
    return jnp.sum(jnp.stack(sums), axis=0, dtype=jnp.uint32)
