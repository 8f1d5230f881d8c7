"""Samplers by name; a new one is a file here and a line in this table.

All but the lossy ones, `gsd`, `lantern` and `zipar`, draw from the model's own distribution. `sequential` and `fixed_noise`
draw the same tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from generator.sampling.distribution import Filters
from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.fixed_noise import FIXED_NOISE
from generator.sampling.gsd import gsd
from generator.sampling.guidance import guidance_scales
from generator.sampling.interface import Model, SampleOutput
from generator.sampling.jacobi import FRESH, GUMBEL, MAXIMAL
from generator.sampling.lantern import lantern
from generator.sampling.sequential import sequential
from generator.sampling.speculative import Method, refuse, speculative
from generator.sampling.zipar import refuse as refuse_zipar
from generator.sampling.zipar import zipar
from models.errors import unknown
from models.registry import build

Sampler = Callable[..., SampleOutput]  # (generator, condition, images, feed, *, revise, frequencies, codebook)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The fields of a config's section `sampler`, and the run's seed."""

    seed: int
    temperature: float
    top_k: int
    top_p: float
    guidance_scale: float
    guidance_schedule: str
    guidance_interval: Sequence[float]
    top_k_entropy: float = 0.0
    min_p: float = 0.0
    guidance_power: float = 1.0
    smooth: bool = False
    window: int = 16
    first_drafts: str = "uniform"
    relax: float = 0.15
    near: float = 0.06

    def of(self, model: Model) -> dict[str, Any]:
        """What all samplers take."""
        return {
            "seed": self.seed,
            "filters": Filters(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Filters)}),
            "scales": self.scales(len(model.layout.groups)),
        }

    def scales(self, times: int) -> Float[np.ndarray, "S"]:
        """Guidance at every time of a layout."""
        low, high = self.guidance_interval
        return guidance_scales(times, scale=self.guidance_scale, schedule=self.guidance_schedule, interval=(low, high),
                               power=self.guidance_power)  # fmt: skip


def one_by_one(settings: Settings, model: Model) -> Sampler:
    """`sequential`."""

    def sample(model: Model, condition: Any, images: Any, feed: Any, *, revise: Any = None, **unasked: Any) -> Any:
        return sequential(model, condition, images, feed, smooth=settings.smooth, revise=revise, **settings.of(model))

    return sample


def by_rows(settings: Settings, model: Model) -> Sampler:
    """`zipar`, which is lossy."""
    refuse_zipar(model, settings.window)

    def sample(model: Model, condition: Any, images: Any, feed: Any, *, revise: Any = None, **unasked: Any) -> Any:
        return zipar(model, condition, images, window=settings.window, revise=revise, **settings.of(model))

    return sample


def by_windows(method: Method) -> Callable[[Settings, Model], Sampler]:
    """`speculative` by a method."""
    return by_codes(lambda settings, codebook: method)


def by_relaxed(method: Callable[..., Method]) -> Callable[[Settings, Model], Sampler]:
    """`speculative` by a lossy method of the tokenizer's codes."""
    return by_codes(lambda settings, codebook: method(codebook, relax=settings.relax, near=settings.near))


def by_codes(method: Callable[[Settings, Any], Method]) -> Callable[[Settings, Model], Sampler]:
    """`speculative` by a method that is made of settings and codes."""

    def sampler(settings: Settings, model: Model) -> Sampler:
        refuse(model, settings.window)
        if settings.first_drafts not in FIRST_DRAFTS:
            raise unknown("first drafts", settings.first_drafts, FIRST_DRAFTS)
        propose = FIRST_DRAFTS[settings.first_drafts]

        def sample(
            model: Model, condition: Any, images: Any, feed: Any, *, codebook: Any = None, **options: Any
        ) -> Any:
            return speculative(model, condition, images, method=method(settings, codebook), propose=propose,
                               window=settings.window, **settings.of(model), **options)  # fmt: skip

        return sample

    return sampler


SAMPLERS: dict[str, Callable[[Settings, Model], Sampler]] = {
    "sequential": one_by_one,
    "fixed_noise": by_windows(FIXED_NOISE),
    "jacobi": by_windows(FRESH),
    "coupled_gumbel": by_windows(GUMBEL),
    "coupled_maximal": by_windows(MAXIMAL),
    "gsd": by_relaxed(gsd),
    "lantern": by_relaxed(lantern),
    "zipar": by_rows,
}


def build_sampler(section: Mapping[str, Any], seed: int, model: Model) -> Sampler:
    """The sampler of a config section for a model, whose parameters may be mere shapes.

    Raises:
      UserError: there is no such sampler, or it is not for this model.
    """
    settings = build("sampler", dict.fromkeys(SAMPLERS, Settings), section, seed=seed)
    return SAMPLERS[section["name"]](settings, model)


def asks_frequencies(section: Mapping[str, Any]) -> bool:
    """Whether the sampler of a config section drafts from `frequencies`."""
    return section["name"] not in ("sequential", "zipar") and section["first_drafts"] == "frequency"


def asks_codebook(section: Mapping[str, Any]) -> bool:
    """Whether the sampler of a config section compares codes of the tokenizer (`codebook`)."""
    return section["name"] in ("gsd", "lantern")
