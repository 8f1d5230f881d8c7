"""torch-fidelity's metrics on features, for the tests that compare with them."""

import importlib
import importlib.util
import sys
import types
from unittest.mock import MagicMock, patch

import pytest


def load_metric(name):
    """The module of torch-fidelity that defines a metric, without those of its parts that read images and networks."""
    pytest.importorskip("torch", reason="the program to compare with is torch's")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("the program to compare with is torch-fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    with patch.dict(sys.modules, {"torch_fidelity": package, "torch_fidelity.utils": MagicMock()}):
        return importlib.import_module(f"torch_fidelity.{name}")
