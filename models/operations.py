"""Convolution, bias, batch normalisation and max pooling in the form that XLA compiles well; the same to rounding.

On an accelerator these are the plain operations of jax.lax. XLA's compiler for CPUs is slow at some of those, and there
other forms of the same sums run many times faster (docs/benchmarks.md). `lax.platform_dependent` chooses when a program
is compiled: a traced program holds both, and what analysis/ counts is the plain one, the last.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int) -> jax.Array:
    """Convolves maps (N, H, W, I) with a kernel (KH, KW, I / groups, O) to (N, H', W', O).

    Args:
      x: the maps.
      kernel: of the same type.
      stride: pixels, down and across.
      padding: pixels above and below, and left and right.
      groups: into which features in and out are divided.
    """
    in_features, out_features = x.shape[-1], kernel.shape[-1]

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """A 1x1 convolution; the gradient of its kernel is a product too, and nothing is transposed for it."""
        x = x[:, ::stride, ::stride]
        return (x.reshape(-1, in_features) @ kernel[0, 0]).reshape(*x.shape[:-1], out_features)

    def product_of_windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """A convolution of few positions: each as a row of what it sees. XLA runs plain loops there, not Eigen."""
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        rows = jnp.concatenate([shifted for _, shifted in _windows(padded, kernel.shape[:2], stride)], -1)
        y = rows.reshape(-1, rows.shape[-1]) @ kernel.reshape(-1, out_features)
        return y.reshape(*rows.shape[:-1], out_features)

    if groups == in_features == out_features:
        shifted = functools.partial(_convolve_depthwise, stride=stride, padding=padding)
        return lax.platform_dependent(x, kernel, cpu=shifted, default=plain)
    if 1 < groups < in_features:
        # As one convolution XLA would gather the whole batch on every device; depthwise ones stay where they are.
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([convolve(*part, stride, padding, groups=1) for part in parts], -1)
    if groups > 1:
        return plain(x, kernel)
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        return lax.platform_dependent(x, kernel, cpu=product, default=plain)
    sides = zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)
    positions = math.prod((size + sum(edges) - side) // stride + 1 for size, edges, side in sides)
    if positions < math.prod(kernel.shape[:2]):
        return lax.platform_dependent(x, kernel, cpu=product_of_windows, default=plain)
    return plain(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """For each element of the kernel the map, shifted and scaled; the sum of them all."""
    padded, factors = jnp.pad(x, ((0, 0), *padding, (0, 0))), _wide(kernel)
    terms = (shifted * factors[*offset, 0] for offset, shifted in _windows(padded, kernel.shape[:2], stride))
    return sum(terms).astype(x.dtype)


def _convolve_depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding):
    return _convolve_depthwise(x, kernel, stride, padding), (x, kernel)


def _convolve_depthwise_backward(stride: int, padding: Padding, saved: tuple[jax.Array, ...], gradient: jax.Array):
    x, kernel = saved
    window, factors = kernel.shape[:2], _wide(kernel)
    padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))
    sums = [_sum_positions((_wide(shifted) * gradient)[None]) for _, shifted in _windows(padded, window, stride)]
    kernel_gradient = jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)

    def term(offset: tuple[int, int], gradient: jax.Array) -> jax.Array:
        return gradient * factors[*offset, 0]

    return _sum_over_windows(
        term, (gradient, 0), shape=x.shape, window=window, stride=stride, padding=padding
    ), kernel_gradient


_convolve_depthwise.defvjp(_convolve_depthwise_forward, _convolve_depthwise_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias (C,) to maps (N, H, W, C) of the same type."""
    return x + bias


def _add_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return x + bias, None


