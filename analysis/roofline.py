"""What the machine can do at most: measured here and now, and as its maker's data sheet says.

The roofline is Williams, Waterman and Patterson 2009: a program that does I operations for each byte it moves runs at
no more than min(peak arithmetic, I x bandwidth).
"""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

COPY_BYTES = 2**29  # an array that no cache holds
LONG_ENOUGH = 0.05  # seconds of a matrix product against which starting it is nothing
LARGEST_SIDE = 16384
REPEATS = 5


class Ceilings(NamedTuple):
    """Arithmetic, floating-point operations a second, and memory, bytes a second read and written; all devices."""

    flops_per_second: float
    bytes_per_second: float

    def attainable(self, flops: float, moved: float) -> float:
        """Returns the operations a second at which a program of so many operations and bytes can run at most."""
        return min(self.flops_per_second, flops / moved * self.bytes_per_second)


class DataSheet(NamedTuple):
    """A device's dense peaks: operations a second by what float32 and bfloat16 are multiplied in, bytes a second."""

    bfloat16: float | None
    tensorfloat32: float | None
    float32: float | None
    bytes_per_second: float
    source: str


# By a regular expression of JAX's device_kind; the first that fits. A TPU multiplies float32 in bfloat16 by default.
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
    """Measures a large matrix product and a large copy on all devices of the mesh at once, the fastest of several.

    The factors are random: a device may run faster on zeros. The precision of products is that of the process, so that
    TF32 is measured where the networks use it.

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
    scale = jax.jit(lambda values: 1.5 * values, donate_argnums=0)  # in place, so that no page is new

    def copy() -> jax.Array:
        nonlocal values
        values = scale(values)
        return values

    return Ceilings(flops_per_second, 2 * mesh.size * COPY_BYTES / _fastest(copy))


def _fastest(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """The seconds of the fastest of several runs after one that compiles."""
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def data_sheet(device_kind: str) -> DataSheet | None:
    """Returns the peaks of a device by the name that JAX has for it, or None where they are not known here."""
    return next((sheet for name, sheet in DATA_SHEETS.items() if re.search(name, device_kind)), None)


def data_sheet_peak(device_kind: str, dtype: str, tf32: bool) -> float | None:
    """Returns the operations a second that a device's data sheet promises, or None where there is no such figure here.

    Args:
      device_kind: as JAX calls the device.
      dtype: of the computation.
      tf32: whether a GPU rounds the factors of float32 products to TF32.
    """
    sheet = data_sheet(device_kind)
    if sheet is None or dtype == "float64":
        return None
    return (tf32 and dtype == "float32" and sheet.tensorfloat32) or getattr(sheet, dtype)
