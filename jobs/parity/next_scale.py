"""VAR's generators in reference outputs."""

import functools
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generator.generator import Condition
from generator.sampling.guidance import guidance_scales
from jobs.feeds import FEEDS
from jobs.parity.generators import ANY_TOKENIZER, GeneratorSubject
from jobs.parity.subjects import channels_first, renamed
from jobs.parity.tokenizers import VARTokenizer
from jobs.sample import to_uint8
from models.modules import Params


class VARGenerator(GeneratorSubject):
    """Next-scale prediction."""

    source = "var"
    tokenizer: VARTokenizer  # of the same folder

    def overrides(self) -> dict[str, Any]:
        """Heads and scales, which not every file shows."""
        scales = tuple(self.entry.field("patch_nums"))
        known = renamed(self.entry.config, {"num_heads": "generator.heads"})
        return {**ANY_TOKENIZER, "data.resolution": scales[-1], "tokenizer.quantizer.scales": scales, **known}

    def condition(self, variant: str) -> Condition:
        """Classes."""
        return jnp.asarray(self.given("labels"), jnp.int32)

    @functools.cached_property
    def ids(self) -> Int[Array, "B N 1"]:
        """Those of the tokenizer's images."""
        return jnp.asarray(self.tokenizer.outputs["indices"])[..., None]

    @property
    def decoder(self) -> Params:
        """Of the tokenizer."""
        return self.tokenizer.loaded.params

    def feed(self, decoder: Params) -> Any:
        """The codes of the scales before."""
        return FEEDS["features"](self.tokenizer.description.merge(decoder))

    def scales(self, times: int, greedy: re.Match[str]) -> Float[np.ndarray, "S"]:
        """VAR's t rises linearly to the run's; ours is 1 + t."""
        return guidance_scales(times, scale=1 + float(greedy["scale"]), schedule="linear", interval=(0.0, 1.0))

    def teacher(self, name: re.Match[str]) -> Array:
        """What feeds teacher forcing, or its tokens."""
        return self.inputs(self.ids) if name["which"] == "input" else self.ids[..., 0]

    def greedy_image(self, name: re.Match[str]) -> Array:
        """The picture of a greedy run."""
        image = self.tokenizer.decode(self.greedy_tokens(name))
        return to_uint8(image) if name["what"] == "image_u8" else channels_first((image + 1) / 2)
