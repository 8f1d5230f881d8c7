"""Peaks of accelerators."""

import pytest

from training.chips import GIB, chip_of


@pytest.mark.parametrize(
    ("kind", "name", "peak", "gib", "intensity"),
    # FLOPs a byte at which arithmetic takes as long as reading: v5e's 240 is the one that is often quoted
    [("TPU v5 lite", "TPU v5e", 197e12, 16, 240), ("TPU v6e", "TPU v6e", 918e12, 32, 560),
     ("NVIDIA H200", "H200", 989e12, 141, 206)],
)  # fmt: skip
def test_a_kind_of_device_is_a_chip(kind, name, peak, gib, intensity):
    chip = chip_of(kind)
    assert (chip.name, chip.rates["bfloat16"]) == (name, peak)
    assert chip.hbm_bytes // GIB == gib
    assert chip.rates["bfloat16"] / chip.hbm_bandwidth == pytest.approx(intensity, rel=0.01)


def test_what_is_not_known_has_no_peak():
    assert chip_of("cpu") is None
