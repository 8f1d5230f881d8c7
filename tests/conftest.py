"""Shapes and types are checked at run time in the whole suite, and compiled programs are kept between runs."""

import os
import sys
import tempfile
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / f"tessera-jax-cache-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # for subprocesses too
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent.parent))

from jaxtyping import install_import_hook

PACKAGES = ["models", "tokenizer", "generator", "input_pipeline", "training", "evaluation", "jobs", "interop"]
install_import_hook(PACKAGES, "beartype.beartype")
