"""LlamaGen's checkpoints (github.com/FoundationVision/LlamaGen; arXiv:2406.06525): their names, and what their shapes show."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from interop import convolutional
from interop.convolutional import MIDDLE, Layer, convolution, count, shape
from interop.names import LINEAR, LINEARS, Buffer, Entry, State, entry
from models.errors import UserError

# The state dict lies in one of these; the files of XXL and 3B are nothing else.
CONTAINERS = (("model",), ("module",), ("state_dict",), ("ema",), ())
CONTAINER = ("model",)

HEAD_WIDTHS = {3200: 100, 4096: 128}  # of the models 3B and 7B; of all others 64
GUIDANCE = {1280: 1.75, 1536: 1.75, 3200: 1.65}  # with the published FIDs of XL, XXL and 3B; of the others 2
CODEBOOK_USED = 65536  # entries of the list of the codes used last

# ---- what all of them have in common

TOKENIZER = {
    "tokenizer.encoder": "convolutional", "tokenizer.decoder": "convolutional", "tokenizer.groups": 32,
    "tokenizer.projection": 1, "tokenizer.quantizer.name": "vector", "tokenizer.quantizer.l2_norm": True,
}  # fmt: skip
GENERATOR = {
    "generator.layout": "raster", "generator.head": "categorical", "generator.activation": "swiglu",
    "generator.norm": "rms", "generator.qk_norm": "none", "generator.attention_scale": 1.0, "generator.bias": False,
    "generator.position": "rotary", "generator.rotate_condition": False,
}  # fmt: skip

DEFAULTS = {
    "data.name": "folder", "data.path": "data/imagenet", "data.resolution": 256, "data.channels": 3, "data.classes": 1000,
    "data.crop_scale": (0.8, 1.0), "data.flip": True, **TOKENIZER, **GENERATOR,
    "sample.count": 16, "sample.batch_size": 16, "sample.columns": 8, "evaluation.batch_size": 64,
    "evaluation.training_images": 0,
}  # fmt: skip

# ---- tokenizer: VQ-8, VQ-16

TOKENIZER_PREFIXES = ("encoder.conv_blocks.", "decoder.conv_blocks.")


def tokenizer_fields(state: State, known: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields of a tokenizer; the size of its images shows nowhere."""
    codes, width = shape(state, "quantize.embedding.weight", 2)
    return {
        **TOKENIZER, **convolutional.fields(state, "encoder.conv_blocks.{}", "res.{}"),
        "tokenizer.quantizer.codes": codes, "tokenizer.quantizer.width": width,
    }  # fmt: skip


def tokenizer_entries(config: ConfigDict) -> list[Entry]:
    """The name table of a tokenizer."""
    levels = len(config.tokenizer.multipliers)

    def name(layer: Layer) -> str:
        # The decoder's levels are numbered in the order in which they run: 0 is the lowest resolution.
        level = layer.level if layer.side == "encoder" else levels - 1 - layer.level
        if layer.level == MIDDLE:
            return f"{layer.side}.mid.{layer.number}"
        last = {
            "block": f"res.{layer.number}", "attention": f"attn.{layer.number}",
            "resample": "downsample.conv" if layer.side == "encoder" else "upsample.conv",
        }  # fmt: skip
        return f"{layer.side}.conv_blocks.{level}.{last[layer.what]}"

    def attention(ours: str, theirs: str) -> list[Entry]:
        return [line for part in "qkv" for line in convolution(f"{ours}/{part}", f"{theirs}.{part}")]

    return [
        *convolutional.entries(config.tokenizer, name, attention),
        entry("quantizer/codebook", "quantize.embedding.weight"),
    ]  # fmt: skip


def tokenizer_buffers(config: ConfigDict) -> list[Buffer]:
    """What a tokenizer's file holds besides."""
    return [Buffer("quantize.codebook_used", lambda: np.zeros(CODEBOOK_USED, np.float32))]


