"""Where the parameters of two published models lie on a mesh of all four axes; a change of the table shows here."""

import collections

import jax
import pytest
from jax.sharding import PartitionSpec as P

from configs import llamagen, var
from generator.generator import describe_generator
from models.sharding import partition_spec
from tokenizer.tokenizer import describe_tokenizer, token_spec

MESH = {"data": 2, "fsdp": 4, "tensor": 2, "sequence": 2}
BLOCKS = "transformer/blocks"
GENERATORS = {
    "llamagen": {
        "condition/table/table": P(None, "fsdp"),  # 1001 rows do not divide
        "tokens/table": P("tensor", "fsdp"),
        f"{BLOCKS}/attention_norm/scale": P(),
        f"{BLOCKS}/qkv/kernel": P(None, "fsdp", "tensor"),
        f"{BLOCKS}/out/kernel": P(None, "tensor", "fsdp"),
        f"{BLOCKS}/mlp_norm/scale": P(),
        f"{BLOCKS}/mlp/gate_up/kernel": P(None, "fsdp", "tensor"),
        f"{BLOCKS}/mlp/out/kernel": P(None, "tensor", "fsdp"),
        "transformer/norm/scale": P(),
        "head/projection/kernel": P("fsdp", "tensor"),
    },
    "var": {
        "condition/table/table": P(None, "fsdp"),
        "features/kernel": P(None, "fsdp"),
        "features/bias": P("fsdp"),
        "positions/levels": P(None, "fsdp"),
        "positions/slots": P(None, "fsdp"),
        "positions/start": P(None, "fsdp"),
        f"{BLOCKS}/log_scale": P(),
        f"{BLOCKS}/modulation/kernel": P(None, "fsdp", "tensor"),
        f"{BLOCKS}/modulation/bias": P(None, "tensor"),
        f"{BLOCKS}/qkv/kernel": P(None, "fsdp", "tensor"),
        f"{BLOCKS}/q_bias": P(),
        f"{BLOCKS}/v_bias": P(),
        f"{BLOCKS}/out/kernel": P(None, "tensor", "fsdp"),
        f"{BLOCKS}/out/bias": P(None, "fsdp"),
        f"{BLOCKS}/mlp/up/kernel": P(None, "fsdp", "tensor"),
        f"{BLOCKS}/mlp/up/bias": P(None, "tensor"),
        f"{BLOCKS}/mlp/out/kernel": P(None, "tensor", "fsdp"),
        f"{BLOCKS}/mlp/out/bias": P(None, "fsdp"),
        "transformer/last_modulation/kernel": P("fsdp", "tensor"),
        "transformer/last_modulation/bias": P("tensor"),
        "head/projection/kernel": P("fsdp", "tensor"),
        "head/projection/bias": P("tensor"),
    },
}
CONFIGS = {"llamagen": lambda: llamagen.get_config("size=L"), "var": lambda: var.get_config("depth=16")}


def specs(description):
    axes = jax.tree.leaves(description.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    leaves = jax.tree.leaves_with_path(description.shapes)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): partition_spec(leaf.shape, names, MESH)
        for (path, leaf), names in zip(leaves, axes, strict=True)
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_generators(name):
    config = CONFIGS[name]()
    spec = token_spec(describe_tokenizer(config))
    assert specs(describe_generator(config, spec, scan_layers=True)) == GENERATORS[name]


@pytest.mark.parametrize(("name", "kernels", "others"), [("llamagen", 103, 240), ("var", 107, 244)])
def test_tokenizers_split_every_kernel_by_the_channels_that_come_out_but_the_one_of_three(name, kernels, others):
    found = specs(describe_tokenizer(CONFIGS[name]()))
    assert collections.Counter(found.values()) == {P(None, None, None, "fsdp"): kernels, P(): others}
    whole = {path for path, spec in found.items() if path.endswith("kernel") and spec == P()}
    assert all(path.startswith(("decoder/", "to_codes/")) for path in whole), whole
    assert len(whole) <= 2
