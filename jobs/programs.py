"""The programs that a config's jobs run, as functions and shapes of their arguments: nothing is allocated, no file is read."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from generator.forecast import describe_forecast
from generator.generator import Generator, describe_generator, sampling_params
from generator.sampling.first_drafts import Pairs
from generator.sampling.interface import Aids
from generator.sampling.samplers import WINDOW, asks, build_sampler, fast_window, sampler_settings
from jobs.feeds import feed_by
from jobs.sample import sampling_program
from jobs.topologies import Topology
from jobs.train import generator_learner, tokenizer_learner
from models import sharding
from models.errors import UserError
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.loop import check_batch, compile_step
from training.step import make_init, state_shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled.

    Attributes:
      name: "train generator", "sample", ...
      function: jitted.
      arguments: trees of `jax.ShapeDtypeStruct` with shardings.
      kinds: what the arguments hold, name -> tree; every leaf of them once.
      mesh: that it is traced under.
      images: that one call is of, on all devices of the mesh.
      dtype: of its arithmetic.
      calls: how often a loop whose length is not known before it runs goes round at least.
      hosts: that run it at the same time, each for itself.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    kinds: dict[str, Any]
    mesh: Mesh
    images: int
    dtype: str
    calls: int = 1
    hosts: int = 1


Builder = Callable[[], Program]  # raises UserError where the config does not fit the devices


def programs(config: ConfigDict, stages: Sequence[str], topology: Topology) -> Iterator[tuple[str, Builder]]:
    """What --job=train, sample and evaluate would compile for these stages, by name."""
    for stage in stages:
        yield f"train {stage}", lambda stage=stage: training(config, stage, topology.devices)
    if "generator" in stages:
        yield "sample", lambda: sampling(config, topology)
    for stage in stages:
        yield f"evaluate {stage}", lambda stage=stage: heldout(config, stage, topology.devices)


# ---- training, and its held-out batches


def training(config: ConfigDict, stage: str, devices: Sequence[jax.Device]) -> Program:
    """One update of a stage.

    Raises:
      UserError: mesh or batch do not fit the devices.
    """
    section, learner = config.training[stage].to_dict(), LEARNERS[stage](config)
    mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
    check_batch(section["batch_size"], section["accumulate"], mesh)
    state, _, frozen = arguments = training_arguments(config, stage, learner, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = compile_step(learner, frozen, section, places, mesh, config.seed).jitted
    return Program(
        f"train {stage}", step, arguments, kinds_of(*arguments), mesh, section["batch_size"], config[stage].dtype
    )


def heldout(config: ConfigDict, stage: str, devices: Sequence[jax.Device]) -> Program:
    """The loss of a batch of held-out examples, while the state that is trained lies beside.

    Raises:
      UserError: mesh or batch do not fit the devices.
    """
    section, learner = config.training[stage].to_dict(), LEARNERS[stage](config)
    mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
    check_batch(section["batch_size"], 1, mesh)
    arguments = training_arguments(config, stage, learner, mesh)
    # An argument that is kept, though it is not used, is one that the compiler finds room for.
    function = jax.jit(lambda state, batch, frozen: learner.heldout(state["ema"], batch, **frozen), keep_unused=True)
    return Program(
        f"evaluate {stage}", function, arguments, kinds_of(*arguments), mesh, section["batch_size"], config[stage].dtype
    )


def training_arguments(config: ConfigDict, stage: str, learner: Any, mesh: Mesh) -> tuple[Any, Any, Any]:
    """Shapes and places of the state that the loop trains, a batch, and what is frozen."""
    section = config.training[stage].to_dict()
    shapes = jax.eval_shape(make_init(learner, section), jax.random.key(0))
    state = placed(shapes, state_shardings(learner, section, shapes, mesh))
    batch = batch_of(config, stage, section["batch_size"], sharding.batch_sharding(mesh))
    return state, batch, everywhere(learner.frozen, sharding.replicated(mesh))


def kinds_of(state: Any, batch: Any, frozen: Any) -> dict[str, Any]:
    """What the arguments of training are, in words of the table."""
    names = {"params": "parameters", "ema": "average"}
    return {names.get(name, name): tree for name, tree in state.items()} | {"batch": batch, "frozen": frozen}


LEARNERS: dict[str, Callable[[ConfigDict], Any]] = {
    "tokenizer": tokenizer_learner,
    "generator": lambda config: generator_learner(config, feed_by(config, describe_tokenizer(config).shapes)),
}


def batch_of(config: ConfigDict, stage: str, count: int, place: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of images, or of tokens."""
    side, spec = config.data.resolution, token_spec(describe_tokenizer(config))
    label: dict[str, Any] = {"label": ((), jnp.int32)}
    examples: dict[str, dict[str, Any]] = {
        "tokenizer": {"image": ((side, side, config.data.channels), jnp.float32)},
        "generator": {"ids": ((spec.positions, len(spec.sizes)), jnp.int32)},
    }
    return {
        name: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=place)
        for name, (shape, dtype) in (examples[stage] | label).items()
    }


