"""VAR's checkpoints (github.com/FoundationVision/VAR; arXiv:2404.02905): their names, and what their shapes show."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from interop import convolutional
from interop.convolutional import MIDDLE, Layer, convolution, count, shape
from interop.names import CONVOLUTIONS, LINEAR, VECTORS, Buffer, Entry, State, among, entry
from models import masks
from models.errors import UserError

CONTAINERS = ((), ("trainer", "var_wo_ddp"), ("model",), ("state_dict",))  # the second in the files of its own training
CONTAINER = ()

SCALES = {  # by the side of the last: of the released models for images of 256 and of 512 pixels
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}

# ---- what all of them have in common

TOKENIZER = {
    "tokenizer.encoder": "convolutional", "tokenizer.decoder": "convolutional", "tokenizer.groups": 32,
    "tokenizer.projection": 3, "tokenizer.quantizer.name": "multi_scale", "tokenizer.quantizer.phi_share": 0.5,
    "tokenizer.quantizer.inner.name": "vector", "tokenizer.quantizer.inner.l2_norm": False,
}  # fmt: skip
GENERATOR = {
    "generator.layout": "scales", "generator.head": "categorical", "generator.condition.name": "class",
    "generator.activation": "gelu", "generator.bias": True, "generator.position": "learned",
}  # fmt: skip
DEFAULTS = {
    "data.name": "folder", "data.path": "data/imagenet", "data.resolution": 256, "data.channels": 3, "data.classes": 1000,
    "data.crop_scale": (0.889, 0.889), "tokenizer.channels": 160, "tokenizer.latent_channels": 32, **TOKENIZER,
    "tokenizer.quantizer.scales": SCALES[16], "tokenizer.quantizer.phi": 4, "tokenizer.quantizer.commitment": 0.25,
    "tokenizer.quantizer.scale_dropout": 0.0, "tokenizer.quantizer.least_scales": 3,
    "tokenizer.quantizer.inner.codes": 4096, "tokenizer.quantizer.inner.width": 32,
    "tokenizer.quantizer.inner.commitment": 0.25, "tokenizer.quantizer.inner.usage_decay": 0.99,
    "tokenizer.quantizer.inner.revive_below": 0.03, **GENERATOR,
    "generator.width": 1024, "generator.depth": 16, "generator.heads": 16, "generator.mlp": 4096,
    "generator.norm": "adaptive", "generator.qk_norm": "l2", "generator.dropout": 0.0,
    "sampler.guidance_scale": 2.5, "sampler.guidance_schedule": "linear", "sampler.top_k": 900, "sampler.top_p": 0.96,
    "sample.count": 16, "sample.batch_size": 16, "sample.columns": 8, "evaluation.batch_size": 64,
    "evaluation.training_images": 0,
}  # fmt: skip

# ---- tokenizer

TOKENIZER_PREFIXES = ("encoder.down.", "decoder.up.")
PHI = "quantize.quant_resi"


def tokenizer_fields(state: State, known: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields of a tokenizer; its scales, of which only the number shows, are `known` or the released models'."""
    seen = convolutional.fields(state, "encoder.down.{}", "block.{}")
    codes, width = shape(state, "quantize.embedding.weight", 2)
    stride = 2 ** (len(seen["tokenizer.multipliers"]) - 1)
    side = known.get("data.resolution", 16 * stride) // stride
    scales = known.get("tokenizer.quantizer.scales") or released(side=side)
    hits = "quantize.ema_vocab_hit_SV"
    if hits in state and shape(state, hits, 2)[0] != len(scales):
        raise UserError(f"{hits} is of {len(state[hits])} scales, but {scales} are {len(scales)}; are tokenizer and generator "
                        "of one pair? (For one without the other, give --config.tokenizer.quantizer.scales.)")  # fmt: skip
    return {
        **TOKENIZER, **seen, "data.resolution": scales[-1] * stride, "tokenizer.quantizer.scales": tuple(scales),
        "tokenizer.quantizer.phi": count(state, f"{PHI}.qresi_ls.{{}}.") or int(f"{PHI}.qresi.weight" in state),
        "tokenizer.quantizer.inner.codes": codes, "tokenizer.quantizer.inner.width": width,
    }  # fmt: skip


