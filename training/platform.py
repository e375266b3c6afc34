"""What a program tells JAX about the machine before the first array is made, and XLA when it compiles."""

import ctypes
import functools
import pathlib
import sys

import jax
from ml_collections import ConfigDict

CompilerOptions = dict[str, bool | str]


def prepare_platform(config: ConfigDict) -> None:
    """Sets the precision of a GPU's float32 products and the cache of compiled programs, as the config says.

    On a CPU freed memory stays the process's own.
    """
    if jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if config.tf32 else "highest")
    elif jax.default_backend() == "cpu":
        _keep_freed_memory()
    if config.compilation_cache_dir:
        cache = pathlib.Path(config.compilation_cache_dir).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # By default programs that compile in under a second, evaluation's or a small network's, are not kept.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def compiler_options(config: ConfigDict) -> CompilerOptions:
    """Returns XLA's options for this platform, as jax.jit takes them.

    On a CPU float32 convolutions are Eigen's, not YNNPACK's: the gradients of large maps' kernels are up to five times
    faster. In float64 Eigen's would be over twenty times slower, in bfloat16 twice. On a GPU kernels are reproducible
    if config.deterministic asks for it; a CPU's and a TPU's always are.
    """
    if jax.default_backend() == "cpu" and config.dtype == "float32":
        return _known({"xla_cpu_experimental_ynn_fusion_type": ""})
    if config.deterministic and jax.default_backend() == "gpu":
        return {"xla_gpu_deterministic_ops": True, "xla_gpu_exclude_nondeterministic_ops": True}
    return {}


def _known(options: CompilerOptions) -> CompilerOptions:
    """The options, or none where this version of XLA does not know one: experimental ones come and go."""
    return options if _compiles_with(tuple(options.items())) else {}


@functools.cache
def _compiles_with(options: tuple[tuple[str, bool | str], ...]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.cache
def _keep_freed_memory() -> None:
    """Tells glibc not to give memory back to the system, where it would be fetched again page by page each step."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # their numbers in malloc.h
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)  # others than the first cannot grow
