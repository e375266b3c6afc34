"""The environment of a run: versions, hardware and git commit, and the peak memory of the process."""

import importlib.metadata
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe_environment() -> dict[str, Any]:
    """Returns versions, hardware and git commit, in the form in which results and workdirs record them."""
    return {
        "versions": describe_versions(),
        "hardware": {
            "platform": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
            "cpu_cores": os.cpu_count(),
            "machine": platform.machine(),
            "processor": _processor(),
        },
        "git_commit": git_commit(),
    }


def _processor() -> str:
    """The host's processor, if the system knows it, and its vector instructions: speeds differ by them."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    vectors = "AVX-512" if re.search(r"\bavx512f\b", text) else "AVX2" if re.search(r"\bavx2\b", text) else ""
    features = [vectors, "AMX" if re.search(r"\bamx_tile\b", text) else ""]
    return ", ".join([name[1] if name else platform.processor() or platform.machine(), *filter(None, features)])


def describe_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that the result of a run may depend on."""
    versions = {name: _installed_version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: version for name, version in versions.items() if version}


def peak_host_memory() -> int:
    """Returns the peak memory of this process so far, bytes."""
    status = pathlib.Path("/proc/self/status")
    # On Linux ru_maxrss may count the memory of the parent process, so VmHWM is better; gVisor's file has no VmHWM.
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return 1024 * int(peak[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Returns the git commit of this program, with "-dirty" if its code was changed since; None without git.

    The pages and stored results are no code: the benchmarks write them, so they change while a study runs.
    """
    git = ["git", "-C", str(pathlib.Path(__file__).parent.parent)]
    code = [".", ":!docs", ":!benchmarks/results", ":!README.md"]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], capture_output=True).returncode == 1
    except OSError:  # git is not installed
        return None
    return commit.stdout.strip() + "-dirty" * changed if commit.returncode == 0 else None
