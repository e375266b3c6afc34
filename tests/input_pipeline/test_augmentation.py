import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_normalize_in_the_jitted_step(dtype, tolerance):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    expected = (images.astype(np.float64) / 255 - MEAN) / STD
    on_device = jax.device_put(images)
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        result = jax.jit(lambda images: normalize(images, MEAN, STD, dtype))(on_device)
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert result.dtype == dtype
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=tolerance, atol=1e-6)
