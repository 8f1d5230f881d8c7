"""torch-fidelity's metrics on features and its network, for the tests that compare with them."""

import importlib
import importlib.util
import sys
import types
from unittest.mock import MagicMock, patch

import pytest


def load_metric(name):
    """The module of torch-fidelity that defines a metric, without those of its parts that read images and networks."""
    return load_module(name, {"torch_fidelity.utils": MagicMock()})


def load_network():
    """The module of torch-fidelity that defines the Inception network."""
    return load_module("feature_extractor_inceptionv3", {})


def load_module(name, instead):
    """A module of torch-fidelity without what its package imports beside, torchvision among it."""
    pytest.importorskip("torch", reason="the program to compare with is torch's")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("the program to compare with is torch-fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    with patch.dict(sys.modules, {"torch_fidelity": package, **instead}):
        return importlib.import_module(f"torch_fidelity.{name}")
