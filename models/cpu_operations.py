"""What a CPU runs instead of the plain operations of models/operations.py: the same numbers to rounding, faster.

XLA's compiler for CPUs is slow at some operations (docs/benchmarks.md has the figures):

- It runs a 1x1 convolution and its gradients as convolutions. As matrix products they are faster.
- A convolution of few positions, a depthwise convolution and a window that slides are plain loops without vector
  instructions. The same sums over shifted maps are vectorised.
- It computes the sum of a residual block again for every operation that reads it or a later block's sum. It does the
  same with the gradient of concatenated maps, and with the result and the gradient of a depthwise convolution.
- A sum over positions strides over the features and misses the cache. A product with a vector of ones does not.
- Inside a loop (lax.scan, lax.fori_loop) the weight gradients of convolutions do not reach the fast library (Eigen) and
  run 20 to 40 times slower. So nothing loops on a CPU: training unrolls its loops there.

**How these forms are differentiated.** Where JAX's own derivative would be slow, a form has a rule for its derivative
(`jax.custom_jvp`) that is linear in the tangents, so that all of JAX's derivatives work. In a backward pass JAX
transposes that rule. Where a gradient has a fast form of its own, the rule is written as the transpose of that form
(`jax.linear_transpose`): transposed a second time, it is the fast form again.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]


# Results that are read several times


def store(x: jax.Array) -> jax.Array:
    """Returns x; the compiled program writes x to memory, instead of computing it anew wherever it is read.

    XLA's compiler for CPUs fuses element-wise operations into all their readers. In a residual network the sum of each
    block contains that of the block before, so the work would grow with the square of the number of blocks: fusions
    of ResNet-152 had 185 operands. XLA removes barriers before it fuses. A condition stays and separates fusions. Its
    derivative is a condition too, so the gradient of x is stored as well.
    """
    always = lax.optimization_barrier(True)  # keeps XLA from removing the condition
    return lax.cond(always, lambda x: x, lambda x: -x, x)


# Convolutions


def find_convolution(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, padding: Padding, groups: int
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """Returns the faster form of operations.convolve for these shapes, or None where a CPU takes the plain one."""
    in_features, out_features, window = x_shape[-1], kernel_shape[-1], kernel_shape[:2]
    if groups == in_features == out_features:
        return lambda x, kernel: _convolve_depthwise(x, kernel, stride, padding)
    if groups > 1:
        return None
    if window == (1, 1) and not any(map(any, padding)):
        return lambda x, kernel: _multiply(x, kernel, stride)
    sides = zip(x_shape[1:3], padding, window, strict=True)
    positions = math.prod((size + sum(edges) - side) // stride + 1 for size, edges, side in sides)
    if positions < math.prod(window):
        return lambda x, kernel: _multiply_windows(x, kernel, stride, padding)
    return None


def _multiply(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1x1 convolution as a product; the gradient of its kernel is a product too, and nothing is transposed for it."""
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def _multiply_windows(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A convolution of few positions as a product: a row of the left factor is what the kernel sees at a position."""
    rows = jnp.concatenate([shifted for _, shifted in _windows(_pad(x, padding), kernel.shape[:2], stride)], -1)
    y = rows.reshape(-1, rows.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*rows.shape[:-1], kernel.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A depthwise convolution as a sum over the kernel's elements, of the maps shifted and scaled."""
    factors = widen(kernel)
    windows = _windows(_pad(x, padding), kernel.shape[:2], stride)
    terms = [shifted * factors[*offset, 0] for offset, shifted in windows]
    return functools.reduce(jnp.add, terms).astype(x.dtype)


@_convolve_depthwise.defjvp
def _convolve_depthwise_jvp(
    stride: int, padding: Padding, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    # In training y and, in the backward pass, its gradient have many readers: the sums of the batch statistics, and the
    # product of each of the kernel's elements. Without `store` each of them would compute y or the gradient anew.
    y, window, factors = store(_convolve_depthwise(x, kernel, stride, padding)), kernel.shape[:2], widen(kernel)

    def x_gradient(gradient: jax.Array) -> jax.Array:
        def term(offset: tuple[int, int], gradient: jax.Array) -> jax.Array:
            return gradient * factors[*offset, 0]

        return _sum_over_windows(term, (gradient, 0), shape=x.shape, window=window, stride=stride, padding=padding)

    padded = lax.optimization_barrier(_pad(x, padding))
    terms = [
        widen(shifted) * spread(widen(kernel_dot)[*offset, 0], shifted.shape)
        for offset, shifted in _windows(padded, window, stride)
    ]
    (y_dot,) = jax.linear_transpose(x_gradient, y)(x_dot)
    return y, store(y_dot + functools.reduce(jnp.add, terms).astype(y.dtype))


# Max pooling


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: tuple[int, int], stride: int, padding: Padding) -> jax.Array:
    """operations.max_pool as the maximum of shifted maps."""
    windows = _windows(_pad(x, padding, -jnp.inf), window, stride)
    return functools.reduce(jnp.maximum, (shifted for _, shifted in windows))


@max_pool.defjvp
def _max_pool_jvp(
    window: tuple[int, int], stride: int, padding: Padding, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y = max_pool(*primals, window, stride, padding)
    return y, max_pool_tangent(*primals, y, *tangents, window, stride, padding)


def max_pool_tangent(
    x: jax.Array, y: jax.Array, x_dot: jax.Array, window: tuple[int, int], stride: int, padding: Padding
) -> jax.Array:
    """Returns the tangent of max_pool's result y.

    Its transpose, the gradient, adds up for each pixel the gradients of the windows whose maximum the pixel is.
    """
    winner = jnp.full(y.shape, -1, jnp.int8)  # the number of the offset at which each window has its first maximum
    for number, (_, shifted) in enumerate(_windows(_pad(x, padding, -jnp.inf), window, stride)):
        winner = jnp.where((winner < 0) & (shifted == y), jnp.int8(number), winner)

    def x_gradient(gradient: jax.Array) -> jax.Array:
        def term(offset: tuple[int, int], winner: jax.Array, gradient: jax.Array) -> jax.Array:
            return jnp.where(winner == offset[0] * window[1] + offset[1], gradient, 0)

        parts = (winner, -1), (gradient, 0)
        return _sum_over_windows(term, *parts, shape=x.shape, window=window, stride=stride, padding=padding)

    return jax.linear_transpose(x_gradient, y)(x_dot)[0]


# Sums over windows and over positions


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def sum_pool(x: jax.Array, window: tuple[int, int], stride: int, padding: Padding) -> jax.Array:
    """operations.sum_pool as the sum of shifted maps."""
    windows = _windows(_pad(x, padding), window, stride)
    return functools.reduce(jnp.add, (shifted for _, shifted in windows))


@sum_pool.defjvp
def _sum_pool_jvp(
    window: tuple[int, int], stride: int, padding: Padding, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y = sum_pool(*primals, window, stride, padding)

    def x_gradient(gradient: jax.Array) -> jax.Array:
        part, shape = (gradient, 0), primals[0].shape
        return _sum_over_windows(
            lambda _, gradient: gradient, part, shape=shape, window=window, stride=stride, padding=padding
        )

    return y, jax.linear_transpose(x_gradient, y)(store(tangents[0]))[0]


def sum_positions(x: jax.Array) -> jax.Array:
    """Sums each feature over groups of maps, (groups, N, H, W, C) to (groups, 1, 1, 1, C): ones times each image."""
    groups, images, height, width, features = x.shape
    # XLA often computes the numbers only for this sum, and must write them to memory for the product. Bands of rows are
    # added first, so that a smaller array is written.
    bands = max(count for count in range(1, 9) if height % count == 0)
    band = height // bands
    x = functools.reduce(jnp.add, [x[:, :, start : start + band] for start in range(0, height, band)])
    x = x.reshape(groups, images, band * width, features)
    sums = jnp.ones((groups, images, 1, band * width), x.dtype) @ x
    return sums.sum(1).reshape(groups, 1, 1, 1, features)


@functools.partial(jax.jit, static_argnames="shape", inline=True)
def spread(features: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats features, (C,) or (groups, 1, 1, 1, C), at all positions of maps of a shape: sum_positions' transpose."""
    features = features.reshape(-1, 1, 1, 1, shape[-1])
    maps = jax.ShapeDtypeStruct((len(features), *shape[-4:]), features.dtype)
    return jax.linear_transpose(sum_positions, maps)(features)[0].reshape(shape)


# Windows


def _pad(x: jax.Array, padding: tuple[tuple[int, int], ...], value: float = 0) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)


def _windows(padded: jax.Array, window: tuple[int, ...], stride: int) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields each offset (row, column) in a window, by rows, and the map of what all windows have there."""
    rows, columns = ((size - side) // stride * stride + 1 for size, side in zip(padded.shape[1:3], window, strict=True))
    for row in range(window[0]):
        for column in range(window[1]):
            yield (row, column), padded[:, row : row + rows : stride, column : column + columns : stride]


def _sum_over_windows(
    term: Callable[..., jax.Array],
    *parts: tuple[jax.Array, float],
    shape: tuple[int, ...],
    window: tuple[int, ...],
    stride: int,
    padding: Padding,
) -> jax.Array:
    """Returns for each pixel the sum over the windows that it lies in: the way back from windows to pixels.

    Args:
      term: what a window adds to its pixel at an offset (row, column), from the parts.
      *parts: pairs of a map, which has a value for each window, and the number that pads the map; `term` is 0 there.
      shape: of the pixels, (N, H, W, C).
      window: (height, width) of the window, in pixels.
      stride: step of the window, down and across, in pixels.
      padding: pixels above and below, and left and right.
    """
    # A pixel at stride * p + phase lies at the offset stride * k + phase of the window p - k.
    images, *sizes, features = shape
    reach = [-(-side // stride) for side in window]  # windows that a pixel can lie in, down or across
    blocks = [-(-(before + size + after) // stride) for size, (before, after) in zip(sizes, padding, strict=True)]
    counts = parts[0][0].shape[1:3]
    around = [(side - 1, max(block - count, 0)) for side, block, count in zip(reach, blocks, counts, strict=True)]
    # Without the barriers XLA fuses the padding into what follows, and tests bounds at every pixel.
    maps = [lax.optimization_barrier(_pad(part, tuple(around), value)) for part, value in parts]

    def gather(phase: tuple[int, int]) -> jax.Array:
        total = jnp.zeros((), jnp.float32)
        for row in range(phase[0], window[0], stride):
            for column in range(phase[1], window[1], stride):
                top, left = reach[0] - 1 - row // stride, reach[1] - 1 - column // stride
                here = (slice(None), slice(top, top + blocks[0]), slice(left, left + blocks[1]))
                total += widen(term((row, column), *(part[here] for part in maps)))
        return jnp.broadcast_to(total, (images, *blocks, features)).astype(parts[-1][0].dtype)

    phases = jnp.stack([jnp.stack([gather((row, column)) for column in range(stride)], 3) for row in range(stride)], 2)
    whole = phases.reshape(images, blocks[0] * stride, blocks[1] * stride, features)
    (top, _), (left, _) = padding
    return whole[:, top : top + sizes[0], left : left + sizes[1]]


def widen(x: jax.Array) -> jax.Array:
    """Makes numbers at least float32, in which sums are taken."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
