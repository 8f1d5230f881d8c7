import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline.crops import CROPS, crop_records, describe_crops, ten_crop
from input_pipeline.sources import open_source
from input_pipeline.transforms import center_crop
from models.errors import UserError


@pytest.fixture
def extract():
    def make(**fields):
        return ConfigDict({"copies": 4, "ranges": (1.25,), **fields})

    return make


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("side", "middle"), [(20, 2), (21, 2), (23, 4), (16, 0)])  # margins 4, 5, 7, 0
def test_ten_crops_are_the_corners_the_middle_and_those_of_the_mirror_image(side, middle):
    """Coordinates as they are written out in torchvision's five_crop and ten_crop, whose halves are rounded to even."""
    image, far = random_image(side, side), side - 16
    crops = ten_crop(image, 16)
    for half, seen in ((crops[:5], image), (crops[5:], np.fliplr(image))):
        for crop, (y, x) in zip(half, ((0, 0), (0, far), (far, 0), (far, far), (middle, middle)), strict=True):
            np.testing.assert_array_equal(crop, seen[y : y + 16, x : x + 16])


def test_ten_cuts_the_square_that_llamagen_cuts(section, extract):
    """int(side * range), by ADM's centre crop, for every range in turn; nothing is random."""
    data = section(resolution=16, channels=3, flip=True, crop_scale=(0.5, 1.0))
    crops = describe_crops("ten", extract(ranges=(1.1, 1.3)), data, 0)
    image = random_image(40, 57)
    found = crops.cut({"image": image, "label": 0}, np.random.default_rng(0))
    assert crops.number == len(found) == 20
    np.testing.assert_array_equal(found[:10], ten_crop(center_crop(image, 17), 16))
    np.testing.assert_array_equal(found[10:], ten_crop(center_crop(image, 20), 16))
    assert crops.settings == {"name": "ten", "number": 20, "ranges": [1.1, 1.3]}
    assert (int(256 * 1.1), int(256 * 1.05), int(384 * 1.1)) == (281, 268, 422)


def test_augmented_is_the_middle_and_different_random_crops(section, extract):
    data = section(resolution=8, channels=3, crop_scale=(0.5, 0.9), flip=True)
    crops = describe_crops("augmented", extract(), data, 7)
    record = {"image": random_image(40, 57), "label": 0}
    found = crops.cut(record, np.random.default_rng(0))
    np.testing.assert_array_equal(found[0], center_crop(record["image"], 8))
    assert len({crop.tobytes() for crop in found}) == crops.number == len(found) == 4
    assert crops.settings == {
        "name": "augmented", "number": 4, "crop_scale": [0.5, 0.9], "shift": 0, "flip": True, "seed": 7,
    }  # fmt: skip


@pytest.mark.parametrize("name", CROPS)
def test_settings_name_what_decides_the_pixels(name, section, extract):
    """Configs whose settings are equal cut the same, so that tokens of one are never taken for those of another."""
    sections = [
        section(resolution=8, **fields) for fields in ({}, {"shift": 2}, {"flip": True}, {"crop_scale": (0.5, 0.9)})
    ]
    configs = [extract(), extract(copies=3), extract(ranges=(1.5,))]
    seen = {}
    for data in sections:
        for config in configs:
            for seed in (0, 1):
                crops = describe_crops(name, config, data, seed)
                pixels = [
                    crop_records(open_source(data, "train"), data, crops, seed)[i]["image"].tobytes() for i in range(9)
                ]
                seen.setdefault(str(crops.settings), set()).add(tuple(pixels))
    assert all(len(pixels) == 1 for pixels in seen.values())
    assert len(seen) == {"plain": 1, "augmented": 16, "ten": 2}[name]


def test_an_image_is_cut_the_same_whoever_reads_it(section, extract):
    data = section(resolution=8, shift=3)
    source, crops = open_source(data, "train"), describe_crops("augmented", extract(), data, 0)
    records = crop_records(source, data, crops, 0)
    part = records[90:110]
    assert len(records) == len(source)
    for i in range(20):
        np.testing.assert_array_equal(part[i]["image"], records[90 + i]["image"])
        assert part[i]["label"] == source[90 + i]["label"]


def test_wrong_fields_are_told(section, extract):
    with pytest.raises(UserError, match=r"unknown extract\.crops 'tem'; did you mean 'ten'"):
        describe_crops("tem", extract(), section(), 0)
    with pytest.raises(UserError, match=r"extract\.copies is 0"):
        describe_crops("augmented", extract(copies=0), section(), 0)
    for ranges in ((), (0.9,)):
        with pytest.raises(UserError, match=r"extract\.ranges"):
            describe_crops("ten", extract(ranges=ranges), section(), 0)