def released(*, side: int = 0, tokens: int = 0) -> tuple[int, ...]:
    """The scales of the released models, by the side of the last or by the tokens of all."""
    for last, scales in SCALES.items():
        if last == side or sum(n**2 for n in scales) == tokens:
            return scales
    raise UserError(f"no released model has scales that end at {side} or are {tokens} tokens together; say which it has with "
                    "--config.tokenizer.quantizer.scales.")  # fmt: skip


def tokenizer_entries(config: ConfigDict) -> list[Entry]:
    """The name table of a tokenizer."""

    def name(layer: Layer) -> str:
        if layer.level == MIDDLE:
            return f"{layer.side}.mid.{('block_1', 'attn_1', 'block_2')[layer.number]}"
        levels, resample = {"encoder": ("down", "downsample"), "decoder": ("up", "upsample")}[layer.side]
        last = {"block": f"block.{layer.number}", "attention": f"attn.{layer.number}", "resample": f"{resample}.conv"}
        return f"{layer.side}.{levels}.{layer.level}.{last[layer.what]}"

    def attention(ours: str, theirs: str) -> list[Entry]:
        kernels, biases = (tuple(f"{ours}/{part}/{leaf}" for part in "qkv") for leaf in ("kernel", "bias"))
        return [entry(kernels, f"{theirs}.qkv.weight", CONVOLUTIONS), entry(biases, f"{theirs}.qkv.bias", VECTORS)]

    found = convolutional.entries(config.tokenizer, name, attention)
    phi = config.tokenizer.quantizer.phi
    for n in range(phi):
        found += convolution(f"quantizer/convolutions/{n}", f"{PHI}.qresi" if phi == 1 else f"{PHI}.qresi_ls.{n}")
    return [*found, entry("quantizer/inner/codebook", "quantize.embedding.weight")]


def tokenizer_buffers(config: ConfigDict) -> list[Buffer]:
    """What a tokenizer's file holds besides: how often training used each code at each scale."""
    quantizer = config.tokenizer.quantizer
    shape = (len(quantizer.scales), quantizer.inner.codes)
    return [Buffer("quantize.ema_vocab_hit_SV", partial(np.zeros, shape, np.float32))]


# ---- generator

GENERATOR_PREFIXES = ("pos_1LC", "word_embed.", "blocks.0.attn.")


