"""Sample images from the checkpoints of a workdir: a PNG grid and an npz."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from evaluation.pictures import image_grid
from generator.generator import Generator, describe_generator, sampling_params
from generator.sampling.samplers import build_sampler
from jobs.aids import AidsOf
from jobs.conditions import asked_conditions, fingerprints
from jobs.edit import KEEP, Edit, blended, read_edit
from jobs.feeds import FEEDS
from jobs.workdir import NEWEST, load
from models import sharding
from models.files import write_json, write_npz
from models.modules import Description
from models.progress import Progress
from tokenizer.tokenizer import Tokenizer, describe_tokenizer, token_spec
from training.step import checksum, place_batch


@dataclasses.dataclass(frozen=True)
class Samples:
    """Generated images and how they came about.

    Attributes:
      images: uint8 (N, H, W, C).
      ids: int32 (N, T, K), their tokens.
      labels: int32 (N,), the classes asked for, or the numbers of the captions.
      calls: calls of the model an image.
      calls_of_each: int32 (N,), of every image.
      accepted: int32 (N, _), tokens that each of its calls drew, 0 where there was none; None where the sampler does not tell.
      images_per_second: of the median batch.
    """

    images: UInt8[np.ndarray, "N H W C"]
    ids: Int[np.ndarray, "N T K"]
    labels: Int[np.ndarray, "N"]
    calls: float
    calls_of_each: Int[np.ndarray, "N"]
    accepted: Int[np.ndarray, "N _"] | None
    images_per_second: float


def run(config: ConfigDict, workdir: Path) -> None:
    """W/samples/<sampler>-<step>.png and .npz (ADM's layout: `arr_0` images, `arr_1` labels)."""
    sampler = Sampler(config, workdir, edit=read_edit(config))
    stem = workdir / "samples" / f"{config.sampler.name}-{sampler.step}"
    settings = {"sampler": config.sampler.to_dict(), "sample": config.sample.to_dict(), "step": sampler.step,
                "files": fingerprints(config.sample)}  # fmt: skip
    settings["aids"] = sampler.aids.weights
    record = stem.with_suffix(".json")
    if record.exists() and json.loads(record.read_text())["settings"] == json.loads(json.dumps(settings)):
        print(f"sampled already: {stem}.png, {stem}.npz")
        return
    if jax.process_index():  # a few pictures: one process draws them
        return
    condition = asked_conditions(config)
    samples = sampler(condition, config.sample.batch_size)
    stem.parent.mkdir(exist_ok=True)
    image_grid(stem.with_suffix(".png"), samples.images, config.sample.columns)
    write_npz(stem.with_suffix(".npz"), arr_0=samples.images, arr_1=samples.labels)
    measured = {"images_per_second": samples.images_per_second, "calls_per_image": samples.calls}
    write_json(record, {"settings": settings, **measured})
    print(
        f"{len(samples.images)} images, {samples.images_per_second:.1f} images/s, {samples.calls:.4g} calls of the model an "
        f"image, {samples.ids.shape[1] / samples.calls:.3g} tokens a call"
    )
    print(f"{stem}.png, {stem}.npz")


class Sampler:
    """The sampler of a workdir's config over its newest checkpoints: conditions -> `Samples`.

    From conditions and indices to pixels a batch is one compiled program. Image i depends on (seed, i) alone, so the batch size
    and the number of devices do not change it; the last batch is filled up rather than compiled for its own size.
    """

    def __init__(self, config: ConfigDict, workdir: Path, step: int = NEWEST, *, edit: Edit | None = None):
        tokenizer = describe_tokenizer(config)
        spec = token_spec(tokenizer)
        stacked = describe_generator(config, spec, scan_layers=True)
        generator = describe_generator(config, spec, scan_layers=False)
        sample = build_sampler(config.sampler.to_dict(), config.seed, generator.merge(generator.shapes))
        params, self.step = load("generator", stacked, config, workdir, step)
        # Taken apart here, once: a slice of stacked layers in the loop would be copied at every token.
        decoder, _ = load("tokenizer", tokenizer, config, workdir)
        self.params = sampling_params(params, config.generator.depth), decoder
        self.weights = {"generator": checksum(params), "tokenizer": checksum(decoder)}
        self.mesh = sharding.local_mesh()
        self.aids = AidsOf(config, workdir, spec, self.weights["tokenizer"])

        self.program = jax.jit(sampling_program(config, tokenizer, generator, sample, self.aids, edit))
        self.compiled: dict[int, Any] = {}  # by images a program

    def __call__(self, condition: Any, batch_size: int) -> Samples:
        """Images 0 to N - 1 of the run, of N conditions: labels int32 (N,), or `Captions`."""
        count = len(jax.tree.leaves(condition)[0])
        size = min(batch_size, count)
        progress = Progress("sample", count)
        batches = []
        for start in range(0, count, size):
            batches.append(self.batch(condition, start, size))
            progress.update(min(start + size, count))
        progress.close()
        speed = images_per_second([batch.pop("seconds_per_image") for batch in batches])
        found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        labels = condition if isinstance(condition, np.ndarray) else np.arange(count, dtype=np.int32)
        return Samples(
            images=found["images"], ids=found["ids"], labels=labels, calls=float(found["calls"].mean()),
            calls_of_each=found["calls"], accepted=found.get("accepted"), images_per_second=speed,
        )  # fmt: skip

    def batch(self, condition: Any, start: int, size: int) -> dict[str, np.ndarray]:
        """Images `start` to `start + size` - 1 of the run, fewer at its end, by one program of `size` images.

        Returns:
          images uint8 (n, H, W, C), ids int32 (n, N, K), calls int32 (n,), seconds_per_image float64 (), compilation
          not counted; `accepted` int32 (n, C) where the sampler tells.
        """
        count = len(jax.tree.leaves(condition)[0])
        whole = size + -size % self.mesh.size  # so that each device has its share
        indices = np.arange(start, start + whole, dtype=np.int32)
        rows = jax.tree.map(lambda leaf: np.take(leaf, indices, axis=0, mode="clip"), condition)
        batch = place_batch((rows, indices, self.aids.of_rows(rows)), self.mesh)
        arguments = (self.params, self.aids.params, *batch)
        if whole not in self.compiled:
            with jax.set_mesh(self.mesh):  # kernels ask it who has which rows
                self.compiled[whole] = self.program.lower(*arguments).compile()
        began = time.monotonic()
        found = jax.device_get(self.compiled[whole](*arguments))
        kept = min(size, count - start)
        arrays = {name: array[:kept] for name, array in found.items()}
        return {**arrays, "seconds_per_image": np.float64((time.monotonic() - began) / size)}


def sampling_program(
    config: ConfigDict, tokenizer: Description[Tokenizer], generator: Description[Generator], sample: Any, aids: Any,
    edit: Edit | None = None,
) -> Callable[..., dict[str, jax.Array]]:  # fmt: skip
    """(parameters of both, of the aids, condition, indices, frequencies) -> images and how they came about, to be jitted.

    Args:
      config: of the run.
      tokenizer: which decodes.
      generator: with its layers apart.
      sample: from `build_sampler`.
      aids: (parameters, frequencies, tokenizer) -> `Aids`.
      edit: what is painted anew.
    """

    def program(
        params: Any, aid_params: Any, condition: Any, indices: jax.Array, frequencies: jax.Array | None
    ) -> dict[str, jax.Array]:
        model, decoder = generator.merge(params[0]), tokenizer.merge(params[1])
        feed = model.layout.feed
        revise = KEEP[feed](edit, decoder) if edit else None
        drafting = aids(aid_params, frequencies, decoder)
        output = sample(model, condition, indices, FEEDS[feed](decoder), aids=drafting, revise=revise)
        # Mixed codes are those of no tokens.
        images = decoder.images(output.state) if config.sampler.smooth else decoder.decode(output.tokens)
        images = blended(edit, decoder, images) if edit else images
        found = {"images": to_uint8(images), "ids": output.tokens.ids, "calls": output.calls}
        return found if output.accepted is None else found | {"accepted": output.accepted}

    return program


def images_per_second(seconds_per_image: Any) -> float:
    """Of the median batch."""
    return float(1 / np.median(np.asarray(seconds_per_image)))


def to_uint8(images: Float[Array, "B H W C"]) -> UInt8[Array, "B H W C"]:
    """[-1, 1] to 0 ... 255, to the nearest."""
    return jnp.round(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)
