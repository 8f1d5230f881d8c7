"""The search for a change that fits, with a compiler that is a formula."""

import pytest

from configs import llamagen
from jobs.plans import ATTEMPTS, candidates, search
from models.transformer import REMATERIALISATION

CHIPS = 256


def config_of(**fields):
    config = llamagen.get_config("size=B")
    config.update_from_flattened_dict({"mesh.data": 64, "mesh.fsdp": 4, "generator.remat": "none"} | fields)
    config.training.generator.batch_size = 16 * CHIPS
    return config


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


def plan_of(config, usable, held=lambda overrides: 0.0):
    calls = []
    plan = search(candidates(config, "generator", CHIPS), held, compiler(config, usable, calls), float(usable))
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
    assert plan.attempts == 2


def test_a_search_ends_and_says_why():
    config = config_of(**{"generator.remat": "full"})
    config.training.generator.batch_size = 2**12 * CHIPS
    plan = plan_of(config, 30)
    assert (plan.overrides, plan.attempts) == (None, ATTEMPTS)
    assert f"after {ATTEMPTS} programs" in plan.why
    config.training.generator.batch_size = CHIPS
    assert "nothing that can be changed" in plan_of(config, 10).why


def test_every_offer_divides_and_changes_something():
    config = config_of()
    config.training.generator.update(batch_size=1000, accumulate=2)  # 512 examples would be the least
    offers = list(candidates(config, "generator", CHIPS))
    assert {} not in offers
    assert len(offers) == len({str(offer) for offer in offers})
    for offer in offers:
        other = changed(config, offer)
        assert other.training.generator.batch_size % (2 * CHIPS) == 0
        assert other.mesh.data * other.mesh.fsdp == CHIPS


def test_a_tokenizer_rematerialises_nothing():
    config = config_of()
    config.training.tokenizer.batch_size = 2 * CHIPS
    offers = list(candidates(config, "tokenizer", CHIPS))
    assert offers
    assert not any("generator.remat" in offer for offer in offers)


def test_axes_that_share_examples_are_left_alone():
    config = config_of()
    config.mesh.tensor = 4
    config.mesh.update(data=-1, fsdp=4)
    offers = [offer for offer in candidates(config, "generator", CHIPS) if "mesh.fsdp" in offer]
    assert offers
    assert all(offer["mesh.data"] * offer["mesh.fsdp"] == CHIPS // 4 for offer in offers)
