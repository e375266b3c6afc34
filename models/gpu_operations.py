"""What an NVIDIA GPU runs instead of the plain operations of models/operations.py: the same numbers, faster.

Measured on an H100 (docs/benchmarks.md): cuDNN pads the few features of an image to eight and convolves slowly with a
stride; and XLA's gradient of max pooling (select-and-scatter) writes maps of indices in float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from models import cpu_operations
from models.cpu_operations import Padding


def find_convolution(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, padding: Padding, groups: int
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """Returns the faster form of operations.convolve for these shapes, or None where a GPU takes the plain one."""
    if stride > 1 and x_shape[-1] <= 4 and groups == 1 and min(kernel_shape[:2]) > 1:
        return lambda x, kernel: _convolve_blocks(x, kernel, stride, padding)
    return None


def find_attention(dtype: jnp.dtype) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None:
    """Returns cuDNN's form of operations.attend, or None where a GPU takes the plain one.

    cuDNN's has 16-bit numbers only and no forward-mode derivative, and runs on NVIDIA's GPUs from Ampere (8.0) on. JAX
    traces it only where cuDNN is installed.
    """
    generation = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")[0]  # AMD's is such as gfx942
    if jnp.finfo(dtype).bits > 16 or not generation.isdecimal() or int(generation) < 8:
        return None
    return _attend


@jax.custom_vjp
def _attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _attend_in_training(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """_attend, where an odd length gets one more token, of zeros, which no other token attends to.

    JAX refuses gradients of an odd length, such as the 197 tokens of ViT-B/16: cuDNN has none of an odd length with a
    bias, and JAX takes the missing bias for one.
    """
    images, length = query.shape[:2]
    if length % 2 == 0:
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    longer = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = jnp.full(images, length, jnp.int32)
    y = jax.nn.dot_product_attention(*longer, key_value_seq_lengths=lengths, implementation="cudnn")
    return y[:, :length]


_attend.defvjp(functools.partial(jax.vjp, _attend_in_training), lambda vjp, gradient: vjp(gradient))


def _convolve_blocks(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A strided convolution of few features as one without stride: blocks of stride x stride pixels become features."""
    images, height, width, features = x.shape
    sides = [-(-side // stride) for side in kernel.shape[:2]]  # blocks that the kernel covers
    positions = [
        (size + sum(edges) - side) // stride + 1
        for size, edges, side in zip((height, width), padding, kernel.shape[:2], strict=True)
    ]
    blocks = [count + side - 1 for count, side in zip(positions, sides, strict=True)]
    # Edges may be negative: pixels that no window reaches are cut off.
    edges = [
        (before, count * stride - size - before, 0)
        for size, (before, _), count in zip((height, width), padding, blocks, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    x = x.reshape(images, blocks[0], stride, blocks[1], stride, features).transpose(0, 1, 3, 2, 4, 5)
    missing = [(0, count * stride - side) for count, side in zip(sides, kernel.shape[:2], strict=True)]
    kernel = jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    kernel = kernel.reshape(sides[0], stride, sides[1], stride, features, -1).transpose(0, 2, 1, 3, 4, 5)
    return lax.conv_general_dilated(
        x.reshape(images, *blocks, stride * stride * features),
        kernel.reshape(*sides, stride * stride * features, -1),
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: tuple[int, int], stride: int, padding: Padding) -> jax.Array:
    """operations.max_pool with the gradient that a CPU has."""
    edges = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, stride, stride, 1), edges)


@max_pool.defjvp
def _max_pool_jvp(
    window: tuple[int, int], stride: int, padding: Padding, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y = max_pool(*primals, window, stride, padding)
    return y, cpu_operations.max_pool_tangent(*primals, y, *tangents, window, stride, padding)
