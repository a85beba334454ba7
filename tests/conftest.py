"""Shared set-up: CPU only, and run-time checks of every shape annotation in layers and models."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Must stand before the first import of the modules it checks.
install_import_hook(["zoo.layers", "zoo.models"], "beartype.beartype")

# Tests leave the user's cache of compiled programs alone.
_cache = tempfile.TemporaryDirectory(prefix="zoo-tests-")
os.environ.setdefault("ZOO_CACHE", _cache.name)
