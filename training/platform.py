"""What a program tells JAX about the machine before the first array is made."""

import pathlib

import jax
from ml_collections import ConfigDict


def prepare_platform(config: ConfigDict) -> None:
    """Sets the precision of a GPU's float32 products and the cache of compiled programs, as the config says."""
    if jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if config.tf32 else "highest")
    if config.compilation_cache_dir:
        cache = pathlib.Path(config.compilation_cache_dir).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # By default programs that compile in under a second, evaluation's or a small network's, are not kept.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
