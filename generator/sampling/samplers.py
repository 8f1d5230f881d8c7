"""Samplers by name; a new one is a file here and a line in this table.

All but the lossy ones, `gsd`, `lantern` and `zipar`, draw from the model's own distribution. `sequential`, `fixed_noise` and
trees by the rule `fixed_noise` draw the same tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from generator.sampling.calls import Caller
from generator.sampling.distribution import Filters
from generator.sampling.draft_model import Chains, length_of
from generator.sampling.dyspec import DySpec
from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.fixed_noise import FIXED_NOISE
from generator.sampling.gsd import gsd
from generator.sampling.guidance import guidance_scales
from generator.sampling.interface import Aids, Model, SampleOutput
from generator.sampling.jacobi import FRESH, GUMBEL, MAXIMAL
from generator.sampling.lantern import lantern
from generator.sampling.recycling import Recycling
from generator.sampling.sequential import sequential
from generator.sampling.siblings import Siblings
from generator.sampling.speculative import FirstDrafts, Method, refuse, speculative
from generator.sampling.templates import Template, likely
from generator.sampling.trees import Rule, by_trees
from generator.sampling.walks import RULES
from generator.sampling.zipar import refuse as refuse_zipar
from generator.sampling.zipar import zipar
from models.errors import UserError, unknown
from models.registry import build
from models.tokens import Grid, TokenSpec

Sampler = Callable[..., SampleOutput]  # (model, condition, images, feed, *, aids, revise)
NO_AIDS = Aids()
WINDOW = 16  # drafts a call, where the config leaves it open
# Rows of a call that take a device little longer than one: until its arithmetic takes as long as reading the weights. From peak
# rates for bfloat16 (an H100's are 295, a TPU v5e's 240); on a CPU the two rows of guidance are as many already (measured).
ROWS = {"cpu": 2, "gpu": 256, "tpu": 256}


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


def one_by_one(settings: Settings, model: Model) -> Sampler:
    """`sequential`."""

    def sample(
        model: Model, condition: Any, images: Any, feed: Any, *, aids: Aids = NO_AIDS, revise: Any = None
    ) -> Any:
        return sequential(model, condition, images, feed, smooth=settings.smooth, revise=revise, **settings.of(model))

    return sample


def by_rows(settings: Settings, model: Model) -> Sampler:
    """`zipar`, which is lossy."""
    refuse_zipar(model, settings.window)

    def sample(
        model: Model, condition: Any, images: Any, feed: Any, *, aids: Aids = NO_AIDS, revise: Any = None
    ) -> Any:
        return zipar(model, condition, images, window=settings.window, revise=revise, **settings.of(model))

    return sample


def by_windows(method: Callable[[Settings, Aids], Method]) -> Callable[[Settings, Model], Sampler]:
    """`speculative` by a method."""

    def sampler(settings: Settings, model: Model) -> Sampler:
        refuse(model, settings.window)

        def sample(
            model: Model, condition: Any, images: Any, feed: Any, *, aids: Aids = NO_AIDS, revise: Any = None
        ) -> Any:
            return speculative(
                model, condition, images, method=method(settings, aids), first_drafts=settings.drafts(aids),
                window=settings.window, revise=revise, **settings.of(model),
            )  # fmt: skip

        return sample

    return sampler


def as_wide_as_is_fast(settings: Settings, model: Model) -> Sampler:
    """`fixed_noise` as wide as its batch leaves room for; where it leaves none `sequential`, whose tokens are the same."""
    plain = one_by_one(settings, model)
    if model.layout.feed != "tokens" or len(model.spec.sizes) > 1 or settings.smooth:
        return plain

    def sample(
        model: Model, condition: Any, images: Any, feed: Any, *, aids: Aids = NO_AIDS, revise: Any = None
    ) -> Any:
        rows = len(images) * (1 + bool((settings.scales(len(model.layout.groups)) != 1).any()))
        window = min(ROWS[jax.default_backend()] // rows, settings.window)
        fits = dataclasses.replace(settings, window=window)
        sampler = plain if window < 2 else SAMPLERS["fixed_noise"].build(fits, model)
        return sampler(model, condition, images, feed, aids=aids, revise=revise)

    return sample


class Trees(NamedTuple):
    """A way to draft trees.

    Attributes:
      of: (settings, aids, rule) -> what makes its drafter, of how the model is asked.
      refuse: raises UserError for settings, or a model, that it is not for.
      independent: whether it draws siblings independently of each other where a rule wants that.
    """

    of: Callable[[Settings, Aids, Rule], Any]
    refuse: Callable[[Settings, Model], Any] = lambda settings, model: None
    independent: bool = False


def by_drafter(trees: Trees) -> Callable[[Settings, Model], Sampler]:
    """`by_trees` of a way to draft."""

    def sampler(settings: Settings, model: Model) -> Sampler:
        refuse(model, settings.window)
        if settings.rule not in RULES:
            raise unknown("rule", settings.rule, RULES)
        rule = RULES[settings.rule]
        if rule.independent and not trees.independent:
            raise UserError(
                f"sampler.rule={settings.rule} judges siblings that are drawn independently of each other, as those of "
                "sampler.name=draft_model are; take that, or sampler.rule=multi_round."
            )
        trees.refuse(settings, model)

        def sample(
            model: Model, condition: Any, images: Any, feed: Any, *, aids: Aids = NO_AIDS, revise: Any = None
        ) -> Any:
            return by_trees(
                model, condition, images, drafter=trees.of(settings, aids, rule), rule=rule, revise=revise,
                **settings.of(model),
            )  # fmt: skip

        return sample

    return sampler


def of_siblings(settings: Settings, aids: Aids, rule: Rule) -> Siblings:
    """Trees of sibling drafts, by `siblings`."""
    return Siblings(settings.template, settings.drafts(aids), rule.proposals)


def of_chains(settings: Settings, aids: Aids, rule: Rule) -> Chains:
    """Chains of a draft model, by `draft_model`."""
    length = length_of(settings.chains, settings.window, aids.draft.spec.sizes[0])
    return Chains(aids.draft, settings.chains, length, rule)


def of_dyspec(settings: Settings, aids: Aids, rule: Rule) -> DySpec:
    """Trees of a draft model, by `dyspec`."""
    return DySpec(aids.draft, settings.window, rule)


def of_recycling(settings: Settings, aids: Aids, rule: Rule) -> Recycling:
    """Trees of successors, by `recycling`."""
    return Recycling(settings.template, rule.proposals)


def refuse_branches(settings: Settings, model: Model) -> None:
    """Raise UserError for more siblings than there are codes."""
    if not 1 <= len(settings.branches) <= model.spec.sizes[0]:
        raise UserError(
            f"sampler.branches has {len(settings.branches)} shares, which is not within 1 and the {model.spec.sizes[0]} codes."
        )


def refuse_chains(settings: Settings, model: Model) -> None:
    """Raise UserError for chains that there is no room for."""
    length_of(settings.chains, settings.window, model.spec.sizes[0])


class Entry(NamedTuple):
    """A sampler: how it is made, which aids it asks for, and whether it drafts by `first_drafts` and judges by `rule`."""

    build: Callable[[Settings, Model], Sampler]
    asks: frozenset[str] = frozenset()
    drafts_first: bool = False
    by_rule: bool = False


def windows(method: Callable[[Settings, Aids], Method], *asks: str) -> Entry:
    """An entry of a window's method."""
    return Entry(by_windows(method), frozenset(asks), drafts_first=True)


