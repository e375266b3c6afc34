"""The memory that a program takes: of its devices, and of this process."""

import contextlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from training.environment import peak_host_memory

HOST_SHARE = 0.8  # of the free host memory: the most that a program on a CPU may take


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns what a compiled program needs on each device: arguments, results, intermediate arrays and its code."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def check_fit(compiled: jax.stages.Compiled) -> None:
    """Checks that a program fits into memory before it allocates anything, because a host would kill the process.

    Raises:
      MemoryError: if the program needs more than a device has, or on a CPU more than HOST_SHARE of the free memory.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    needed, free = compiled_bytes(compiled), stats.get("bytes_limit")
    if jax.default_backend() == "cpu":
        needed, free = needed * jax.local_device_count(), HOST_SHARE * free_host_bytes()
    if free and needed > free:
        raise MemoryError(f"the compiled program needs {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB")


def largest_that_fits(fits: Callable[[int], bool], most: int, multiple: int) -> int:
    """Returns the largest multiple of `multiple` below `most` that fits, by bisection; 0 if none fits."""
    low, high = 0, -(-most // multiple)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * multiple):
            low = middle
        else:
            high = middle
    return low * multiple


def free_host_bytes() -> int:
    """Returns the memory that this process can still get, from the machine or from its container if that has less."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        free = 1024 * int(re.findall(r"MemAvailable:\s+(\d+)", meminfo.read_text())[0])
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # the file does not exist, or contains "max"
        group = pathlib.Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


class PeakMemory:
    """The peak memory since this object was made, if it can be known.

    The counters of devices cannot be reset, so they are used only if they rose since then. The host's counter can be
    reset on Linux.
    """

    def __init__(self):
        """Resets the counter of the host, and stores the value of the devices' counter."""
        self._host_before = peak_host_memory()
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current memory, see proc(5)
            self._host_before = 0
        self._device_before = _device_peak()

    def device(self, compiled: jax.stages.Compiled) -> tuple[int, str]:
        """Returns the bytes of the device that took most, and their source: its counter, or the compiled program."""
        peak = _device_peak()
        return (peak, "device") if peak > self._device_before else (compiled_bytes(compiled), "compiled program")

    def host(self) -> int | None:
        """Returns the bytes of this process, or None if an earlier peak was higher."""
        peak = peak_host_memory()
        return peak if peak > self._host_before else None


def _device_peak() -> int:
    return max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())
