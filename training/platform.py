"""The settings of the process, of JAX (before the first array is made) and of XLA's compiler."""

import contextlib
import ctypes
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import prepare_image_libraries
from input_pipeline.files import local_path

CompilerOptions = dict[str, bool | str]

_JAX_OPTIONS: Any = jax.config  # Any, because type checkers do not know the attributes of jax.config


def prepare_process() -> None:
    """Sets up the process for training; programs call it first, before JAX starts its threads."""
    _keep_freed_memory()
    _silence_abandoned_reads()


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system.

    Otherwise the pages are requested again in each step, which on a CPU took a fifth of MobileNet's training step and a
    tenth of ResNet-50's. The threads share two arenas. A compilation leaves the first one in pieces. With only that
    one, malloc searches long lists in each step and the threads wait for each other; with more than two, more buffers
    are requested again, because only the first arena can grow without limit (docs/benchmarks.md). On machines with an
    NVIDIA GPU, where the effect was not measured, nothing is changed.
    """
    if sys.platform != "linux" or os.path.exists("/dev/nvidiactl"):
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # the numbers of these parameters in malloc.h
        mallopt(trim_threshold, -1)  # never return memory
        mallopt(mmap_max, 0)
        mallopt(arena_max, 2)


def _silence_abandoned_reads() -> None:
    """Hides the tracebacks of reads that Orbax's threads abandon when another read finds a damaged file.

    The error of the damaged file itself is still raised where the checkpoint is restored.
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
    """Applies the options that concern the whole process: float64, the precision of float32, the compilation cache.

    It also sets up the image libraries, and starts cuDNN on GPUs. Programs call it before they compute anything.
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
    if jax.default_backend() == "gpu":
        _start_cudnn()


def _start_cudnn() -> None:
    """Runs a small convolution on each GPU of this process, outside CUDA graphs.

    cuDNN cannot start while a CUDA graph is being recorded: XLA then fails with "No DNN support for stream". A program
    whose compilation timed its kernels has started cuDNN by that. A program from the compilation cache has not, and the
    recording of its graph (compiler_options) would be the first use.
    """
    convolve = jax.jit(
        lambda x, kernel: jax.lax.conv(x, kernel, (1, 1), "SAME"),
        compiler_options={"xla_gpu_enable_command_buffer": ""},
    )
    ones = np.ones((1, 8, 8, 8), np.float32), np.ones((8, 8, 3, 3), np.float32)
    for device in jax.local_devices():
        jax.block_until_ready(convolve(*jax.device_put(ones, device)))


@contextlib.contextmanager
def float64_enabled(enabled: bool) -> Iterator[None]:
    """A context in which every thread can make float64 arrays, if enabled; jax.enable_x64 concerns one thread only."""
    before = _JAX_OPTIONS.jax_enable_x64
    jax.config.update("jax_enable_x64", before or enabled)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def out_of_memory(error: Exception) -> str:
    """Returns in one line how XLA, CUDA or its libraries say that a device's memory is full; "" for another error."""
    full = re.search("RESOURCE_EXHAUSTED|out[ _]of[ _]memory|ALLOC_FAILED", str(error), re.IGNORECASE)
    return str(error).splitlines()[0][:300] if full and isinstance(error, jax.errors.JaxRuntimeError) else ""


def loops_are_fast() -> bool:
    """Whether a training step inside a compiled loop is as fast as outside; on a CPU it is not.

    XLA's weight gradients of convolutions are 20 to 40 times slower on a CPU if they are inside a loop.
    """
    return jax.default_backend() != "cpu"


def compiler_options(config: ConfigDict) -> CompilerOptions:
    """Returns XLA's options for this platform, as jax.jit takes them.

    CPU: float32 convolutions use Eigen instead of YNNPACK, because weight gradients of large maps are up to 13 times
    faster with it. In float64 Eigen is more than twenty times slower, in bfloat16 twice.

    GPU: convolutions are included in CUDA graphs (command buffers). If config.deterministic is true, only reproducible
    kernels are used; those of a CPU or a TPU always are.
    """
    if jax.default_backend() == "cpu" and config.dtype == "float32":
        return _known({"xla_cpu_experimental_ynn_fusion_type": ""})
    if jax.default_backend() != "gpu":
        return {}
    # By default each convolution ends a CUDA graph, which made ResNet-50's step on an H100 1.4 % slower
    # (docs/benchmarks.md).
    options = _known({"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONVOLUTION"})
    if config.deterministic:
        return options | {"xla_gpu_deterministic_ops": True, "xla_gpu_exclude_nondeterministic_ops": True}
    return options


def _known(options: CompilerOptions) -> CompilerOptions:
    """Returns the options, or none if this version of XLA lacks one of them, because some are experimental."""
    return options if _compiles_with(tuple(options.items())) else {}


@functools.cache
def _compiles_with(options: tuple[tuple[str, bool | str], ...]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
