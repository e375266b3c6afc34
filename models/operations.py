"""The operations that the networks are built of: convolution, bias, batch normalisation and max pooling.

An accelerator compiles what stands here. A CPU gets other forms of some of it, which give the same numbers to rounding
and run many times faster there: models/cpu_operations.py. `_choose` is the only place that decides between the two.

Everything here can be differentiated forward, backward, and both in turn. `jax.jit(..., inline=True)` leaves no trace in
a program: layers of the same shapes are traced once, which halves the time that it takes to trace a network.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from models import cpu_operations

Padding = tuple[tuple[int, int], tuple[int, int]]


@functools.partial(jax.jit, static_argnames=("stride", "padding", "groups"), inline=True)
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int) -> jax.Array:
    """Convolves maps (N, H, W, I) with a kernel (KH, KW, I / groups, O) to (N, H', W', O).

    Args:
      x: the maps.
      kernel: the kernel, of the same type as the maps.
      stride: step of the kernel, down and across, in pixels.
      padding: pixels of zeros above and below, and left and right.
      groups: number of groups that the features in and out are divided into; each group is convolved by itself.
    """
    if 1 < groups < x.shape[-1]:
        # As one convolution, XLA would gather the whole batch on every device. Depthwise convolutions are not affected.
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([convolve(*part, stride, padding, groups=1) for part in parts], -1)
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return _choose(plain, cpu_operations.find_convolution(x.shape, kernel.shape, stride, padding, groups), x, kernel)


@functools.partial(jax.jit, inline=True)
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias (C,) to maps (N, H, W, C) of the same type."""
    return _add_bias(x, bias)


@jax.custom_jvp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + bias


@_add_bias.defjvp
def _add_bias_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    x_dot, bias_dot = tangents
    return _add_bias(*primals), x_dot + _spread(bias_dot, x_dot.shape)


@functools.partial(jax.jit, static_argnames=("window", "stride", "padding"), inline=True)
def max_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Takes the maximum over square windows; the gradient goes to the first of equal maxima, as in PyTorch.

    Args:
      x: maps, (N, H, W, C).
      window: side of the window, in pixels.
      stride: step of the window, down and across, in pixels.
      padding: pixels above and below, and left and right; they are never the maximum.
    """

    def plain(x: jax.Array) -> jax.Array:
        edges = ((0, 0), *padding, (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), edges)

    return _choose(plain, lambda x: cpu_operations.max_pool(x, (window, window), stride, padding), x)


@functools.partial(jax.jit, static_argnames="epsilon", inline=True)
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises groups of maps with the statistics of each group: Ioffe and Szegedy 2015, algorithm 1.

    Args:
      x: maps, (groups, N, H, W, C).
      scale: (C,), at least float32. All arithmetic is of this type.
      bias: (C,), of the type of scale.
      epsilon: added to the variance.

    Returns:
      The normalised maps, of x's type, and each group's mean and biased variance, (groups, 1, 1, 1, C).
    """
    return _normalize(x, scale, bias, epsilon)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    wide = x.astype(scale.dtype)
    mean, var = mean_and_variance(wide)
    return ((wide - mean) * (lax.rsqrt(var + epsilon) * scale) + bias).astype(x.dtype), mean, var


@_normalize.defjvp
def _normalize_jvp(
    epsilon: float, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """The derivative of the formula, in the order that makes its transpose the paper's gradient (section 3).

    The factors of the last two terms are put together before they are spread over the maps. Transposed, each spreading
    is one sum over the maps, and these two sums are all that the backward pass needs (JAX alone would make more).
    """
    x, scale, _ = primals
    y, mean, var = _normalize(*primals, epsilon)
    inverse = lax.rsqrt(var + epsilon)
    normalized = (x.astype(scale.dtype) - mean) * inverse
    x_dot, scale_dot, bias_dot = (tangent.astype(scale.dtype) for tangent in tangents)
    mean_dot = x_dot.mean((1, 2, 3), keepdims=True)
    covariance = (normalized * x_dot).mean((1, 2, 3), keepdims=True)
    factor = inverse * scale
    y_dot = factor * x_dot
    y_dot += normalized * _spread(scale_dot - factor * covariance, x.shape)
    y_dot += _spread(bias_dot - factor * mean_dot, x.shape)
    return (y, mean, var), (y_dot.astype(x.dtype), mean_dot, 2 / inverse * covariance)


def mean_and_variance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each feature's mean and biased variance over groups of maps: (groups, N, H, W, C) to (groups, 1, 1, 1, C).

    The variance takes a second pass over the maps: E[x^2] - E[x]^2 loses all digits where the mean is large.
    """
    count = math.prod(x.shape[1:-1])
    mean = _sum_positions(x) / count
    return mean, _sum_positions(jnp.square(x - mean)) / count


def _sum_positions(x: jax.Array) -> jax.Array:
    """Sums each feature over groups of maps in at least float32: (groups, N, H, W, C) to (groups, 1, 1, 1, C)."""
    plain = functools.partial(jnp.sum, axis=(1, 2, 3), keepdims=True)
    return _choose(plain, cpu_operations.sum_positions, cpu_operations.widen(x))


def _spread(features: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats features, (C,) or (groups, 1, 1, 1, C), at all positions of maps of a shape: the way back of a sum.

    It is for tangents. A backward pass transposes it to a sum over all positions, which is that of _sum_positions.
    """
    plain = functools.partial(jnp.broadcast_to, shape=shape)
    for_cpu = functools.partial(cpu_operations.spread, shape=shape)
    return _choose(plain, for_cpu, cpu_operations.widen(features)).astype(features.dtype)


def _choose(plain: Callable[..., jax.Array], for_cpu: Callable[..., jax.Array] | None, *arrays: jax.Array) -> jax.Array:
    """Applies an operation to arrays: on a CPU in its own form, if there is one, and elsewhere in the plain form.

    The choice falls when the program is compiled. A traced program holds both forms, the plain one last: analysis/
    counts that one.
    """
    return lax.platform_dependent(*arrays, cpu=for_cpu, default=plain) if for_cpu else plain(*arrays)