def trees(way: Trees, *asks: str, drafts_first: bool = False) -> Entry:
    """An entry of a way to draft trees."""
    return Entry(by_drafter(way), frozenset(asks), drafts_first, by_rule=True)


SAMPLERS: dict[str, Entry] = {
    "sequential": Entry(one_by_one),
    "fixed_noise": windows(lambda settings, aids: FIXED_NOISE),
    "jacobi": windows(lambda settings, aids: FRESH),
    "coupled_gumbel": windows(lambda settings, aids: GUMBEL),
    "coupled_maximal": windows(lambda settings, aids: MAXIMAL),
    "siblings": trees(Trees(of_siblings, refuse_branches), drafts_first=True),
    "draft_model": trees(Trees(of_chains, refuse_chains, independent=True), "draft"),
    "dyspec": trees(Trees(of_dyspec), "draft"),
    "recycling": trees(Trees(of_recycling, refuse_branches)),
    # Lossy ones:
    "gsd": windows(lambda settings, aids: gsd(aids.codebook, relax=settings.relax, near=settings.near), "codebook"),
    "lantern": windows(
        lambda settings, aids: lantern(aids.codebook, relax=settings.relax, near=settings.near), "codebook"
    ),
    "zipar": Entry(by_rows),
}
LOSSY = frozenset({"gsd", "lantern", "zipar"})


def build_sampler(section: Mapping[str, Any], seed: int, model: Model) -> Sampler:
    """The sampler of a config section for a model, whose parameters may be mere shapes.

    Raises:
      UserError: there is no such sampler, or it is not for this model.
    """
    settings, name = sampler_settings(section, seed), section["name"]
    if settings.window:
        return SAMPLERS[name].build(settings, model)
    settings = dataclasses.replace(settings, window=min(WINDOW, model.spec.positions))
    return as_wide_as_is_fast(settings, model) if name == "fixed_noise" else SAMPLERS[name].build(settings, model)


def sampler_settings(section: Mapping[str, Any], seed: int) -> Settings:
    """Of a config section."""
    return build("sampler", dict.fromkeys(SAMPLERS, Settings), section, seed=seed)


def asks(section: Mapping[str, Any], spec: TokenSpec) -> frozenset[str]:
    """Which `Aids` the sampler of a config section asks for, to draw such tokens."""
    entry = SAMPLERS[section["name"]]
    never_wide = not isinstance(spec.shape, Grid) or ROWS[jax.default_backend()] < 4
    if section["name"] == "fixed_noise" and not section["window"] and never_wide:
        return frozenset()
    return entry.asks | (FIRST_DRAFTS[section["first_drafts"]].asks if entry.drafts_first else frozenset())
