"""The operations that the networks are built of, from convolution, normalisation and pooling to attention.

A CPU and an NVIDIA GPU get other forms of some of them, which give the same numbers to rounding and run faster there:
models/cpu_operations.py and models/gpu_operations.py. `_choose` is the only place that decides between them.

Everything here has derivatives in forward mode, in reverse mode, and in both combined, with one exception: cuDNN's
attention (16-bit numbers on a GPU) has none in forward mode. `jax.jit(..., inline=True)` changes no program. It makes
JAX trace layers of the same shapes once, which saves a fifth of the time to trace a network.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models import cpu_operations, gpu_operations

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
    case = x.shape, kernel.shape, stride, padding, groups
    forms = {"cpu": cpu_operations.find_convolution(*case), "cuda": gpu_operations.find_convolution(*case)}
    return _choose(plain, x, kernel, **forms)


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


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """Takes max(x, 0). The gradient passes where the result is above 0, so that only the result has to be kept."""
    return jnp.maximum(x, np.zeros((), x.dtype))  # jax2onnx would take an integer 0 for a reason to use float64


@relu.defjvp
def _relu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = relu(*primals)
    # Without the barrier XLA turns y > 0 into x > 0, and keeps x for it beside y.
    return y, jnp.where(lax.optimization_barrier(y) > 0, *tangents, 0)


@functools.partial(jax.jit, inline=True)
def store(x: jax.Array) -> jax.Array:
    """Returns x. On a CPU the program stores x and its gradient once, instead of computing them anew for each use."""
    return _choose(lambda x: x, x, cpu=cpu_operations.store)


def concatenate(maps: Sequence[jax.Array]) -> jax.Array:
    """Puts maps (N, H, W, C1), (N, H, W, C2), ... side by side: (N, H, W, C1 + C2 + ...).

    A CPU stores the result and its gradient. All layers that read the result add to the gradient. XLA would compute
    that sum again for each of the maps.
    """
    return store(jnp.concatenate(maps, axis=-1))


@functools.partial(jax.jit, inline=True)
def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Returns softmax(query key^T / sqrt(D)) value for each head: Vaswani et al. 2017, equation 1.

    Args:
      query: (N, length, heads, D), as key, value and the result.
      key: of the same type.
      value: of the same type.
    """
    if query.dtype == jnp.float64:  # jax.nn.dot_product_attention would compute the softmax in float32
        scores = jnp.einsum("nihd,njhd->nhij", query, key) / math.sqrt(query.shape[-1])
        return jnp.einsum("nhij,njhd->nihd", jax.nn.softmax(scores), value)
    plain = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    return _choose(plain, query, key, value, cuda=gpu_operations.find_attention(query.dtype))


def activate(x: jax.Array, activation: str | None) -> jax.Array:
    """Applies relu or relu6, or nothing."""
    functions: dict[str | None, Callable[[jax.Array], jax.Array]] = {"relu": relu, "relu6": jax.nn.relu6}
    return functions[activation](x) if activation else x


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

    case = {"window": (window, window), "stride": stride, "padding": padding}
    forms = {"cpu": cpu_operations.max_pool, "cuda": gpu_operations.max_pool}
    return _choose(plain, x, **{platform: functools.partial(form, **case) for platform, form in forms.items()})


@functools.partial(jax.jit, static_argnames=("window", "stride", "padding"), inline=True)
def sum_pool(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """Sums over square windows.

    Args:
      x: maps, (N, H, W, C).
      window: side of the window, in pixels.
      stride: step of the window, down and across, in pixels.
      padding: pixels of zeros on each side.
    """
    edges = ((padding, padding), (padding, padding))

    def plain(x: jax.Array) -> jax.Array:
        return lax.reduce_window(
            x, 0.0, lax.add, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *edges, (0, 0))
        )

    form = functools.partial(cpu_operations.sum_pool, window=(window, window), stride=stride, padding=edges)
    return _choose(plain, x, cpu=form)


