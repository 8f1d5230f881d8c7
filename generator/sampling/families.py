"""Families of samplers: what a settings' section and a model make of a method."""

from collections.abc import Callable
from typing import Any, NamedTuple

from generator.sampling.interface import Aids, Model, SampleOutput
from generator.sampling.sequential import sequential
from generator.sampling.settings import Settings
from generator.sampling.speculative import Method, refuse, speculative
from generator.sampling.trees import Rule, by_trees
from generator.sampling.walks import RULES
from generator.sampling.zipar import refuse as refuse_zipar
from generator.sampling.zipar import zipar
from models.errors import UserError, unknown

Sampler = Callable[..., SampleOutput]  # (model, condition, images, feed, *, aids, revise)
NO_AIDS = Aids()


class Entry(NamedTuple):
    """A sampler: how it is made, which aids it asks for, and whether it drafts by `first_drafts` and judges by `rule`."""

    build: Callable[[Settings, Model], Sampler]
    asks: frozenset[str] = frozenset()
    drafts_first: bool = False
    by_rule: bool = False


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


def windows(method: Callable[[Settings, Aids], Method], *asks: str) -> Entry:
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

    return Entry(sampler, frozenset(asks), drafts_first=True)


def trees(
    of: Callable[[Settings, Aids, Rule], Any],
    *asks: str,
    refuse_settings: Callable[[Settings, Model], None] = lambda settings, model: None,
    independent: bool = False,
    drafts_first: bool = False,
) -> Entry:
    """`by_trees` of a way to draft them.

    Args:
      of: (settings, aids, rule) -> what makes its drafter, of how the model is asked.
      asks: names of aids.
      refuse_settings: raises UserError for settings, or a model, that it is not for.
      independent: whether it draws siblings independently of each other where a rule wants that.
      drafts_first: whether it drafts by `first_drafts`.
    """

    def sampler(settings: Settings, model: Model) -> Sampler:
        refuse(model, settings.window)
        if settings.rule not in RULES:
            raise unknown("rule", settings.rule, RULES)
        rule = RULES[settings.rule]
        if rule.independent and not independent:
            raise UserError(
                f"sampler.rule={settings.rule} judges siblings that are drawn independently of each other, as those of "
                "sampler.name=draft_model are; take that, or sampler.rule=multi_round."
            )
        refuse_settings(settings, model)

        def sample(
            model: Model, condition: Any, images: Any, feed: Any, *, aids: Aids = NO_AIDS, revise: Any = None
        ) -> Any:
            return by_trees(
                model, condition, images, drafter=of(settings, aids, rule), rule=rule, revise=revise,
                **settings.of(model),
            )  # fmt: skip

        return sample

    return Entry(sampler, frozenset(asks), drafts_first, by_rule=True)
