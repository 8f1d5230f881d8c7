"""Quantizers by name; a new one is a file here and a line in this table."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from models.registry import build
from tokenizer.quantizers.multi_scale import MultiScaleQuantizer
from tokenizer.quantizers.vector import VectorQuantizer

QUANTIZERS = {"vector": VectorQuantizer, "multi_scale": MultiScaleQuantizer}


def build_quantizer(section: Mapping[str, Any], rngs: nnx.Rngs) -> Any:
    """The quantizer of a config section; a wrapper's field `inner` is the section of what it wraps."""
    fields: dict[str, Any] = {"rngs": rngs, **section}
    if "inner" in section:
        fields["inner"] = build_quantizer(section["inner"], rngs)
    return build("quantizer", QUANTIZERS, fields)
