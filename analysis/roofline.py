"""The peaks of the devices: as measured in this run, and as in the data sheet.

The roofline is from Williams, Waterman and Patterson 2009: a program with I operations per byte that it moves runs at
min(peak arithmetic, I x bandwidth) at most.
"""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

COPY_BYTES = 2**29  # of an array larger than any cache
LONG_ENOUGH = 0.05  # seconds of a matrix product, so that the time to start it is negligible
LARGEST_SIDE = 16384
REPEATS = 5


class Ceilings(NamedTuple):
    """Peaks of all devices together: floating-point operations per second, and bytes read and written per second."""

    flops_per_second: float
    bytes_per_second: float

    def attainable(self, flops: float, moved: float) -> float:
        """Returns the most operations per second of a program with so many operations and bytes."""
        return min(self.flops_per_second, flops / moved * self.bytes_per_second)


class DataSheet(NamedTuple):
    """A device's peaks without sparsity: operations per second in each format of products, and bytes per second."""

    bfloat16: float | None
    tensorfloat32: float | None
    float32: float | None
    bytes_per_second: float
    source: str


# By regular expressions for JAX's device_kind; the first match counts. A TPU multiplies float32 in bfloat16 by default.
DATA_SHEETS = {
    r"B200": DataSheet(2250e12, 1125e12, 75e12, 8.0e12, "NVIDIA HGX B200 data sheet, a GPU's share"),
    r"H200 NVL": DataSheet(835.5e12, 417.5e12, 60e12, 4.8e12, "NVIDIA H200 data sheet, NVL"),
    r"H200": DataSheet(989.5e12, 494.5e12, 67e12, 4.8e12, "NVIDIA H200 data sheet, SXM"),
    r"H100 NVL": DataSheet(835.5e12, 417.5e12, 60e12, 3.9e12, "NVIDIA H100 data sheet, NVL"),
    r"H100 PCIe": DataSheet(756e12, 378e12, 51e12, 2.0e12, "NVIDIA H100 data sheet of 2022, PCIe"),
    r"H100": DataSheet(989.5e12, 494.5e12, 67e12, 3.35e12, "NVIDIA H100 data sheet, SXM"),
    r"A100.*PCI.*80GB|A100 80GB PCI": DataSheet(
        312e12, 156e12, 19.5e12, 1.935e12, "NVIDIA A100 data sheet, 80 GB PCIe"
    ),
    r"A100.*80GB": DataSheet(312e12, 156e12, 19.5e12, 2.039e12, "NVIDIA A100 data sheet, 80 GB SXM"),
    r"A100": DataSheet(312e12, 156e12, 19.5e12, 1.555e12, "NVIDIA A100 data sheet, 40 GB"),
    r"V100.*PCI": DataSheet(None, None, 14e12, 0.9e12, "NVIDIA V100 data sheet, PCIe"),
    r"V100": DataSheet(None, None, 15.7e12, 0.9e12, "NVIDIA V100 data sheet, SXM2"),
    r"L40S": DataSheet(362e12, 183e12, 91.6e12, 0.864e12, "NVIDIA L40S data sheet"),
    r"\bL4\b": DataSheet(121e12, 60e12, 30.3e12, 0.3e12, "NVIDIA L4 data sheet"),
    r"\bT4\b": DataSheet(None, None, 8.1e12, 0.32e12, "NVIDIA T4 data sheet"),
    r"RTX 4090": DataSheet(165.2e12, 82.6e12, 82.6e12, 1.008e12, "NVIDIA Ada GPU architecture, appendix A"),
    r"RTX 3090(?! Ti)": DataSheet(71e12, 35.6e12, 35.6e12, 0.936e12, "NVIDIA Ampere GA102 architecture, appendix A"),
    r"TPU v3": DataSheet(61.5e12, None, 61.5e12, 0.45e12, "Google Cloud TPU v3, a core: half a chip"),
    r"TPU v4(?! lite)": DataSheet(275e12, None, 275e12, 1.228e12, "Google Cloud TPU v4"),
    r"TPU v5 ?(lite|e)": DataSheet(197e12, None, 197e12, 0.819e12, "Google Cloud TPU v5e"),
    r"TPU v5": DataSheet(459e12, None, 459e12, 2.765e12, "Google Cloud TPU v5p"),
    r"TPU v6": DataSheet(918e12, None, 918e12, 1.64e12, "Google Cloud TPU v6e"),
}


def measure_ceilings(dtype: str, mesh: Mesh) -> Ceilings:
    """Measures a large matrix product and a large copy on all devices of the mesh at once; the fastest of several runs.

    The factors are random, because a device may run faster on zeros. Products have the default precision of the
    process, so TF32 is measured if the networks use it.

    Args:
      dtype: of the product: float32, bfloat16 or float64.
      mesh: with one axis, data.
    """
    split, replicated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    side, seconds = 512, 0.0
    while seconds < LONG_ENOUGH and side < LARGEST_SIDE:
        side *= 2
        key = jax.random.key(side)
        left, right = (
            jax.jit(jax.random.normal, static_argnums=(1, 2), out_shardings=sharding)(key, shape, jnp.dtype(dtype))
            for shape, sharding in (((mesh.size * side, side), split), ((side, side), replicated))
        )
        seconds = _fastest(jax.jit(jnp.matmul), left, right)
    flops_per_second = 2 * mesh.size * side**3 / seconds
    del left, right

    values = jax.device_put(jnp.ones(mesh.size * COPY_BYTES // 4, jnp.float32), split)
    scale = jax.jit(lambda values: 1.5 * values, donate_argnums=0)  # in place: new pages would take time

    def copy() -> jax.Array:
        nonlocal values
        values = scale(values)
        return values

    return Ceilings(flops_per_second, 2 * mesh.size * COPY_BYTES / _fastest(copy))


def _fastest(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """The seconds of the fastest of several runs; the first run, which compiles, does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def data_sheet(device_kind: str) -> DataSheet | None:
    """Returns the peaks of a device by its name in JAX, or None if they are unknown."""
    return next((sheet for name, sheet in DATA_SHEETS.items() if re.search(name, device_kind)), None)


def data_sheet_peak(device_kind: str, dtype: str, tf32: bool) -> float | None:
    """Returns the operations per second of a device's data sheet, or None if the figure is unknown.

    Args:
      device_kind: the device's name in JAX.
      dtype: of the computation.
      tf32: whether a GPU rounds the factors of float32 products to TF32.
    """
    sheet = data_sheet(device_kind)
    if sheet is None or dtype == "float64":
        return None
    return (tf32 and dtype == "float32" and sheet.tensorfloat32) or getattr(sheet, dtype)
