"""What all tests share: eight virtual devices, quick compilation, the options as tests want them."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Level 0 nearly halves the time to compile, and the tests compile much and compute little.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
