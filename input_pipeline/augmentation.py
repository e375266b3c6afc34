"""What happens to a batch on the device, inside the jitted step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
    """Scales images to zero mean and unit deviation.

    Args:
      images: uint8 (N, H, W, C), 0 to 255.
      mean: of each channel, 0 to 1.
      std: of each channel, 0 to 1.
      dtype: of the result; the arithmetic is at least float32.

    Returns:
      (images / 255 - mean) / std, (N, H, W, C) in dtype.
    """
    compute = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(mean, compute), jnp.asarray(std, compute)
    return ((images.astype(compute) / 255 - mean) / std).astype(dtype)
