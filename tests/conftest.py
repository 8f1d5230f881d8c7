"""Shapes and types are checked at run time in the whole suite, and compiled programs are kept between runs."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / f"tessera-jax-cache-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # for subprocesses too
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's threads on a CPU: a kernel for GPUs that is interpreted holds one for each of its warpgroups, and waits for others.
os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))
PUBLIC_WEIGHTS = os.environ.pop("TESSERA_WEIGHTS", None)  # a test that wants them asks for the fixture
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tessera-cache-")  # no feature of an earlier run is found
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pytest
from jaxtyping import install_import_hook

PACKAGES = ["models", "tokenizer", "generator", "input_pipeline", "training", "evaluation", "jobs", "interop"]
install_import_hook(PACKAGES, "beartype.beartype")

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder beside the repository with real weights, reference outputs and data."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def public_weights():
    """The public Inception file, where $TESSERA_WEIGHTS names it."""
    if not PUBLIC_WEIGHTS:
        pytest.skip("TESSERA_WEIGHTS does not name the public file")
    return Path(PUBLIC_WEIGHTS).absolute()


@pytest.fixture(scope="session")
def cifar10_folder(shared, tmp_path_factory):
    """CIFAR-10 as train.npz and test.npz."""
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, shared / "data" / "get.py", "cifar10", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def cifar10(cifar10_folder):
    """CIFAR-10's test images, uint8 (10000, 32, 32, 3), in their published order where it matters."""
    return np.load(cifar10_folder / "test.npz")["images"]