def _add_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, _sum_positions(gradient[None]).reshape(-1).astype(gradient.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises groups of maps: Ioffe and Szegedy 2015, algorithm 1.

    Its gradient is the paper's (section 3), which reads the maps twice and keeps nothing but them; no gradient flows
    through the mean and the variance that it returns.

    Args:
      x: (groups, N, H, W, C).
      scale: (C,), at least float32, as all arithmetic is.
      bias: (C,).
      epsilon: added to the variance.

    Returns:
      The normalised maps, of x's type, and each group's mean and biased variance, (groups, 1, 1, 1, C).
    """
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float):
    wide = x.astype(scale.dtype)
    mean, var = mean_and_variance(wide)
    inverse = lax.rsqrt(var + epsilon)
    y = ((wide - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, var), (x, mean, inverse, scale)


def _normalize_backward(epsilon: float, saved: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]):
    x, mean, inverse, scale = saved
    gradient, count = gradients[0].astype(scale.dtype), math.prod(x.shape[1:-1])
    normalized = (x.astype(scale.dtype) - mean) * inverse
    bias_gradient = _sum_positions(gradient)
    scale_gradient = _sum_positions(gradient * normalized)
    x_gradient = inverse * scale * (gradient - (bias_gradient + normalized * scale_gradient) / count)
    return x_gradient.astype(x.dtype), scale_gradient.sum((0, 1, 2, 3)), bias_gradient.sum((0, 1, 2, 3))


normalize.defvjp(_normalize_forward, _normalize_backward)


def mean_and_variance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each feature's mean and biased variance over groups (groups, N, H, W, C): (groups, 1, 1, 1, C)."""
    count = math.prod(x.shape[1:-1])
    mean = _sum_positions(x) / count
    # Two passes: E[x^2] - E[x]^2 loses all digits where the mean is large.
    return mean, _sum_positions(jnp.square(x - mean)) / count


def max_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Takes the maximum over square windows; a gradient goes to the first of equal maxima, as in PyTorch.

    Args:
      x: maps, (N, H, W, C).
      window: its side, pixels.
      stride: pixels.
      padding: pixels above and below, and left and right, which never win.
    """

    def plain(x: jax.Array) -> jax.Array:
        edges = ((0, 0), *padding, (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), edges)

    return lax.platform_dependent(x, cpu=lambda x: _max_of_windows(x, (window, window), stride, padding), default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_of_windows(x: jax.Array, window: tuple[int, int], stride: int, padding: Padding) -> jax.Array:
    """The maximum of shifted maps, on a CPU many times faster than a window that slides."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    return functools.reduce(jnp.maximum, (shifted for _, shifted in _windows(padded, window, stride)))


def _max_of_windows_forward(x: jax.Array, window: tuple[int, int], stride: int, padding: Padding):
    y = _max_of_windows(x, window, stride, padding)
    return y, (x, y)


def _max_of_windows_backward(
    window: tuple[int, int], stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    x, y = saved
    edges = ((0, 0), *padding, (0, 0))
    padded = jnp.pad(x, edges, constant_values=-jnp.inf)
    winner = jnp.full(y.shape, -1, jnp.int8)
    for number, (_, shifted) in enumerate(_windows(padded, window, stride)):
        winner = jnp.where((winner < 0) & (shifted == y), jnp.int8(number), winner)

    def term(offset: tuple[int, int], winner: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.where(winner == offset[0] * window[1] + offset[1], gradient, 0)

    parts = (winner, -1), (gradient, 0)
    return (_sum_over_windows(term, *parts, shape=x.shape, window=window, stride=stride, padding=padding),)


_max_of_windows.defvjp(_max_of_windows_forward, _max_of_windows_backward)


def _windows(padded: jax.Array, window: tuple[int, int], stride: int):
    """Yields each offset (row, column) in a window, by rows, and the map of what all windows have there."""
    rows, columns = ((size - side) // stride * stride + 1 for size, side in zip(padded.shape[1:3], window, strict=True))
    for row in range(window[0]):
        for column in range(window[1]):
            yield (row, column), padded[:, row : row + rows : stride, column : column + columns : stride]


def _sum_over_windows(
    term: Callable[..., jax.Array],
    *parts: tuple[jax.Array, float],
    shape: tuple[int, ...],
    window: tuple[int, int],
    stride: int,
    padding: Padding,
) -> jax.Array:
    """Returns for each pixel the sum over the windows that it lies in: the way back from windows to pixels.

    Args:
      term: what a window adds to its pixel at an offset (row, column), from the parts.
      *parts: maps with a value for each window, and the value around them, for which the term is 0.
      shape: of the pixels, (N, H, W, C).
      window: its sides, pixels.
      stride: pixels.
      padding: pixels above and below, and left and right.
    """
    # A pixel at stride * p + phase lies at the offset stride * k + phase of the window p - k.
    images, *sizes, features = shape
    reach = [-(-side // stride) for side in window]  # windows that a pixel can lie in, down or across
    blocks = [-(-(before + size + after) // stride) for size, (before, after) in zip(sizes, padding, strict=True)]
    counts = parts[0][0].shape[1:3]
    around = [(side - 1, max(block - count, 0)) for side, block, count in zip(reach, blocks, counts, strict=True)]
    edges = ((0, 0), *around, (0, 0))
    # A barrier: fused into what follows, padding would be a question at every pixel.
    maps = lax.optimization_barrier([jnp.pad(part, edges, constant_values=value) for part, value in parts])

    def gather(phase: tuple[int, int]) -> jax.Array:
        total = 0
        for row in range(phase[0], window[0], stride):
            for column in range(phase[1], window[1], stride):
                top, left = reach[0] - 1 - row // stride, reach[1] - 1 - column // stride
                here = (slice(None), slice(top, top + blocks[0]), slice(left, left + blocks[1]))
                total += _wide(term((row, column), *(part[here] for part in maps)))
        return jnp.broadcast_to(total, (images, *blocks, features)).astype(parts[-1][0].dtype)

    phases = jnp.stack([jnp.stack([gather((row, column)) for column in range(stride)], 3) for row in range(stride)], 2)
    whole = phases.reshape(images, blocks[0] * stride, blocks[1] * stride, features)
    (top, _), (left, _) = padding
    return whole[:, top : top + sizes[0], left : left + sizes[1]]


def _sum_positions(x: jax.Array) -> jax.Array:
    """Sums groups of maps (groups, N, H, W, C) in at least float32 to (groups, 1, 1, 1, C)."""
    x = _wide(x)

    def product_with_ones(x: jax.Array) -> jax.Array:
        """Image by image: a reduction would walk down each feature by itself, through the cache line by line."""
        groups, images, height, width, features = x.shape
        # What is to be summed is often computed here: bands of rows, added first, leave less of it to be written.
        bands = max(count for count in range(1, 9) if height % count == 0)
        band = height // bands
        x = sum(x[:, :, start : start + band] for start in range(0, height, band))
        x = x.reshape(groups, images, band * width, features)
        sums = jnp.ones((groups, images, 1, band * width), x.dtype) @ x
        return sums.sum(1).reshape(groups, 1, 1, 1, features)

    return lax.platform_dependent(x, cpu=product_with_ones, default=lambda x: x.sum((1, 2, 3), keepdims=True))


def _wide(x: jax.Array) -> jax.Array:
    """Makes numbers at least float32, in which sums are taken."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
