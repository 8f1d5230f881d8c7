import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image


@pytest.fixture
def section():
    """Makes a config's `data` section: the digits unless told otherwise."""

    def make(**fields):
        defaults = {
            "name": "digits",
            "path": "",
            "resolution": 8,
            "channels": 1,
            "classes": 0,
            "crop_scale": (1.0, 1.0),
            "shift": 0,
            "flip": False,
            "corrupt_limit": 0,
        }
        return ConfigDict({**defaults, **fields})

    return make


@pytest.fixture
def write_folder():
    """Writes `count` 8 x 8 pictures a class, picture i of class c filled with 20 c + i, and returns the folder."""

    def write(root, classes=("cat", "dog"), count=10, suffix="png"):
        for c, name in enumerate(classes):
            (root / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(np.full((8, 8, 3), 20 * c + i, np.uint8))
                picture.save(root / name / f"{i:03d}.{suffix}")
        return root

    return write
