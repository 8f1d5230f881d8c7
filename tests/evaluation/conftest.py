"""The digits that scikit-learn ships, as the input pipeline brings them: 16x16, every fifth of each class held out."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def digits():
    """Images and labels of all, and which of them are held out."""
    data = load_digits()
    small = np.round(data.images * 255 / 16).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(x).resize((16, 16), Image.Resampling.BICUBIC)) for x in small])
    held_out = np.zeros(len(images), bool)
    for label in range(10):
        held_out[np.flatnonzero(data.target == label)[4::5]] = True
    return images[..., None], data.target, held_out


@pytest.fixture
def noise():
    """Images that are like nothing."""
    return np.random.default_rng(0).integers(0, 256, (50, 16, 16, 1), np.uint8)