def generator_fields(state: State, known: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields of a generator; `known` are the scales where the file lacks the buffer that shows them."""
    width, code_width = shape(state, "word_embed.weight", 2)
    l2, shared = (any(name.endswith(last) for name in state) for last in ("attn.scale_mul_1H11", ".ada_gss"))
    depth = count(state, "blocks.{}.")
    return {
        **GENERATOR,
        "data.classes": shape(state, "class_emb.weight", 2)[0] - 1,
        "tokenizer.quantizer.name": "multi_scale",
        "tokenizer.quantizer.scales": scales_of(state, known),
        "tokenizer.quantizer.inner.codes": shape(state, "head.weight", 2)[0],
        "tokenizer.quantizer.inner.width": code_width,
        "generator.width": width,
        "generator.depth": depth,
        "generator.heads": heads_of(state, known, width),
        "generator.kv_heads": 0,
        "generator.mlp": shape(state, "blocks.0.ffn.fc1.weight", 2)[0],
        "generator.norm": "adaptive_shared" if shared else "adaptive",
        "generator.qk_norm": "l2" if l2 else "none",
        "generator.attention_scale": 1.0 if l2 else 0.25,
        "generator.drop_path": 0.1 * depth / 24,
    }


def heads_of(state: State, known: Mapping[str, Any], width: int) -> int:
    """The number of heads: shown by their scales, or `known`, or such that heads are 64 wide."""
    if "blocks.0.attn.scale_mul_1H11" in state:
        return shape(state, "blocks.0.attn.scale_mul_1H11", 4)[1]
    heads = known.get("generator.heads") or max(width // 64, 1)
    if width % heads:
        raise UserError(f"{heads} heads do not fit a width of {width}; say which do with --config.generator.heads.")
    return heads


def scales_of(state: State, known: Mapping[str, Any]) -> tuple[int, ...]:
    """The sides of the scales: counted where the file numbers its positions, or `known`, or by their number."""
    if "lvl_1L" in state:
        levels, counts = (found.tolist() for found in np.unique(state["lvl_1L"], return_counts=True))
        sides = tuple(math.isqrt(n) for n in counts)
        if levels != list(range(len(levels))) or [side**2 for side in sides] != counts:
            raise UserError(f"lvl_1L numbers scales {levels} of {counts} tokens; they are counted from 0, and squares.")
        return sides
    scales = known.get("tokenizer.quantizer.scales")
    return tuple(scales) if scales else released(tokens=shape(state, "pos_1LC", 3)[1])


BLOCK = [
    entry("transformer/blocks/qkv/kernel", "blocks.{layer}.attn.mat_qkv.weight", LINEAR),
    entry("transformer/blocks/q_bias", "blocks.{layer}.attn.q_bias"),
    entry("transformer/blocks/v_bias", "blocks.{layer}.attn.v_bias"),
    entry("transformer/blocks/out/kernel", "blocks.{layer}.attn.proj.weight", LINEAR),
    entry("transformer/blocks/out/bias", "blocks.{layer}.attn.proj.bias"),
    entry("transformer/blocks/mlp/up/kernel", "blocks.{layer}.ffn.fc1.weight", LINEAR),
    entry("transformer/blocks/mlp/up/bias", "blocks.{layer}.ffn.fc1.bias"),
    entry("transformer/blocks/mlp/out/kernel", "blocks.{layer}.ffn.fc2.weight", LINEAR),
    entry("transformer/blocks/mlp/out/bias", "blocks.{layer}.ffn.fc2.bias"),
]
REST = [
    entry("condition/table/table", "class_emb.weight"),
    entry("features/kernel", "word_embed.weight", LINEAR),
    entry("features/bias", "word_embed.bias"),
    entry("positions/slots", "pos_1LC", among(0)),
    entry("positions/levels", "lvl_embed.weight"),
    entry("positions/start", "pos_start", among(0)),
    entry("transformer/last_modulation/kernel", "head_nm.ada_lin.1.weight", LINEAR),
    entry("transformer/last_modulation/bias", "head_nm.ada_lin.1.bias"),
    entry("head/projection/kernel", "head.weight", LINEAR),
    entry("head/projection/bias", "head.bias"),
]
NORMS = {
    "adaptive": [
        entry("transformer/blocks/modulation/kernel", "blocks.{layer}.ada_lin.1.weight", LINEAR),
        entry("transformer/blocks/modulation/bias", "blocks.{layer}.ada_lin.1.bias"),
    ],
    "adaptive_shared": [
        entry("transformer/blocks/modulation_offset", "blocks.{layer}.ada_gss", among(0, 1)),
        entry("transformer/modulation/kernel", "shared_ada_lin.1.weight", LINEAR),
        entry("transformer/modulation/bias", "shared_ada_lin.1.bias"),
    ],
}
QK_NORMS = {
    "l2": [entry("transformer/blocks/log_scale", "blocks.{layer}.attn.scale_mul_1H11", among(0, 2, 3))],
}


def generator_entries(config: ConfigDict) -> list[Entry]:
    """The name table of a generator."""
    return [*REST, *BLOCK, *NORMS.get(config.generator.norm, []), *QK_NORMS.get(config.generator.qk_norm, [])]


def generator_buffers(config: ConfigDict) -> list[Buffer]:
    """What a generator's file holds besides: the scale of every position, who sees whom, and that keys have no bias."""
    scales = config.tokenizer.quantizer.scales
    level = np.repeat(np.arange(len(scales)), [side**2 for side in scales])

    def mask() -> np.ndarray:
        seen = masks.groups(level.astype(np.int32)).as_array()
        return np.where(seen, 0, -np.inf).astype(np.float32)[None, None]

    zeros = partial(np.zeros, config.generator.width, np.float32)
    keys = [Buffer(f"blocks.{n}.attn.zero_k_bias", zeros, checked=True) for n in range(config.generator.depth)]
    return [
        Buffer("lvl_1L", lambda: level[None].astype(np.int64), checked=True),
        Buffer("attn_bias_for_masking", mask, checked=True),
        *keys,
    ]
