"""Gradients and a few steps of tiny learners, on one of eight virtual devices and on meshes of all; prints JSON.

python mesh_runs.py STAGE data=2,fsdp=4 [MESH...]
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from conftest import make_generator_learner, make_tokenizer_learner, tiny_config, token_examples

from configs import digits
from generator.generator import describe_generator
from generator.learner import GeneratorLearner
from jobs.feeds import feed_by
from models import sharding
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.loop import compile_step
from training.step import fingerprint, make_init, place_batch, state_shardings

STEPS, BATCH = 3, 16
ONE = dict.fromkeys(sharding.MESH_AXES, 1)
STEPPED = {**ONE, "data": 2, "fsdp": 4}  # the one of the meshes on which steps are compared beside gradients


def next_token():
    """The demo's generator with grouped queries; dropout, so that the masks of all meshes must be the same."""
    config = tiny_config()
    config.generator.update(heads=4, kv_heads=2, dropout=0.1, label_dropout=0.1)
    batch = {name: column[:BATCH] for name, column in token_examples().items()}
    return make_generator_learner(config), config.training.generator, batch


def next_scale():
    """VAR's: adaptive norms, biases, normalised queries, learned positions, several scales."""
    config, scales = tiny_config(), digits.get_config("next=scale")
    config.tokenizer.projection, config.tokenizer.quantizer = 3, scales.tokenizer.quantizer
    config.tokenizer.quantizer.inner.update(codes=16, width=4)
    wanted = {name: scales.generator[name] for name in ("layout", "activation", "norm", "qk_norm", "bias", "position")}
    config.generator.update(heads=4, drop_path=0.1, init_gates=0.5, **wanted)
    spec, rng = token_spec(describe_tokenizer(config)), np.random.default_rng(2)
    batch = {
        "ids": rng.integers(0, 16, (BATCH, spec.positions, 1)).astype(np.int32),
        "label": rng.integers(0, 10, BATCH).astype(np.int32),
    }
    tokenizer = describe_tokenizer(config)
    feed = feed_by(config, tokenizer.init(jax.random.key(3)))
    learner = GeneratorLearner(describe_generator(config, spec, scan_layers=True), *feed)
    return learner, config.training.generator, batch


def tokenizer():
    """With a discriminator, whose gradients are compared as well; codebook statistics are of all devices' images."""
    config = tiny_config()
    config.losses.update(adversarial=0.1, adversarial_start=0, discriminator_channels=8, discriminator_layers=1)
    rng = np.random.default_rng(1)
    batch = {
        "image": rng.uniform(-1, 1, (BATCH, 16, 16, 1)).astype(np.float32),
        "label": rng.integers(0, 10, BATCH).astype(np.int32),
    }
    return make_tokenizer_learner(config), config.training.tokenizer, batch


STAGES = {"next_token": next_token, "next_scale": next_scale, "tokenizer": tokenizer}


def axes_of(leaf):
    return [axis for entry in leaf.sharding.spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]


def run(stage, sizes, devices):
    """All that a mesh computes, on the host."""
    learner, section, batch = STAGES[stage]()
    section = {**section.to_dict(), "accumulate": 1, "steps": 20}
    mesh = sharding.make_mesh(sizes, devices)
    init = make_init(learner, section)
    places = state_shardings(learner, section, jax.eval_shape(init, jax.random.key(0)), mesh)
    placed, frozen = place_batch(batch, mesh), sharding.place_whole(learner.frozen, mesh)

    def gradients(state, batch, frozen):
        # Moved a little: a head that is 0 hides the gradients behind it.
        leaves, structure = jax.tree.flatten(state["params"])
        keys = jax.random.split(jax.random.key(7), len(leaves))
        moved = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
        params = structure.unflatten(moved)

        def of(own, player, loss):
            return loss({**params, **frozen, player: own}, state["statistics"], batch, jax.random.key(5), state["step"])

        return {
            player: jax.value_and_grad(of, has_aux=True)(params[player], player, loss)
            for player, loss in learner.players.items()
        }

    with jax.set_mesh(mesh):
        state = jax.jit(init, out_shardings=places)(jax.random.key(0))
        found = jax.device_get(jax.jit(gradients)(state, placed, frozen))
    whole = jax.device_put(jax.device_get(state), jax.devices()[0])
    result = {
        "checksums": [np.asarray(jax.jit(fingerprint)(tree)).tolist() for tree in (state, whole)],
        "rows": placed["label"].addressable_shards[0].data.shape[0],
    }
    if sizes in (ONE, STEPPED):
        step, result["losses"] = compile_step(learner, frozen, section, places, mesh, 0), []
        for _ in range(STEPS):
            state, metrics = step(state, placed)
            result["losses"].append(float(metrics["loss"]))
        result["compiled"] = step.jitted._cache_size()
    player = next(iter(learner.players))
    adam = state["optimizer"][player][1][0]
    result["layout"] = {
        kind: {
            jax.tree_util.keystr(path): [axes_of(leaf), leaf.addressable_shards[0].data.size, leaf.size]
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for kind, tree in {"params": state["params"][player], "ema": state["ema"], "mu": adam.mu, "nu": adam.nu}.items()
    }
    return found, result


def distance(found, wanted):
    """The largest difference of two arrays, in the largest value of the second."""
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


if __name__ == "__main__":
    stage, *meshes = sys.argv[1:]
    reference, result = run(stage, ONE, jax.devices()[:1])
    results = {"one": result}
    for mesh in meshes:
        sizes = {**ONE, **{name: int(size) for name, size in (part.split("=") for part in mesh.split(","))}}
        found, results[mesh] = run(stage, sizes, jax.devices())
        for name in ("value", "gradient"):
            index = ("value", "gradient").index(name)
            pairs = zip(
                jax.tree.leaves_with_path([parts[index] for parts in found.values()]),
                jax.tree.leaves([parts[index] for parts in reference.values()]),
                strict=True,
            )
            results[mesh][name] = {jax.tree_util.keystr(path): distance(leaf, one) for (path, leaf), one in pairs}
    print(json.dumps(results))
