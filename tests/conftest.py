"""The settings of all tests: eight virtual devices, quick compilation, and fixtures."""

import os

import pytest
from file_server import FileServer

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Optimization level 0 nearly halves the compile time; the tests compile a lot and compute little.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)


@pytest.fixture
def server():
    """A FileServer without files."""
    server = FileServer()
    yield server
    server.close()
