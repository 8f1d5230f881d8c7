"""What reference outputs hold of generators: logits under teacher forcing, greedy tokens, the logits of every step."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generator.generator import Condition, Generator, Inputs, describe_generator, sampling_params
from generator.layouts import SequenceLayout
from generator.sampling.distribution import Filters, guided
from generator.sampling.sequential import sequential
from jobs.parity.comparison import Recomputed
from jobs.parity.replay import replay
from jobs.parity.subjects import Subject, remembered
from jobs.parity.tokenizers import margin
from models.modules import Description, Params
from models.tokens import TokenSpec
from tokenizer.tokenizer import describe_tokenizer, token_spec

GREEDY = Filters(temperature=0.0)
RUN = r"greedy_cfg(?P<scale>[\d.]+)(_interval(?P<interval>-?\d+))?(?P<variant>_nomask)?"  # name of a greedy run

# A generator knows of its tokenizer what its tokens look like: the smallest does, which has a token a pixel.
ANY_TOKENIZER = {"tokenizer.multipliers": (1,), "tokenizer.channels": 32, "tokenizer.blocks": 1}

# What a reference may hold of logits (B, N, V) in their place; positions are those of the tokens that are kept.
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "": lambda logits, positions: logits,
    "_at_positions": lambda logits, positions: logits[:, positions],
    "_logsumexp": lambda logits, positions: jax.nn.logsumexp(logits, axis=-1),
    "_argmax": lambda logits, positions: logits.argmax(axis=-1),
    "_argmax_gap": lambda logits, positions: margin(logits),
}


class GeneratorSubject(Subject):
    """A generator, and what it makes of the reference's tokens and conditions."""

    kind = "generator"

    # ---- what the two families do in their own ways

    def condition(self, variant: str) -> Condition:
        """What is asked for; `variant` is "", or "_nomask" where the padding of captions is seen."""
        raise NotImplementedError

    @functools.cached_property
    def ids(self) -> Int[Array, "B N 1"]:
        """The tokens of teacher forcing."""
        raise NotImplementedError

    def scales(self, times: int, greedy: re.Match[str]) -> Float[np.ndarray, "S"]:
        """Guidance at every time, of the name of a greedy run."""
        raise NotImplementedError

    @property
    def decoder(self) -> Params:
        """Parameters of the tokenizer whose codes feed the generator."""
        raise NotImplementedError

    def feed(self, decoder: Params) -> Any:
        """What feeds the layout's slots."""
        raise NotImplementedError

    # ---- the model

    @functools.cached_property
    def spec(self) -> TokenSpec:
        """Of its tokens."""
        return token_spec(describe_tokenizer(self.loaded.config))

    @functools.cached_property
    def stacked(self) -> Description[Generator]:
        """As it is trained."""
        return describe_generator(self.loaded.config, self.spec, scan_layers=True)

    @functools.cached_property
    def unstacked(self) -> Description[Generator]:
        """As it samples."""
        return describe_generator(self.loaded.config, self.spec, scan_layers=False)

    @functools.cached_property
    def layout(self) -> SequenceLayout:
        """What is predicted when."""
        return self.stacked.merge(self.stacked.shapes).layout

    @property
    def bound(self) -> Generator:
        """With its parameters, for what is too small to compile."""
        return self.stacked.merge(self.loaded.params)

    def sampling_params(self) -> Params:
        """Of `unstacked`."""
        return sampling_params(self.loaded.params, self.loaded.config.generator.depth)

    @functools.cached_property
    def inputs(self) -> Callable[..., Inputs]:
        """ids -> what feeds all slots under teacher forcing."""
        program = jax.jit(lambda decoder, ids: self.feed(decoder).whole(ids))
        return lambda ids: program(self.decoder, ids)

    # ---- teacher forcing

    @functools.cached_property
    def forward(self) -> Callable[..., Float[Array, "B N V"]]:
        """(inputs, condition) -> logits, all slots at once."""
        program = jax.jit(lambda params, *call: self.stacked.merge(params).logits(*call))
        return lambda *call: program(self.loaded.params, *call)

    @functools.cached_property
    def step_by_step(self) -> Callable[..., Float[Array, "B N V"]]:
        """(inputs, condition) -> logits, by `extend`, one call a time."""
        program = jax.jit(lambda params, *call: replay(self.unstacked.merge(params), *call))
        return lambda *call: program(self.sampling_params(), *call)

    @remembered
    def logits(self, variant: str) -> Float[Array, "B N V"]:
        """Of the reference's tokens; `variant` is "", "_null" or "_nomask"."""
        condition = self.condition(variant.replace("_null", ""))
        if "_null" in variant:
            condition = self.bound.condition.null(condition)
        return self.forward(self.inputs(self.ids), condition)

    def teacher_forced(self, name: re.Match[str]) -> Recomputed:
        """An array of teacher-forced logits, or of what is kept of them."""
        logits = self.logits(name["variant"] or "")
        reduced = REDUCTIONS[name["reduction"] or ""](logits, self.positions(name))
        return Recomputed({"": reduced}, margins=lambda: margin(logits))

    def positions(self, name: re.Match[str]) -> Int[np.ndarray, "n"] | None:
        """Tokens whose logits an array keeps; None for an array that keeps other things."""
        if name["reduction"] != "_at_positions":
            return None
        own = f"{name[0].removesuffix('_at_positions')}_positions"
        return self.given(own if self.has(own) else "positions")

    # ---- greedy decoding

    def greedy_key(self, name: re.Match[str]) -> tuple[str, bytes]:
        """What decides a greedy run: the condition's variant, and guidance at every time."""
        return name["variant"] or "", self.scales(len(self.layout.groups), name).tobytes()

    def greedy_tokens(self, name: re.Match[str]) -> Int[Array, "B N 1"]:
        """Of our sampler."""
        return self.sampled(*self.greedy_key(name))

    @remembered
    def sampled(self, variant: str, scales: bytes) -> Int[Array, "B N 1"]:
        """Tokens of a greedy run."""
        condition = self.condition(variant)

        def program(params: Params, decoder: Params, condition: Condition) -> jax.Array:
            images = jnp.arange(len(jax.tree.leaves(condition)[0]))
            output = sequential(self.unstacked.merge(params), condition, images, self.feed(decoder), seed=0, filters=GREEDY,
                                scales=np.frombuffer(scales, np.float32))  # fmt: skip
            return output.tokens.ids

        return jax.jit(program)(self.sampling_params(), self.decoder, condition)

    @remembered
    def step_logits(self, variant: str, scales: bytes) -> dict[str, Float[Array, "B N V"]]:
        """Guided logits of a greedy run's tokens, by each of the two ways to have them."""
        inputs, condition = self.inputs(self.sampled(variant, scales)), self.condition(variant)
        scale = np.frombuffer(scales, np.float32)[self.layout.time[self.layout.predicting]]

        def by(run: Callable[..., jax.Array]) -> jax.Array:
            conditional = run(inputs, condition)
            if (scale == 1).all():
                return conditional
            unconditional = run(inputs, self.bound.condition.null(condition))
            # Where guidance is off, the sampler does not look at what no condition gives.
            return jnp.where(scale[:, None] == 1, conditional, jax.jit(guided)(conditional, unconditional, scale))

        return {"teacher forcing": by(self.forward), "extend": by(self.step_by_step)}

    def greedy(self, name: re.Match[str]) -> Recomputed:
        """An array of a greedy run."""
        what, key = name["what"], self.greedy_key(name)
        logits = functools.partial(self.step_logits, *key)
        if what == "tokens":
            return Recomputed({"": self.greedy_tokens(name)[..., 0]}, margins=lambda: margin(logits()["extend"]))
        if what == "top2_gap":
            return Recomputed({way: margin(found) for way, found in logits().items()})
        reduce, positions = REDUCTIONS[name["reduction"] or ""], self.positions(name)
        return Recomputed({way: reduce(found, positions) for way, found in logits().items()})
