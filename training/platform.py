"""How a program sets up its process, JAX before the first array is made, and XLA when it compiles."""

import contextlib
import ctypes
import functools
import logging
import os
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline import prepare_image_libraries
from input_pipeline.files import local_path

CompilerOptions = dict[str, bool | str]

_JAX_OPTIONS: Any = jax.config  # its attributes are unknown to type checkers


def join_processes() -> None:
    """Joins the processes that do this work together, where the environment says that there are several.

    It does by JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS (host:port of process 0), by Slurm's or
    Open MPI's more than one task, and on the hosts of a TPU pod. Only the first process prints from then on.
    """
    ours: dict[str, Any] = {
        name: int(os.environ.get(f"JAX_{name.upper()}", 0)) for name in ("num_processes", "process_id")
    }
    tasks = max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    # A process that fails waits as long for the others, which wait for its part of a sum; then it ends, and they do.
    timeout: dict[str, Any] = {"shutdown_timeout_seconds": 30}
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: see training.interruption
    if ours["num_processes"] > 1:
        jax.distributed.initialize(**ours, **timeout)
    elif tasks > 1:
        jax.distributed.initialize(**timeout)
    elif "tpu" in (_JAX_OPTIONS.jax_platforms or ""):  # as JAX sets it on a TPU's host
        with contextlib.suppress(ValueError):  # a host that is no part of a pod
            jax.distributed.initialize(**timeout)
    if jax.distributed.is_initialized() and jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")


def prepare_process() -> None:
    """Sets up the process for training; programs call it first, before JAX starts its threads."""
    _keep_freed_memory()
    _silence_abandoned_reads()


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory, where that pays.

    glibc is told not to return memory to the system, from which it would be fetched again, page by page, in each step.
    On a CPU that took a fifth of MobileNet's and a tenth of ResNet-50's training step (docs/benchmarks.md). Beside an
    NVIDIA GPU, where it was not measured, nothing is changed.
    """
    if sys.platform != "linux" or os.path.exists("/dev/nvidiactl"):
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # their numbers in malloc.h
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)  # threads share the first arena: the others cannot grow beyond a block


def _silence_abandoned_reads() -> None:
    """Hides the tracebacks of reads that Orbax abandons, in threads of its own, when one of them meets a broken file.

    The error of the broken file itself is raised where the checkpoint is restored.
    """

    def hides(error: BaseException | None) -> bool:
        in_thread = threading.current_thread() is not threading.main_thread()
        return in_thread and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not hides(error):
            sys.__excepthook__(kind, error, trace)

    def show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
        if not hides(unraisable.exc_value):
            sys.__unraisablehook__(unraisable)

    sys.excepthook, sys.unraisablehook = show_exception, show_unraisable
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def prepare_platform(config: ConfigDict) -> None:
    """Sets what the config says about the whole process: float64, the precision of float32, and the compilation cache.

    The image libraries are prepared too. Programs call this before they make the first array.
    """
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    prepare_image_libraries(config.max_image_pixels)
    if jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if config.tf32 else "highest")
    if config.compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(local_path(config.compilation_cache_dir)))
        # By default programs that compile in under a second, evaluation's or a small network's, are not kept.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@contextlib.contextmanager
def float64_enabled(enabled: bool) -> Iterator[None]:
    """A context in which every thread may make float64 arrays, if enabled; jax.enable_x64 is for its own thread."""
    before = _JAX_OPTIONS.jax_enable_x64
    jax.config.update("jax_enable_x64", before or enabled)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def loops_are_fast() -> bool:
    """Whether a training step is as fast inside a compiled loop as outside: everywhere but on a CPU.

    The weight gradients of convolutions that XLA compiles for a CPU are 30 times slower inside a loop.
    """
    return jax.default_backend() != "cpu"


def compiler_options(config: ConfigDict) -> CompilerOptions:
    """Returns XLA's options for this platform, as jax.jit takes them.

    On a CPU float32 convolutions are Eigen's, not YNNPACK's: the gradients of large maps' kernels are up to five times
    faster. In float64 Eigen's would be over twenty times slower, in bfloat16 twice. On a GPU convolutions too are part
    of the graphs of kernels that are started at once, and kernels are reproducible if config.deterministic asks for it;
    a CPU's and a TPU's always are.
    """
    if jax.default_backend() == "cpu" and config.dtype == "float32":
        return _known({"xla_cpu_experimental_ynn_fusion_type": ""})
    if jax.default_backend() != "gpu":
        return {}
    # By default each convolution ends a graph: ResNet-50's step on an H100 was 1.4 % slower (docs/benchmarks.md).
    options = _known({"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONVOLUTION"})
    if config.deterministic:
        return options | {"xla_gpu_deterministic_ops": True, "xla_gpu_exclude_nondeterministic_ops": True}
    return options


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
