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
        },
        "git_commit": git_commit(),
    }


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
    """Returns the git commit of this program, with "-dirty" if a file was changed since; None without git."""
    root = pathlib.Path(__file__).parent.parent
    try:
        git = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True
        )
    except OSError:  # git is not installed
        return None
    return git.stdout.strip() or None
