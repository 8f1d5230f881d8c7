"""Whose public checkpoints are read and written."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from generator.generator import describe_generator
from interop import llamagen, var
from interop.names import Buffer, Entry, State, nested, to_ours, to_theirs
from models.errors import UserError
from models.modules import Description, Params
from tokenizer.tokenizer import describe_tokenizer, token_spec

Fields = dict[str, Any]  # config fields by dotted names, as "generator.width"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A source's tokenizer, or its generator.

    Attributes:
      prefixes: of tensors' names that no other kind has.
      fixed: config fields that its files do not say, as all are alike.
      fields: (state, fields that are known already) -> the config fields that it shows or its source fixes.
      entries: config -> name table.
      buffers: config -> what is there besides.
      describe: config -> our model.
    """

    prefixes: tuple[str, ...]
    fixed: Mapping[str, Any]
    fields: Callable[[State, Mapping[str, Any]], Fields]
    entries: Callable[[ConfigDict], Sequence[Entry]]
    buffers: Callable[[ConfigDict], Sequence[Buffer]]
    describe: Callable[[ConfigDict], Description[Any]]

    def recognises(self, state: Mapping[str, np.ndarray]) -> bool:
        """Whether tensors are a model of this kind, by their names."""
        return any(name.startswith(self.prefixes) for name in state)

    def config(self, state: State, overrides: Mapping[str, Any]) -> Fields:
        """The fields of our config that its tensors show or its source fixes.

        Args:
          state: their tensors.
          overrides: fields that the shapes do not show and that are known otherwise, as "generator.heads".
        """
        return self.fields(state, overrides)

    def params(self, state: State, config: ConfigDict) -> Params:
        """Our parameters, numpy float32, layers stacked; UserError as `interop.names.to_ours`."""
        return to_ours(state, self.entries(config), self.describe(config).shapes, self.buffers(config))

    def state(self, params: Params, config: ConfigDict) -> State:
        """Their tensors, of our parameters; UserError as `interop.names.to_theirs`."""
        return to_theirs(params, self.entries(config), self.buffers(config))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where checkpoints come from.

    Attributes:
      title: for messages.
      kinds: "tokenizer" and "generator".
      defaults: config fields of its released models, for what a single file does not show.
      containers: where in a file its state dict may lie, in the order in which they are tried.
      container: where it is written.
    """

    title: str
    kinds: Mapping[str, Kind]
    defaults: Mapping[str, Any]
    containers: tuple[tuple[str, ...], ...]
    container: tuple[str, ...]

    def kind_of(self, state: Mapping[str, np.ndarray]) -> str | None:
        """Which of its kinds tensors are; None for those of no kind."""
        return next((name for name, kind in self.kinds.items() if kind.recognises(state)), None)

    def configure(self, config: ConfigDict, states: Mapping[str, State], overrides: Mapping[str, Any]) -> ConfigDict:
        """Complete a config in place for models of this source: its defaults, what the tensors show, overrides.

        Args:
          config: of `configs.base`, or of an experiment, which then stands for the defaults.
          states: tensors by kind, of one or both.
          overrides: win over all else, and help where the shapes do not show a field.

        Raises:
          UserError: tensors from which sizes are read are missing or make no sense; the two are of no pair.
        """
        # The generator first: it knows the scales, which a tokenizer's tensors do not show.
        shown: dict[str, Fields] = {"generator": {}, "tokenizer": {}}
        for name, found in shown.items():
            if name in states:
                try:
                    found |= self.kinds[name].config(states[name], {**shown["generator"], **overrides})
                except UserError as error:
                    raise UserError(f"the file of the {name}: {error}") from None
        agree(shown["generator"], shown["tokenizer"])
        defaults = {} if config.experiment else self.defaults
        return apply(config, {**defaults, **shown["generator"], **shown["tokenizer"], **overrides})


SECTIONS = ("tokenizer.quantizer", "generator.condition")  # that have other fields under another name


def agree(generator: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """Refuse fields that a generator shows otherwise than its tokenizer."""
    for field in generator.keys() & tokenizer.keys():
        if generator[field] != tokenizer[field]:
            raise UserError(f"the generator is made for {field}={generator[field]!r}, and the tokenizer has "
                            f"{tokenizer[field]!r}; take two of one pair.")  # fmt: skip


def apply(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Set fields in place; a section that gets another name loses those of its old one."""
    for section in SECTIONS:
        parent, own = section.split(".")
        given = nested({name.removeprefix(f"{section}.").replace(".", "/"): value for name, value in fields.items()
                        if name.startswith(f"{section}.")})  # fmt: skip
        if given.get("name", config[parent][own].name) != config[parent][own].name:
            config[parent][own] = ConfigDict(given)
    config.update_from_flattened_dict(fields)
    return config


def generator_of(config: ConfigDict) -> Description[Any]:
    """The config's generator, layers stacked."""
    return describe_generator(config, token_spec(describe_tokenizer(config)), scan_layers=True)


def source(title: str, names: Any) -> Source:
    """The `Source` whose tables a module holds."""
    return Source(
        title=title,
        kinds={
            "tokenizer": Kind(names.TOKENIZER_PREFIXES, names.TOKENIZER, names.tokenizer_fields, names.tokenizer_entries,
                              names.tokenizer_buffers, describe_tokenizer),
            "generator": Kind(names.GENERATOR_PREFIXES, names.GENERATOR, names.generator_fields, names.generator_entries,
                              names.generator_buffers, generator_of),
        },
        defaults=names.DEFAULTS, containers=names.CONTAINERS, container=names.CONTAINER,
    )  # fmt: skip


SOURCES = {"llamagen": source("LlamaGen", llamagen), "var": source("VAR", var)}
