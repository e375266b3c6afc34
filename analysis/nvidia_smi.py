"""The power draw of NVIDIA GPUs and the version of their driver, read by the program nvidia-smi."""

import contextlib
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator

import jax

MIN_READINGS = 5  # at least this many, because in the first ones the GPU is still idle


class PowerMeter:
    """The power draw of the GPUs, which nvidia-smi reads every half second.

    Attributes:
      watts: the sum over all GPUs in use; None if there is no nvidia-smi, or it cannot read the draw.
    """

    watts: float | None = None


@contextlib.contextmanager
def measuring_power() -> Iterator[PowerMeter]:
    """A context at whose end the meter holds the median draw; a mean would include the first readings, of idle GPUs."""
    meter = PowerMeter()
    if not _is_there():
        yield meter
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(gpu.id) for gpu in jax.local_devices())
    query = ["nvidia-smi", f"--id={visible}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    with subprocess.Popen([*query, "--loop-ms=500"], text=True, stdout=subprocess.PIPE) as process:
        try:
            yield meter
        finally:
            process.terminate()
            output = process.communicate()[0]
    meter.watts = _median_draw(output, jax.local_device_count())


def _median_draw(output: str, gpus: int) -> float | None:
    """The median of the total draw, from one line of output per GPU and reading; None if there are too few readings."""
    try:
        draws = [float(line) for line in output.split("\n") if line.strip()]
    except ValueError:
        return None
    totals = [sum(draws[first : first + gpus]) for first in range(0, len(draws) - gpus + 1, gpus)]
    return statistics.median(totals) if len(totals) >= MIN_READINGS else None


def driver_version() -> str | None:
    """Returns the version of the driver, or None if there is no NVIDIA GPU."""
    if _is_there():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        output = subprocess.run(query, capture_output=True, text=True).stdout.split()
        return output[0] if output else None
    return None


def _is_there() -> bool:
    return jax.default_backend() == "gpu" and shutil.which("nvidia-smi") is not None
