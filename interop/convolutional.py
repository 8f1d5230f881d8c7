"""What LlamaGen's and VAR's tokenizers have in common: VQGAN's two networks (arXiv:2012.09841), each in names of its own."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from interop.names import CONVOLUTION, Entry, State, entry
from models.errors import UserError

MIDDLE = -1  # in the place of a level: what lies between the levels of the encoder and those of the decoder


class Layer(NamedTuple):
    """A layer of one of the networks.

    Attributes:
      side: "encoder" or "decoder".
      path: of its parameters among ours.
      what: "block", "attention", or "resample", which ends all levels but the last of a network.
      level: 0 at full resolution, or `MIDDLE`.
      number: from 0, among the layers of its kind in its level; in the middle, among all.
      widens: whether a block has a shortcut, as its inputs are not as wide as its outputs.
    """

    side: str
    path: str
    what: str
    level: int
    number: int
    widens: bool = False


Names = Callable[[Layer], str]
Attention = Callable[[str, str], list[Entry]]  # (our path, their name) -> entries


def layers(side: str, tokenizer: ConfigDict) -> Iterator[Layer]:
    """A network's layers in the order in which they run, which is that of our list of them."""
    multipliers, attention = tuple(tokenizer.multipliers), tokenizer.attention
    lowest, decodes = len(multipliers) - 1, side == "decoder"
    count, width = 0, multipliers[lowest] if decodes else 1

    def layer(what: str, level: int, number: int, widens: bool = False) -> Layer:
        nonlocal count
        count += 1
        return Layer(side, f"{side}/layers/{count - 1}", what, level, number, widens)

    def middle() -> Iterator[Layer]:
        # Numbered as if there were always attention.
        yield layer("block", MIDDLE, 0)
        if attention:
            yield layer("attention", MIDDLE, 1)
        yield layer("block", MIDDLE, 2)

    if decodes:
        yield from middle()
    for level in reversed(range(lowest + 1)) if decodes else range(lowest + 1):
        for number in range(tokenizer.blocks + decodes):
            yield layer("block", level, number, multipliers[level] != width)
            width = multipliers[level]
            if level == lowest and attention:
                yield layer("attention", level, number)
        if level != (0 if decodes else lowest):
            yield layer("resample", level, 0)
    if not decodes:
        yield from middle()


def entries(tokenizer: ConfigDict, name: Names, attention: Attention) -> list[Entry]:
    """The name table of both networks and of the convolutions between them and the codes.

    Args:
      tokenizer: config section.
      name: what the source calls a layer.
      attention: table of a layer of attention.
    """
    found: list[Entry] = []
    for side in ("encoder", "decoder"):
        found += convolution(f"{side}/first", f"{side}.conv_in")
        for layer in layers(side, tokenizer):
            theirs = name(layer)
            if layer.what == "block":
                found += block(layer.path, theirs, layer.widens)
            elif layer.what == "attention":
                found += [*norm(f"{layer.path}/norm", f"{theirs}.norm"), *attention(layer.path, theirs)]
                found += convolution(f"{layer.path}/out", f"{theirs}.proj_out")
            else:
                found += convolution(f"{layer.path}/conv", theirs)
        found += [*norm(f"{side}/norm", f"{side}.norm_out"), *convolution(f"{side}/last", f"{side}.conv_out")]
    return [*found, *convolution("to_codes", "quant_conv"), *convolution("from_codes", "post_quant_conv")]


def block(ours: str, theirs: str, widens: bool) -> list[Entry]:
    """A residual block."""
    both = [line for n in "12" for line in (*norm(f"{ours}/norm{n}", f"{theirs}.norm{n}"),
                                            *convolution(f"{ours}/conv{n}", f"{theirs}.conv{n}"))]  # fmt: skip
    return both + (convolution(f"{ours}/shortcut", f"{theirs}.nin_shortcut") if widens else [])


def norm(ours: str, theirs: str) -> list[Entry]:
    """A norm with scale and shift."""
    return [entry(f"{ours}/scale", f"{theirs}.weight"), entry(f"{ours}/bias", f"{theirs}.bias")]


def convolution(ours: str, theirs: str) -> list[Entry]:
    """A convolution with a bias."""
    return [entry(f"{ours}/kernel", f"{theirs}.weight", CONVOLUTION), entry(f"{ours}/bias", f"{theirs}.bias")]


def fields(state: State, level: str, block: str) -> dict[str, Any]:
    """The config fields that the tensors of both networks show.

    Args:
      state: their tensors.
      level: what the source calls a level of the encoder, with "{}" for its number.
      block: what it calls a residual block in there, likewise.
    """
    channels, image_channels, *_ = shape(state, "encoder.conv_in.weight", 4)
    levels = count(state, f"{level}.")
    first = [shape(state, f"{level.format(n)}.{block.format(0)}.conv1.weight", 4)[0] for n in range(levels)]
    if not levels or not channels or any(width % channels for width in first):
        raise UserError(
            f"the encoder's levels are {first} wide; they must be multiples of its first convolution's {channels}."
        )
    return {
        "data.channels": image_channels,
        "tokenizer.channels": channels,
        "tokenizer.multipliers": tuple(width // channels for width in first),
        "tokenizer.blocks": count(state, f"{level.format(0)}.{block}."),
        "tokenizer.latent_channels": shape(state, "encoder.conv_out.weight", 4)[0],
        "tokenizer.attention": any(name.startswith(f"{level.format(levels - 1)}.attn.") for name in state),
        "tokenizer.projection": shape(state, "quant_conv.weight", 4)[2],
    }


def shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor with so many axes; UserError where it is missing or has others."""
    if name not in state:
        raise UserError(f"the tensor {name} is missing, from which sizes are read; is the file whole?")
    if state[name].ndim != axes:
        raise UserError(f"the tensor {name} has shape {state[name].shape}; it should have {axes} axes.")
    return state[name].shape


def count(state: State, pattern: str) -> int:
    """One more than the largest number that stands at "{}" in the beginning of a name."""
    before, after = map(re.escape, pattern.split("{}"))
    expression = re.compile(rf"{before}(\d+){after}")
    return max((int(match[1]) + 1 for name in state if (match := expression.match(name))), default=0)
