"""Samplers by name; a new one is a file here and a line in this table.

All but the lossy ones, `gsd`, `lantern` and `zipar`, draw from the model's own distribution. `sequential`, `fixed_noise` and
trees by the rule `fixed_noise` draw the same tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from generator.sampling.draft_model import of_chains, refuse_chains
from generator.sampling.dyspec import of_dyspec
from generator.sampling.families import NO_AIDS, Entry, Sampler, by_rows, one_by_one, trees, windows
from generator.sampling.first_drafts import FIRST_DRAFTS
from generator.sampling.fixed_noise import FIXED_NOISE
from generator.sampling.gsd import gsd
from generator.sampling.interface import Aids, Model
from generator.sampling.jacobi import FRESH, GUMBEL, MAXIMAL
from generator.sampling.lantern import lantern
from generator.sampling.recycling import of_recycling
from generator.sampling.settings import Settings
from generator.sampling.siblings import of_siblings, refuse_branches
from models.registry import build
from models.tokens import Grid, TokenSpec

WINDOW = 16  # drafts a call, where the config leaves it open
# Rows of a call that take a device little longer than one: until its arithmetic takes as long as reading the weights. From peak
# rates for bfloat16 (an H100's are 295, a TPU v5e's 240); on a CPU the two rows of guidance are as many already (measured).
ROWS = {"cpu": 2, "gpu": 256, "tpu": 256}

SAMPLERS: dict[str, Entry] = {
    "sequential": Entry(one_by_one),
    "fixed_noise": windows(lambda settings, aids: FIXED_NOISE),
    "jacobi": windows(lambda settings, aids: FRESH),
    "coupled_gumbel": windows(lambda settings, aids: GUMBEL),
    "coupled_maximal": windows(lambda settings, aids: MAXIMAL),
    "siblings": trees(of_siblings, refuse_settings=refuse_branches, drafts_first=True),
    "draft_model": trees(of_chains, "draft", refuse_settings=refuse_chains, independent=True),
    "dyspec": trees(of_dyspec, "draft"),
    "recycling": trees(of_recycling, refuse_settings=refuse_branches),
    # Lossy ones:
    "gsd": windows(lambda settings, aids: gsd(aids.codebook, relax=settings.relax, near=settings.near), "codebook"),
    "lantern": windows(
        lambda settings, aids: lantern(aids.codebook, relax=settings.relax, near=settings.near), "codebook"
    ),
    "zipar": Entry(by_rows),
}
LOSSY = frozenset({"gsd", "lantern", "zipar"})


def fast_window(settings: Settings, model: Model, images: int, backend: str) -> int:
    """As many drafts a call of `fixed_noise` as take a device little longer than one; below 2, one by one is as fast.

    Args:
      settings: whose window is the most.
      model: what is asked.
      images: that are drawn together.
      backend: of the devices, a key of `ROWS`.
    """
    if model.layout.feed != "tokens" or len(model.spec.sizes) > 1 or settings.smooth:
        return 1
    rows = images * (1 + bool((settings.scales(len(model.layout.groups)) != 1).any()))
    return min(ROWS[backend] // rows, settings.window)


def as_wide_as_is_fast(settings: Settings, model: Model) -> Sampler:
    """`fixed_noise` as wide as its batch leaves room for; where it leaves none `sequential`, whose tokens are the same."""
    plain = one_by_one(settings, model)

    def sample(
        model: Model, condition: Any, images: Any, feed: Any, *, aids: Aids = NO_AIDS, revise: Any = None
    ) -> Any:
        window = fast_window(settings, model, len(images), jax.default_backend())
        fits = dataclasses.replace(settings, window=window)
        sampler = plain if window < 2 else SAMPLERS["fixed_noise"].build(fits, model)
        return sampler(model, condition, images, feed, aids=aids, revise=revise)

    return sample


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
