"""LlamaGen's generators in reference outputs: of classes, and of captions with their masks."""

import functools
import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generator.conditioning import Captions, left_padded
from generator.generator import Condition
from jobs.feeds import TokenFeed
from jobs.parity.generators import ANY_TOKENIZER, GeneratorSubject
from jobs.parity.subjects import renamed
from models import masks
from models.errors import UserError
from models.modules import Params, parameter_count
from models.rotary import rotary_table


class LlamaGenGenerator(GeneratorSubject):
    """Next-token prediction, of classes or captions."""

    source = "llamagen"

    def overrides(self) -> dict[str, Any]:
        """Heads and grid."""
        tokens = int(self.entry.field("block_size"))
        side = math.isqrt(tokens)
        if side**2 != tokens:
            raise UserError(f"the model {self.entry.name!r} has a block_size of {tokens}, which is no square.")
        return {**ANY_TOKENIZER, "data.resolution": side, **renamed(self.entry.config, {"n_head": "generator.heads"})}

    @property
    def text(self) -> bool:
        """Whether it is asked for captions."""
        return self.entry.field("model_type") == "t2i"

    def count(self, params: Params) -> int:
        """Without the features of no caption, which are a buffer in the original."""
        return parameter_count(params) - (params["condition"]["none"].size if self.text else 0)

    @functools.cached_property
    def captions(self) -> Captions:
        """The reference's, padded at the left."""
        return left_padded(self.given("caption_embs"), self.given("emb_masks").astype(np.int32))

    def condition(self, variant: str) -> Condition:
        """Classes, or captions."""
        if not self.text:
            return jnp.asarray(self.given("class_ids"), jnp.int32)
        features, present = (jnp.asarray(x) for x in self.captions)
        return Captions(features, jnp.ones_like(present) if variant == "_nomask" else present)

    @functools.cached_property
    def ids(self) -> Int[Array, "B N 1"]:
        """The reference's."""
        return jnp.asarray(self.given("tokens"), jnp.int32)[..., None]

    @property
    def decoder(self) -> Params:
        """Of none: tokens feed the generator."""
        return {}

    def feed(self, decoder: Params) -> Any:
        """The tokens themselves."""
        return TokenFeed()

    def scales(self, times: int, greedy: re.Match[str]) -> Float[np.ndarray, "S"]:
        """The scale for all tokens, or for the first one and the steps up to number `interval`, from 0; below 1 is off."""
        found = np.full(times, max(float(greedy["scale"]), 1.0), np.float32)
        interval = int(greedy["interval"] or -1)
        if interval >= 0:
            found[interval + 2 :] = 1
        return found

    def rotary(self, name: re.Match[str]) -> Float[Array, "S d2 2"]:
        """The rotary table of all slots, and of the last token, which feeds none of ours."""
        generator = self.bound
        side = math.isqrt(self.spec.positions)
        places = np.concatenate([self.layout.position, [[side - 1, side - 1]]])
        return jnp.moveaxis(rotary_table(places, generator.head_dim, generator.nowhere), -2, -1)

    def embedded(self, name: re.Match[str]) -> Float[Array, "*B S D"]:
        """The slots that the captions feed, or those of no caption, which are the same for all."""
        condition = self.bound.condition
        found = {"caption": condition(self.condition("")), "uncond": condition(condition.null(self.condition("")))[0]}
        return found[name["which"]]

    def dense_mask(self, slots: int) -> np.ndarray:
        """Who sees whom, (B, slots, slots), of our intervals."""
        visibility = self.bound.condition.visibility(self.condition(""), masks.causal(slots))
        return np.asarray(visibility.as_array())

    def train_mask(self, name: re.Match[str]) -> np.ndarray:
        """Of the caption and all tokens."""
        return self.dense_mask(self.layout.slots + 1)[:, None]

    def generate_mask(self, name: re.Match[str]) -> np.ndarray:
        """The same of a cache whose length is a multiple of 8, for both halves of a guided batch."""
        mask = self.dense_mask(-(-(self.layout.slots + 1) // 8) * 8)
        return np.concatenate([mask, mask]) if float(name["scale"]) > 1 else mask
