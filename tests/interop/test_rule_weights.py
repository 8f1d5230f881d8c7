"""Weights by rule: against the rule written element by element, and against what the reference folders say of it."""

import json

import numpy as np
import pytest

from interop import rule_weights
from interop.rule_weights import filled, fnv1a, rule_state
from models.errors import UserError


def one(name, index, mean, amp):
    """An element by Python's integers."""
    z = 0xCBF29CE484222325
    for byte in name.encode():
        z = (z ^ byte) * 0x100000001B3 % 2**64
    z = (z + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return np.float32(mean + amp * (((z ^ (z >> 31)) >> 40) - 8388608) / 8388608)


def test_elements_are_those_of_the_rule_whatever_the_block(monkeypatch):
    monkeypatch.setattr(rule_weights, "BLOCK", 7)
    found = filled("a seed/ä.weight", (4, 5, 3), 0.25, 1.7)
    assert found.dtype == np.float32
    expected = [one("a seed/ä.weight", index, 0.25, 1.7) for index in range(60)]
    np.testing.assert_array_equal(found.ravel(), np.array(expected, np.float32))


def test_the_hash_is_the_published_one():
    assert fnv1a("") == 0xCBF29CE484222325
    assert fnv1a("a") == 0xAF63DC4C8601EC8C
    assert fnv1a("foobar") == 0x85944171F73967E8


@pytest.mark.parametrize(
    ("folder", "model", "key", "begins"),
    [
        ("llamagen_c2i", "vq16", "encoder.conv_in.weight", (-0.36395964, 0.00891532935, 0.261721283)),
        ("llamagen_t2i", "t2i_short", "cls_embedding.uncond_embedding", (-0.651089311, -0.0190470386, 0.610903859)),
        ("var", "r1/vae", "encoder.conv_in.weight", (0.0554167256, 0.0848486423, -0.160500914)),
    ],
)
def test_models_of_the_reference_folders(shared, folder, model, key, begins):
    rule = json.loads((shared / "parity" / folder / "rule_weights.json").read_text())["models"][model]
    state, digest = rule_state(rule["seed_name"], rule["tensors"])
    np.testing.assert_array_equal(state[key].ravel()[:3], np.float32(begins))
    assert digest == rule["sha256_of_filled_tensors"]
    assert set(state) == {tensor["key"] for tensor in rule["tensors"] if "fill" not in tensor}


@pytest.mark.parametrize("entry", [{"key": "a", "shape": [2], "mean": 0.0}, {"shape": [2], "mean": 0, "amp": 1}])
def test_a_tensor_without_all_that_the_rule_needs_is_the_users_mistake(entry):
    with pytest.raises(UserError, match="lacks"):
        rule_state("seed", [entry])
