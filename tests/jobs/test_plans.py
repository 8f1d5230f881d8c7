"""The search for a change that fits, with a compiler that is a formula."""

import math

import pytest

from configs import llamagen
from jobs.plans import candidates, search
from models.transformer import REMATERIALISATION

CHIPS = 256
ATTEMPTS = 6  # programs that are compiled in search of a plan, at most


def config_of(**fields):
    config = llamagen.get_config("size=B")
    config.update_from_flattened_dict({"mesh.data": 64, "mesh.fsdp": 4, "generator.remat": "none"} | fields)
    config.training.generator.batch_size = 16 * CHIPS
    return config


def mesh_of(config):
    """As `make_mesh` resolves the config's sizes, without devices."""
    sizes = dict(config.mesh)
    known = math.prod(size for size in sizes.values() if size > 0)
    return {axis: size if size > 0 else CHIPS // known for axis, size in sizes.items()}


def changed(config, overrides):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(overrides)
    return other


def compiler(config, usable, calls):
    """Memory: what is kept for the backward pass by policy, in proportion to the images of a chip, and a part of the state."""
    kept = dict(zip(REMATERIALISATION, (100, 40, 10)))

    def compiled(overrides):
        other = changed(config, overrides)
        calls.append(overrides)
        images = other.training.generator.batch_size / CHIPS
        needed = 4000 / other.mesh.fsdp + kept[other.generator.remat] * images
        return {"fits": needed <= usable, "bytes_per_chip": needed, "hbm_bytes": usable}

    return compiled


def weightless(overrides):
    return 0.0


def plan_of(config, usable, held=weightless):
    calls = []
    offered = candidates(config, "generator", mesh_of(config), held)
    plan = search(offered, held, compiler(config, usable, calls), float(usable))
    assert plan.attempts == len(calls) <= ATTEMPTS
    return plan


def test_the_smallest_change_that_fits_is_found():
    config = config_of()  # 1000 of state and 1600 of activations
    assert plan_of(config, 1700).overrides == {"generator.remat": "dots"}
    assert plan_of(config, 1200).overrides == {"generator.remat": "full"}
    assert plan_of(config, 500).overrides == {"generator.remat": "full", "mesh.data": 16, "mesh.fsdp": 16}


def test_batches_are_halved_only_when_nothing_else_helps():
    plan = plan_of(config_of(**{"mesh.fsdp": CHIPS, "mesh.data": 1, "generator.remat": "full"}), 60)
    assert plan.overrides == {"training.generator.batch_size": 4 * CHIPS}  # 15.6 + 40
    assert plan.record["bytes_per_chip"] == pytest.approx(4000 / 256 + 40)


def test_what_cannot_fit_is_not_compiled():
    config = config_of()
    held = lambda overrides: 4000 / changed(config, overrides).mesh.fsdp  # noqa: E731
    plan = plan_of(config, 300, held)  # whose state alone is too much, unless split over 16
    assert plan.overrides == {"generator.remat": "full", "mesh.data": 4, "mesh.fsdp": 64}
    assert "nothing that can be changed" in plan_of(config, 300, lambda overrides: 301.0).why


def test_more_devices_than_a_width_can_be_divided_by_are_left_out():
    config = config_of(**{"mesh.fsdp": 1, "mesh.data": CHIPS})
    held = lambda overrides: 4000 / {256: 1}.get(fsdp := changed(config, overrides).mesh.fsdp, fsdp)  # noqa: E731
    plan = plan_of(config, 100, held)
    assert plan.overrides == {
        "generator.remat": "full", "mesh.data": 4, "mesh.fsdp": 64, "training.generator.batch_size": 2 * CHIPS,
    }  # fmt: skip


def test_a_batch_that_is_far_too_large_is_found_out_as_well():
    config = config_of(**{"generator.remat": "none", "mesh.fsdp": 1, "mesh.data": CHIPS})
    config.training.generator.batch_size = 2**12 * CHIPS
    plan = plan_of(config, 100)  # 15.6 + 10 an image
    assert plan.overrides == {
        "generator.remat": "full", "mesh.data": 1, "mesh.fsdp": CHIPS, "training.generator.batch_size": 8 * CHIPS,
    }  # fmt: skip


def test_what_nothing_helps_costs_one_attempt():
    plan = plan_of(config_of(), 10)
    assert (plan.overrides, plan.record, plan.attempts) == (None, None, 1)
    assert "nothing that can be changed" in plan.why


def test_every_offer_divides_and_changes_something():
    config = config_of()
    config.training.generator.update(batch_size=1500, accumulate=2)  # 512 examples would be the least
    offers = list(candidates(config, "generator", mesh_of(config), weightless))
    assert offers[0] == {"training.generator.batch_size": 1024}  # not the next above, which takes more memory
    assert {} not in offers
    assert len(offers) == len({str(offer) for offer in offers})
    for offer in offers:
        other = changed(config, offer)
        assert other.training.generator.batch_size % (2 * CHIPS) == 0
        assert other.mesh.data * other.mesh.fsdp == CHIPS


def test_a_tokenizer_rematerialises_nothing():
    config = config_of()
    config.training.tokenizer.batch_size = 2 * CHIPS
    offers = list(candidates(config, "tokenizer", mesh_of(config), weightless))
    assert offers
    assert not any("generator.remat" in offer for offer in offers)


@pytest.mark.parametrize("sizes", [{"data": -1, "fsdp": 4, "tensor": 4}, {"data": 16, "fsdp": 4, "tensor": -1}])
def test_axes_that_share_examples_are_left_alone(sizes):
    config = config_of()
    config.mesh.update(sizes)
    offers = [offer for offer in candidates(config, "generator", mesh_of(config), weightless) if "mesh.fsdp" in offer]
    assert offers
    assert all(offer["mesh.data"] * offer["mesh.fsdp"] == CHIPS // 4 for offer in offers)