# ---- sampling: every host works for itself


def sampling(config: ConfigDict, topology: Topology) -> Program:
    """From labels to pixels, `sample.batch_size` images a host, on its own chips; the parameters lie whole on each.

    Raises:
      UserError: the sampler drafts by a model of which nothing is known here, or is for no such model.
    """
    mesh = sharding.make_mesh({**dict.fromkeys(sharding.MESH_AXES, 1), "data": -1}, topology.host().devices)
    images = config.sample.batch_size + -config.sample.batch_size % mesh.size
    tokenizer = describe_tokenizer(config)
    spec = token_spec(tokenizer)
    generator = describe_generator(config, spec, scan_layers=False)
    model = generator.merge(generator.shapes)
    section = as_on(topology.backend, config, model, images)
    asked = asks(section, spec)
    if "draft" in asked:
        raise UserError(
            f"sampler {section['name']!r} drafts with a generator of another workdir, which is not compiled here."
        )
    forecast = describe_forecast(config, spec) if "forecast" in asked else None
    whole, split, codes = sharding.replicated(mesh), sharding.batch_sharding(mesh), spec.sizes[0]

    def aids(params: Any, frequencies: jax.Array | None, decoder: Any) -> Aids:
        return Aids(
            frequencies=frequencies,
            pairs=params.get("pairs"),
            codebook=decoder.quantizer.lookup(jnp.arange(codes)[:, None]) if "codebook" in asked else None,
            forecast=forecast and forecast.merge(params["forecast"]),
        )

    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    pairs = jax.eval_shape(lambda: Pairs(*(jnp.zeros((codes, codes)) for _ in Pairs._fields)))
    aid_params = ({"pairs": pairs} if "pairs" in asked else {}) | ({"forecast": forecast.shapes} if forecast else {})
    shapes = jax.eval_shape(
        lambda params: sampling_params(params, config.generator.depth),
        describe_generator(config, spec, scan_layers=True).shapes,
    )
    rows = (
        array(images, dtype=jnp.int32), array(images, dtype=jnp.int32),
        array(images, spec.positions, codes) if "frequencies" in asked else None,
    )  # fmt: skip
    params = everywhere((shapes, tokenizer.shapes), whole)
    sample = build_sampler(section, config.seed, model)
    # The encoder is not used, but it is loaded.
    function = jax.jit(sampling_program(config, tokenizer, generator, sample, aids), keep_unused=True)
    arguments = (params, everywhere(aid_params, whole), *everywhere(rows, split))
    kinds = {"parameters": params, "aids": arguments[1], "batch": arguments[2:]}
    calls = 1 if section["name"] == "sequential" else -(-spec.positions // section["window"])
    hosts = len(topology.devices) // mesh.size
    return Program("sample", function, arguments, kinds, mesh, images, config.generator.dtype, calls, hosts)


def as_on(backend: str, config: ConfigDict, model: Generator, images: int) -> dict[str, Any]:
    """The config's section `sampler` with the window that it would have on a host of this backend, a key of `ROWS`."""
    section, most = config.sampler.to_dict(), min(WINDOW, model.spec.positions)
    if section["window"] or section["name"] != "fixed_noise":
        return section | {"window": section["window"] or most}
    settings = dataclasses.replace(sampler_settings(section, config.seed), window=most)
    window = fast_window(settings, model, images, backend)
    return section | ({"name": "sequential"} if window < 2 else {"window": window})


def placed(shapes: Any, places: Any) -> Any:
    """Shapes with shardings."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )


def everywhere(shapes: Any, place: NamedSharding) -> Any:
    """Shapes with the same sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)
