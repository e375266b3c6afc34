"""What a program tells JAX about the machine before the first array is made, and XLA when it compiles."""

import contextlib
import ctypes
import functools
import os
import pathlib
import sys

import jax
from ml_collections import ConfigDict

from input_pipeline import prepare_process

CompilerOptions = dict[str, bool | str]


def join_processes() -> None:
    """Joins the processes that do this work together, where the environment says that there are several.

    It does by JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS (host:port of process 0), by Slurm's or
    Open MPI's more than one task, and on the hosts of a TPU pod. Only the first process prints from then on.
    """
    ours = {name: int(os.environ.get(f"JAX_{name.upper()}", 0)) for name in ("num_processes", "process_id")}
    tasks = max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    # A process that fails waits as long for the others, which wait for its part of a sum; then it ends, and they do.
    timeout = {"shutdown_timeout_seconds": 30}
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: see training.interruption
    if ours["num_processes"] > 1:
        jax.distributed.initialize(**ours, **timeout)
    elif tasks > 1:
        jax.distributed.initialize(**timeout)
    elif "tpu" in (jax.config.jax_platforms or ""):  # as JAX sets it on a TPU's host
        with contextlib.suppress(ValueError):  # a host that is no part of a pod
            jax.distributed.initialize(**timeout)
    if jax.distributed.is_initialized() and jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")


def prepare_platform(config: ConfigDict) -> None:
    """Sets the precision of a GPU's float32 products and the cache of compiled programs, as the config says.

    The image libraries are prepared, too.
    """
    prepare_process(config.max_image_pixels)
    if jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if config.tf32 else "highest")
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


def _keep_freed_memory() -> None:
    """Tells glibc not to give memory back to the system, where it would be fetched again page by page each step.

    On a CPU that took a fifth of MobileNet's and a tenth of ResNet-50's training step (docs/benchmarks.md). Beside an
    NVIDIA GPU, where it was not measured, nothing is changed.
    """
    if sys.platform != "linux" or os.path.exists("/dev/nvidiactl"):
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # their numbers in malloc.h
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)  # others than the first cannot grow


_keep_freed_memory()  # when this is imported: threads that JAX has started by then keep arenas of their own
