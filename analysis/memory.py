"""How much memory a program takes: of its devices, and of this process."""

import contextlib
import os
import pathlib
import re

import jax

from training.environment import peak_host_memory

HOST_SHARE = 0.8  # of the free host memory that a program may take where the host's is the devices'


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns what a compiled program needs on each device: arguments, results and what lies between them."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def check_fit(compiled: jax.stages.Compiled) -> None:
    """Refuses a program that cannot run, before anything is allocated: a host does not refuse, it kills.

    Raises:
      MemoryError: if it needs more than a device has, or on a CPU more than HOST_SHARE of what the host has free.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    needed, free = compiled_bytes(compiled), stats.get("bytes_limit")
    if jax.default_backend() == "cpu":
        needed, free = needed * jax.local_device_count(), HOST_SHARE * free_host_bytes()
    if free and needed > free:
        raise MemoryError(f"the compiled program needs {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB")


def free_host_bytes() -> int:
    """Returns the memory that this process could still get: the machine's, or its container's where that is less."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text()).group(1))
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        group = pathlib.Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


class PeakMemory:
    """The most memory taken since it was made, as far as that can be known.

    The devices' counters cannot be set back: they tell only where they rose above what was there before. The host's can
    on Linux; elsewhere it is as with the devices.
    """

    def __init__(self):
        """Begins to watch."""
        self._host_before = peak_host_memory()
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is held now
            self._host_before = 0
        self._device_before = _device_peak()

    def device(self, compiled: jax.stages.Compiled) -> tuple[int, str]:
        """Returns bytes of the device that took most, and who says so: its counter, or else the compiled program."""
        peak = _device_peak()
        return (peak, "device") if peak > self._device_before else (compiled_bytes(compiled), "compiled program")

    def host(self) -> int | None:
        """Returns bytes of this process, or None where an earlier peak hides it."""
        peak = peak_host_memory()
        return peak if peak > self._host_before else None


def _device_peak() -> int:
    return max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())
