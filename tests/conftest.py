"""The settings of all tests: eight virtual devices, quick compilation, a cache of programs, a server of files."""

import gc
import os
import pathlib

import pytest
from file_server import FileServer
from program import COMPILE_QUICKLY

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {COMPILE_QUICKLY}"
)

import jax

# Traced programs are millions of objects. Searching them for garbage at Python's usual intervals takes a fifth longer.
gc.set_threshold(200_000, 50, 1000)

# Later runs of the tests reuse what this one compiles. Each of pytest-xdist's processes has its own folder, because JAX
# warns if two processes write the same program at once. Programs that the tests start use no cache.
FOLDER = f"xla-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / FOLDER))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def server():
    """A FileServer without files."""
    server = FileServer()
    yield server
    server.close()
