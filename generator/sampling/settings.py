"""What a config says of its sampler: the fields of section `sampler`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from generator.sampling.calls import Caller
from generator.sampling.distribution import Filters
from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.guidance import guidance_scales
from generator.sampling.interface import Aids, Model
from generator.sampling.speculative import FirstDrafts
from generator.sampling.templates import Template, likely
from models.errors import unknown


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
    window: int = 0
    first_drafts: str = "uniform"
    relax: float = 0.15
    near: float = 0.06
    rule: str = "fixed_noise"
    branches: Sequence[float] = (0.8, 0.1, 0.05, 0.03)
    chains: int = 1
    draft: str = ""  # which the job knows, and gives as an aid

    def __post_init__(self):
        if self.first_drafts not in FIRST_DRAFTS:
            raise unknown("first drafts", self.first_drafts, FIRST_DRAFTS)

    def drafts(self, aids: Aids) -> Callable[[Caller], FirstDrafts]:
        """How positions that no call has seen are drafted."""
        return lambda ask: FIRST_DRAFTS[self.first_drafts].of(aids, ask)

    @property
    def template(self) -> Template:
        """Of trees whose shape is known beforehand."""
        return likely(self.window, tuple(self.branches))

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