@functools.partial(jax.jit, static_argnames=("epsilon", "activation"), inline=True)
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, epsilon: float, activation: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises groups of maps with the statistics of each group: Ioffe and Szegedy 2015, algorithm 1.

    Args:
      x: maps, (groups, N, H, W, C).
      scale: (C,), at least float32. All arithmetic is of this type.
      bias: (C,), of the type of scale.
      shift: (C,), of the type of scale, a guess of the mean; see mean_and_variance. It gets no gradient.
      epsilon: added to the variance.
      activation: relu, relu6 or None, applied to the normalised maps. Normalisation and activation are one operation
        with one derivative, so that the backward pass needs only x and not the normalised maps.

    Returns:
      The normalised maps, of x's type, and each group's mean and biased variance, (groups, 1, 1, 1, C).
    """
    return _normalize(x, scale, bias, shift, epsilon, activation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, epsilon: float, activation: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean, var = mean_and_variance(x, shift)
    y = (x.astype(scale.dtype) - mean) * (lax.rsqrt(var + epsilon) * scale) + bias
    return activate(y, activation).astype(x.dtype), mean, var


@_normalize.defjvp
def _normalize_jvp(
    epsilon: float, activation: str | None, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """The derivative of the formula, in the order that makes its transpose the paper's gradient (section 3).

    The factors of the last two terms are put together before they are spread over the maps. Transposed, each spreading
    is one sum over the maps, and these two sums are all that the backward pass needs (JAX alone would make more).
    """
    x, scale, bias, _ = primals
    y, mean, var = _normalize(*primals, epsilon, activation)
    inverse = lax.rsqrt(var + epsilon)
    x_dot, scale_dot, bias_dot = (tangent.astype(scale.dtype) for tangent in tangents[:3])
    normalized, derivative = (x.astype(scale.dtype) - mean) * inverse, jnp.ones((), scale.dtype)
    if activation:
        # A number: XLA would store a truth value for the backward pass, but computes a number from x again.
        before = normalized * scale + bias
        derivative = jnp.maximum(jnp.sign(before), 0)
        if activation == "relu6":
            derivative *= jnp.maximum(jnp.sign(6 - before), 0)
    mean_dot = x_dot.mean((1, 2, 3), keepdims=True)
    covariance = (normalized * x_dot).mean((1, 2, 3), keepdims=True)
    factor = inverse * scale
    by_statistics = (derivative * normalized) * _spread(scale_dot - factor * covariance, x.shape)
    by_statistics += derivative * _spread(bias_dot - factor * mean_dot, x.shape)
    # In the backward pass the transposed barrier keeps XLA from storing a product of the gradient that both terms need:
    # each pass over the maps reads the gradient itself.
    y_dot = lax.optimization_barrier((derivative * factor * x_dot).astype(x.dtype)) + by_statistics.astype(x.dtype)
    return (y, mean, var), (y_dot, mean_dot, 2 / inverse * covariance)


def mean_and_variance(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each feature's mean and biased variance over groups of maps, each (groups, 1, 1, 1, C).

    In float32 the variance takes a second pass over the maps: E[x^2] - E[x]^2 loses all digits where the mean is large.
    In bfloat16 one pass over x - shift is enough. Relative to the variance plus (mean - shift)^2, its error is that of
    float32 (Chan, Golub, LeVeque 1983, section 3), and thus far below the rounding of the bfloat16 maps themselves.

    Args:
      x: maps, (groups, N, H, W, C).
      shift: (C,), at least float32, a guess of the mean. The results are of its type.
    """
    # The count is a float, because on 1,024 devices it can exceed the largest int32.
    wide, count = x.astype(shift.dtype), float(math.prod(x.shape[1:-1]))
    if jnp.finfo(x.dtype).bits < 32:
        mean, square = (_sum_positions(part) / count for part in (wide - shift, jnp.square(wide - shift)))
        return mean + shift, jnp.maximum(square - jnp.square(mean), 0)
    mean = _sum_positions(wide) / count
    return mean, _sum_positions(jnp.square(wide - mean)) / count


def _sum_positions(x: jax.Array) -> jax.Array:
    """Sums each feature over groups of maps in at least float32: (groups, N, H, W, C) to (groups, 1, 1, 1, C)."""
    plain = functools.partial(jnp.sum, axis=(1, 2, 3), keepdims=True)
    return _choose(plain, cpu_operations.widen(x), cpu=cpu_operations.sum_positions)


def _spread(features: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats features, (C,) or (groups, 1, 1, 1, C), at all positions of maps of a shape: the way back of a sum.

    It is for tangents. A backward pass transposes it to a sum over all positions, which is that of _sum_positions.
    """
    plain = functools.partial(jnp.broadcast_to, shape=shape)
    for_cpu = functools.partial(cpu_operations.spread, shape=shape)
    return _choose(plain, cpu_operations.widen(features), cpu=for_cpu).astype(features.dtype)


def _choose(plain: Callable[..., jax.Array], *arrays: jax.Array, **forms: Callable[..., jax.Array] | None) -> jax.Array:
    """Applies an operation to arrays: in the form that `forms` has for the platform, otherwise in the plain form.

    JAX chooses the form when it compiles the program. A traced program holds all forms, the plain form last; analysis/
    counts the costs of the plain form.
    """
    own: dict[str, Any] = {platform: form for platform, form in forms.items() if form}
    return lax.platform_dependent(*arrays, **own, default=plain) if own else plain(*arrays)
