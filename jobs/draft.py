"""The smaller generator that samplers draft with: another workdir's, of the same tokenizer."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from generator.generator import Generator, describe_generator, sampling_params
from jobs.conditions import condition_of
from jobs.workdir import load, read_config
from models.errors import UserError
from models.modules import Description, Params
from models.tokens import TokenSpec
from tokenizer.tokenizer import describe_tokenizer, token_spec
from training.step import checksum


def open_draft(config: ConfigDict, spec: TokenSpec, tokenizer: str) -> tuple[Description[Generator], Params, str]:
    """The newest generator of the workdir that `sampler.draft` names, its parameters for sampling, and their checksum.

    Args:
      config: of the generator that it drafts for.
      spec: of that one's tokens.
      tokenizer: checksum of that one's tokenizer.

    Raises:
      UserError: no workdir is named, or its generator is asked for other things, or is of other tokens.
    """
    name = config.sampler.draft
    if not name:
        raise UserError(
            f"sampler.name={config.sampler.name} drafts with a smaller generator; name its workdir: sampler.draft=WORKDIR."
        )
    workdir = Path(name)
    other = read_config(workdir)
    description = describe_tokenizer(other)
    tokens = token_spec(description)
    stacked = describe_generator(other, tokens, scan_layers=True)
    generator = describe_generator(other, tokens, scan_layers=False)
    feed = generator.merge(generator.shapes).layout.feed
    if feed != "tokens":
        raise UserError(f"sampler.draft={name} is fed with {feed}; a draft model draws tokens one after the other.")
    if tokens != spec:
        raise UserError(f"sampler.draft={name} draws {said(tokens)}, not {said(spec)}; train it on the same tokens.")
    mine, its = asked_for(config), asked_for(other)
    if mine != its:
        raise UserError(f"sampler.draft={name} is asked for {its}, not {mine}; train it on the same data.")
    if checksum(load("tokenizer", description, other, workdir)[0]) != tokenizer:
        raise UserError(
            f"sampler.draft={name} is of another tokenizer, whose codes mean other things; train it in a copy of this "
            "workdir's tokenizer."
        )
    params, _ = load("generator", stacked, other, workdir)
    return generator, sampling_params(params, other.generator.depth), checksum(params)


def said(spec: TokenSpec) -> str:
    """Tokens in words."""
    return f"{spec.positions} tokens of {' x '.join(map(str, spec.sizes))} codes on {spec.shape}"


def asked_for(config: ConfigDict) -> dict[str, Any]:
    """What a generator can be asked for: a class of so many, or a caption."""
    condition = condition_of(config).to_dict()
    return condition | ({"classes": config.data.classes} if condition["name"] == "class" else {})
