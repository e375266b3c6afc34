"""The settings of all tests: eight virtual devices, quick compilation, a cache of compiled programs."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Optimization level 0 nearly halves the compile time; the tests compile a lot and compute little.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# The processes of tests, the programs that they start, and later runs of the tests share what they compile.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 * 1024**3))  # bytes
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
