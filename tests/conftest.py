"""Shared set-up: CPU only, and run-time checks of every shape annotation in layers and models."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what the tests do. It is done with less effort unless XLA_FLAGS says otherwise; with XLA_FLAGS=""
# programs are compiled as users do, which `.ci/run` repeats the tests of numbers with.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from jaxtyping import install_import_hook

# Must stand before the first import of the modules it checks.
install_import_hook(["zoo.layers", "zoo.models"], "beartype.beartype")

# Tests leave the user's cache of compiled programs alone.
_cache = tempfile.TemporaryDirectory(prefix="zoo-tests-")
os.environ.setdefault("ZOO_CACHE", _cache.name)