# ---- generator: B to 7B, of classes and of captions

GENERATOR_PREFIXES = ("tok_embeddings.", "cls_embedding.", "layers.0.attention.")


def generator_fields(state: State, known: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields of a generator; "generator.heads" is taken from `known` where heads are not 64 wide."""
    codes, width = shape(state, "tok_embeddings.weight", 2)
    rows, _ = shape(state, "layers.0.attention.wqkv.weight", 2)
    heads = known.get("generator.heads") or width // HEAD_WIDTHS.get(width, 64 if width % 64 == 0 else 100)
    head_width, keys = width // max(heads, 1), (rows - width) // 2
    if heads < 1 or width % heads or keys < 1 or keys % head_width:
        raise UserError(f"{heads} heads do not fit a width of {width} and {rows} rows of wqkv; say how many there are with "
                        "--config.generator.heads.")  # fmt: skip
    captions = any(name.startswith("cls_embedding.cap_proj.") for name in state)
    return {
        **GENERATOR, **(of_captions(state) if captions else of_classes(state, width)),
        "tokenizer.quantizer.codes": codes, "generator.width": width, "generator.depth": count(state, "layers.{}."),
        "generator.heads": heads, "generator.kv_heads": keys // head_width,
        "generator.mlp": shape(state, "layers.0.feed_forward.w1.weight", 2)[0],
    }  # fmt: skip


def of_classes(state: State, width: int) -> dict[str, Any]:
    """The fields of a generator that is asked for classes; the last row of its table is "no class"."""
    rows, _ = shape(state, "cls_embedding.embedding_table.weight", 2)
    return {
        "data.classes": rows - 1, "generator.condition.name": "class",
        "sampler.guidance_scale": GUIDANCE.get(width, 2.0), "sampler.top_k": 0,
    }  # fmt: skip


def of_captions(state: State) -> dict[str, Any]:
    """The fields of a generator that is asked for captions."""
    entries, features = shape(state, "cls_embedding.uncond_embedding", 2)
    return {
        "generator.condition.name": "text", "generator.condition.entries": entries, "generator.condition.features": features,
        "sampler.guidance_scale": 7.5, "sampler.top_k": 1000,
    }  # fmt: skip


CONDITIONS = {
    "class": [entry("condition/table/table", "cls_embedding.embedding_table.weight")],
    "text": [
        entry("condition/none", "cls_embedding.uncond_embedding"),
        entry("condition/up/kernel", "cls_embedding.cap_proj.fc1.weight", LINEAR),
        entry("condition/out/kernel", "cls_embedding.cap_proj.fc2.weight", LINEAR),
    ],
}
REST = [
    entry("tokens/table", "tok_embeddings.weight"),
    entry("transformer/blocks/attention_norm/scale", "layers.{layer}.attention_norm.weight"),
    entry("transformer/blocks/qkv/kernel", "layers.{layer}.attention.wqkv.weight", LINEAR),
    entry("transformer/blocks/out/kernel", "layers.{layer}.attention.wo.weight", LINEAR),
    entry("transformer/blocks/mlp_norm/scale", "layers.{layer}.ffn_norm.weight"),
    entry("transformer/blocks/mlp/gate_up/kernel",
          ("layers.{layer}.feed_forward.w1.weight", "layers.{layer}.feed_forward.w3.weight"), LINEARS),
    entry("transformer/blocks/mlp/out/kernel", "layers.{layer}.feed_forward.w2.weight", LINEAR),
    entry("transformer/norm/scale", "norm.weight"),
    entry("head/projection/kernel", "output.weight", LINEAR),
]  # fmt: skip


def generator_entries(config: ConfigDict) -> list[Entry]:
    """The name table of a generator."""
    return [*CONDITIONS.get(config.generator.condition.name, []), *REST]


def generator_buffers(config: ConfigDict) -> list[Buffer]:
    """What a generator's file may hold besides: older ones have the rotary table."""
    return [Buffer("freqs_cis")]
