"""The layers that the networks share: their structure, their initial values and their arithmetic.

A layer is built abstract: its variables hold a `jax.ShapeDtypeStruct` and, as metadata, the `initializer` that draws
their values. So a network is built in milliseconds. `initial_values` draws the values on the host and compiles nothing.

Images and maps are (N, H, W, C). Padding is PyTorch's: explicit, the same on both sides. Published weights that need
another have it as an option: TensorFlow's "SAME" in Conv, Caffe's rounding up in max_pool.
"""

import functools
import math
import os
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from models import operations

Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


# Initial values


@dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def __call__(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a float32 array of that shape."""
        return np.full(shape, self.value, np.float32)


@dataclass(frozen=True)
class Normal:
    """A normal distribution around 0 with a standard deviation."""

    deviation: float

    def __call__(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a float32 array of that shape."""
        values = random.standard_normal(shape, np.float32)
        values *= self.deviation
        return values


@dataclass(frozen=True)
class Uniform:
    """A uniform distribution between -bound and bound."""

    bound: float

    def __call__(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a float32 array of that shape."""
        values = random.random(shape, np.float32)
        values -= 0.5
        values *= 2 * self.bound
        return values


def kaiming_normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A normal distribution of variance 2 / fan out, for a convolution (H, W, I, O): He et al. 2015 (PReLU), eq. 14."""
    return Normal(math.sqrt(2 / (shape[0] * shape[1] * shape[3])))(random, shape)


def fan_in_uniform(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A uniform distribution of variance 1 / (3 fan in): PyTorch's default for convolutions and dense layers."""
    return Uniform(1 / math.sqrt(math.prod(shape[:-1])))(random, shape)


def lecun_uniform(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A uniform distribution of variance 1 / fan in: what Caffe calls xavier."""
    return Uniform(math.sqrt(3 / math.prod(shape[:-1])))(random, shape)


def xavier_uniform(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A uniform distribution of variance 2 / (fan in + fan out), for a dense layer (I, O): Glorot and Bengio 2010."""
    return Uniform(math.sqrt(6 / sum(shape)))(random, shape)


def initial_values(model: nnx.Module, seed: int) -> dict[str, Any]:
    """Draws the initial values of a network on the host.

    A value depends only on the seed and on the path of its variable: adding or removing layers changes no other value.

    Args:
      model: a network, abstract or not.
      seed: seed for the initial values, at least 0.

    Returns:
      A nested dict of NumPy arrays: all parameters and running statistics.
    """
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))

    def draw(path: tuple, variable: nnx.Variable) -> np.ndarray:
        random = np.random.default_rng([seed, _path_hash(path)])
        value = variable.get_value()
        return variable.get_metadata("initializer")(random, value.shape).astype(value.dtype, copy=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy draws without the GIL
        values = list(pool.map(draw, state.paths, state.leaves))
    return nnx.traversals.unflatten_mapping(dict(zip(state.paths, values, strict=True)))


def _path_hash(path: tuple) -> int:
    return zlib.crc32(".".join(map(str, path)).encode())


# Layers


class Module(nnx.Module):
    """A module that runs under its name in a jax.named_scope: JAX's name stack then reads `stages.0.1/conv2`."""

    name = ""

    def __init_subclass__(cls, **arguments):
        """Wraps the class's own `__call__`."""
        super().__init_subclass__(**arguments)
        if "__call__" not in vars(cls):
            return
        call = cls.__call__

        @functools.wraps(call)
        def named_call(self, *inputs, **options):
            # The root has no name. A call of the superclass's __call__ runs under the name already.
            if not self.name or type(self).__call__ is not named_call:
                return call(self, *inputs, **options)
            with jax.named_scope(self.name):
                return call(self, *inputs, **options)

        own: Any = cls
        own.__call__ = named_call

    def __setattr__(self, attribute: str, value: Any) -> None:
        """Sets an attribute. A module, or each module in an nnx.List, gets the attribute's name."""
        super().__setattr__(attribute, value)
        _set_name(value, attribute)


def _set_name(value: Any, name: str) -> None:
    if isinstance(value, Module):
        value.name = name
    elif isinstance(value, nnx.List):
        for index, item in enumerate(value):
            _set_name(item, f"{name}.{index}")


class Conv(Module):
    """A convolution: kernel (H, W, I / groups, O), and a bias (O,)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] | str = 0,
        groups: int = 1,
        bias: bool = True,
        kernel_initializer: Initializer = fan_in_uniform,
        bias_initializer: Initializer | None = None,
    ):
        """Builds the layer.

        Args:
          in_features: number of features in, I.
          out_features: number of features out, O.
          kernel: (height, width) of the kernel, or the side of a square one, in pixels.
          stride: step of the kernel, down and across, in pixels.
          padding: pixels (above and below, left and right), or one number for all sides; or "SAME", TensorFlow's
            padding, which makes H' = ceil(H / stride) with the odd pixel below and on the right.
          groups: number of groups that the features in and out are divided into.
          bias: whether the layer has a bias.
          kernel_initializer: draws the kernel.
          bias_initializer: draws the bias; None is PyTorch's default: uniform, within 1 / sqrt(fan in).

        Raises:
          ValueError: if padding is another string.
        """
        if isinstance(padding, str) and padding != "SAME":
            raise ValueError(f'padding="{padding}" is invalid; give "SAME", or a number of pixels')
        self.kernel_size = _pair(kernel)
        self.padding = padding if isinstance(padding, str) else tuple((size, size) for size in _pair(padding))
        self.stride, self.groups, self.dtype = stride, groups, jnp.float32
        shape = (*self.kernel_size, in_features // groups, out_features)
        self.kernel = parameter(shape, kernel_initializer)
        self.bias = _bias(shape, bias_initializer) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O) with H' = floor((H + 2 padding - kernel) / stride) + 1.

        Raises:
          ValueError: if the map is too small for the kernel.
        """
        x, kernel = x.astype(self.dtype), self.kernel.get_value().astype(self.dtype)
        padding = self.padding
        if isinstance(padding, str):
            padding = tuple(lax.padtype_to_pads(x.shape[1:3], self.kernel_size, (self.stride, self.stride), "SAME"))
        else:
            _check_window(x, self.kernel_size, tuple(size for size, _ in padding))
        y = operations.convolve(x, kernel, self.stride, padding, self.groups)
        return y if self.bias is None else operations.add_bias(y, self.bias.get_value().astype(self.dtype))


class Dense(Module):
    """A fully connected layer: kernel (I, O), or (H, W, C, O) on a whole map, and a bias (O,)."""

    def __init__(
        self,
        in_features: int | tuple[int, int, int],
        out_features: int,
        kernel_initializer: Initializer = fan_in_uniform,
        bias_initializer: Initializer | None = None,
    ):
        """Builds the layer; bias_initializer None is PyTorch's default: uniform, within 1 / sqrt(fan in)."""
        shape = (*np.atleast_1d(in_features).tolist(), out_features)
        self.kernel = parameter(shape, kernel_initializer)
        self.bias = _bias(shape, bias_initializer)
        self.dtype = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps the last axis, (..., I) to (..., O), or whole maps, (N, H, W, C) to (N, O)."""
        kernel = self.kernel.get_value().astype(self.dtype)
        return jnp.tensordot(x.astype(self.dtype), kernel, kernel.ndim - 1) + self.bias.get_value().astype(self.dtype)


class Classifier(Dense):
    """The last layer of a network; its logits are at least float32, whatever the type of the computation."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, I) to logits (N, O)."""
        return to_logits(super().__call__(x))


class BatchNorm(Module):
    """Batch normalisation over groups of images: Ioffe and Szegedy 2015, algorithms 1 and 2.

    In training the statistics are those of each `virtual_batch_size` consecutive images, or with 0 of the whole batch.
    The running values become `momentum * running + (1 - momentum) * new`, where new is the mean over the groups of the
    mean and of the unbiased variance, as in PyTorch. Statistics are at least float32, whatever the compute type.
    """

    def __init__(self, features: int, epsilon: float = 1e-5, momentum: float = 0.9):
        """Builds the layer."""
        self.scale, self.bias = parameter((features,), Constant(1)), parameter((features,), Constant(0))
        self.mean, self.var = _statistic((features,), Constant(0)), _statistic((features,), Constant(1))
        self.epsilon, self.momentum = epsilon, momentum
        self.virtual_batch_size, self.dtype, self.use_running_average = 0, jnp.float32, True

    def __call__(self, x: jax.Array, activation: str | None = None) -> jax.Array:
        """Maps (N, C) or (N, H, W, C) to the same shape; applies the activation, relu or relu6, to the result.

        Raises:
          ValueError: if N is not a multiple of virtual_batch_size, or a group holds only one value of each channel.
        """
        scale, bias = self.scale.get_value(), self.bias.get_value()
        if self.use_running_average:
            factor = lax.rsqrt(self.var.get_value() + self.epsilon) * scale
            y = (x.astype(scale.dtype) - self.mean.get_value()) * factor + bias
            return operations.activate(y, activation).astype(self.dtype)
        images = x.shape[0]
        size = self.virtual_batch_size or images
        if images % size:
            raise ValueError(
                f"{images} images do not divide into groups of bn_virtual_batch_size={size}; choose a divisor"
            )
        height, width = x.shape[1:-1] or (1, 1)
        groups = x.reshape(images // size, size, height, width, x.shape[-1])
        count = size * height * width
        if count < 2:
            raise ValueError(
                f"batch normalisation over groups of {size} images with maps of {height}x{width} pixels sees one value "
                "a channel, and training needs more; give a larger batch_size, bn_virtual_batch_size or image_size"
            )
        y, mean, var = operations.normalize(groups, scale, bias, self.mean.get_value(), self.epsilon, activation)
        self._update(self.mean, mean)
        self._update(self.var, var * (count / (count - 1)))
        return y.reshape(x.shape).astype(self.dtype)

    def _update(self, running: nnx.BatchStat, new: jax.Array) -> None:
        # `running[...] = x` takes time quadratic in the size of the traced program (JAX 0.10); set_value does not.
        new = new.reshape(-1, new.shape[-1]).mean(0)
        running.set_value(self.momentum * running.get_value() + (1 - self.momentum) * new)


class LayerNorm(Module):
    """Normalisation of each position over its features: Ba, Kiros, Hinton 2016. Statistics are at least float32."""

    def __init__(self, features: int, epsilon: float = 1e-6):
        """Builds the layer."""
        self.scale, self.bias = parameter((features,), Constant(1)), parameter((features,), Constant(0))
        self.epsilon, self.dtype = epsilon, jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to the same shape."""
        scale = self.scale.get_value()
        x = x.astype(scale.dtype)
        x -= x.mean(-1, keepdims=True)
        factor = lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * factor * scale + self.bias.get_value()).astype(self.dtype)


class LayerScale(Module):
    """A factor for each feature at the end of a residual branch, which starts near 0: Touvron et al. 2021 (CaiT)."""

    def __init__(self, features: int, value: float):
        """Builds the layer; value is the factors' initial value."""
        self.factor, self.dtype = parameter((features,), Constant(value)), jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to the same shape."""
        return x.astype(self.dtype) * self.factor.get_value().astype(self.dtype)


class DropoutKey(nnx.Variable):
    """The random key of a Dropout layer in training; a step supplies it, nothing random is stored."""


class Dropout(Module):
    """Dropout with the kept values scaled by 1 / (1 - rate): Hinton et al. 2012, in its inverted form.

    Its `key` exists only in training mode and with a rate above 0. In evaluation mode a network needs no keys.
    """

    def __init__(self, rate: float):
        """Builds the layer; rate is the share of values that is set to 0, 0 <= rate < 1."""
        if not 0 <= rate < 1:
            raise ValueError(f"dropout_rate={rate} is out of range; choose 0 <= rate < 1")
        self.rate = rate
        self.key: Any = None

    @property
    def deterministic(self) -> bool:
        """Whether the layer is the identity; nnx's train() and eval() set it."""
        return self.key is None

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        self.key = nnx.static(None) if value or not self.rate else nnx.data(DropoutKey(None))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x to the same shape.

        Raises:
          ValueError: in training mode without a key.
        """
        if self.deterministic:
            return x
        if self.key.get_value() is None:
            raise ValueError("dropout in training mode needs a key; merge the network with dropout_keys(model, key)")
        keep = jax.random.bernoulli(self.key.get_value(), 1 - self.rate, self._drawn_shape(x))
        return jnp.where(keep, x / (1 - self.rate), 0)

    def _drawn_shape(self, x: jax.Array) -> tuple[int, ...]:
        """Returns the shape of what is drawn: one number for each value."""
        return x.shape


class StochasticDepth(Dropout):
    """Drops the residual branch of whole images, and scales it by 1 / (1 - rate) for the others (Huang et al. 2016).

    A block applies the layer to its residual branch before the sum. `set_stochastic_depth` sets the rate of each layer.
    """

    def __init__(self):
        """Builds the layer with a rate of 0: the identity."""
        super().__init__(0.0)

    def _drawn_shape(self, x: jax.Array) -> tuple[int, ...]:
        """Returns the shape of what is drawn: one number for each image."""
        return x.shape[0], *(1,) * (x.ndim - 1)


def set_stochastic_depth(model: nnx.Module, rate: float) -> None:
    """Sets the rates of all StochasticDepth layers: 0 in the first block, `rate` in the last, linear between them.

    The first block's rate of 0 is as in timm and torchvision; in Huang et al. 2016, section 3, it is `rate` divided by
    the number of blocks. Layers of the same block have the same rate. Blocks are ordered by the numbers in their names.

    Raises:
      ValueError: if the rate is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"stochastic_depth_rate={rate} is out of range; choose 0 <= rate < 1")
    layers = [(path[:-1], layer) for path, layer in nnx.iter_modules(model) if isinstance(layer, StochasticDepth)]
    blocks = sorted({block for block, _ in layers}, key=_by_number)
    for block, layer in layers:
        layer.rate = rate * blocks.index(block) / max(len(blocks) - 1, 1)


def _by_number(path: tuple) -> list[str | int]:
    """Returns a key that sorts block2 before block10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", ".".join(map(str, path)))]


def dropout_keys(model: nnx.Module, key: jax.Array) -> dict[str, Any]:
    """Returns a nested dict with a random key for each Dropout layer of a network in training mode.

    Merge it with the other variables: `nnx.merge(graph, params, batch_stats, dropout_keys(model, key))`, where graph
    comes from `nnx.split(model, nnx.Param, nnx.BatchStat, DropoutKey)`.

    Args:
      model: a network, abstract or not.
      key: a key from jax.random.key, another one for each training step.
    """
    paths = nnx.to_flat_state(nnx.state(model, DropoutKey)).paths
    return nnx.traversals.unflatten_mapping({path: jax.random.fold_in(key, _path_hash(path)) for path in paths})


class LocalResponseNorm(Module):
    """Local response normalisation across channels: Krizhevsky et al. 2012, section 3.3.

    x / (k + alpha * sum of x^2 over `size` neighbouring channels) ^ beta. Here alpha multiplies the sum, as in the
    paper; Caffe and PyTorch multiply by alpha / size and default to k = 1.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0):
        """Builds the layer; size is odd."""
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to the same shape."""
        squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        side, channels = self.size // 2, x.shape[-1]
        # XLA fuses a few shifted additions; they are faster than a window over channels.
        padded = jnp.pad(squares, ((0, 0), (0, 0), (0, 0), (side, side)))
        total = operations.store(sum(padded[..., shift : shift + channels] for shift in range(self.size)))
        # On a CPU this is faster than a power.
        factor = jnp.exp(-self.beta * jnp.log(self.k + self.alpha * total))
        return operations.store((x * factor).astype(x.dtype))


class ConvReLU(Module):
    """A convolution, batch normalisation if batch_norm is given, and ReLU."""

    def __init__(self, *arguments: Any, batch_norm: Callable[[int], BatchNorm] | None = None, **options: Any):
        """Builds the layers. Arguments and options are Conv's; batch_norm(features) makes the normalisation."""
        self.conv = Conv(*arguments, **options)
        self.batch_norm = batch_norm(self.conv.kernel.shape[-1]) if batch_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        x = self.conv(x)
        return self.batch_norm(x, activation="relu") if self.batch_norm else operations.relu(x)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def parameter(shape: tuple[int, ...], initializer: Initializer) -> nnx.Param:
    """Returns an abstract float32 parameter."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), initializer=initializer)


def _statistic(shape: tuple[int, ...], initializer: Initializer) -> nnx.BatchStat:
    return nnx.BatchStat(jax.ShapeDtypeStruct(shape, jnp.float32), initializer=initializer)


def _bias(kernel_shape: tuple[int, ...], initializer: Initializer | None) -> nnx.Param:
    return parameter(kernel_shape[-1:], initializer or Uniform(1 / math.sqrt(math.prod(kernel_shape[:-1]))))


# Pooling


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Takes the maximum over square windows, as PyTorch's max_pool2d.

    Args:
      x: maps, (N, H, W, C).
      window: side of the window, in pixels.
      stride: step of the window, down and across, in pixels.
      padding: pixels on each side; they are never the maximum.
      ceil: whether the last window may reach over the edge of the padded map. It must start in the map or in its left
        padding.

    Raises:
      ValueError: if the map is too small for the window.
    """
    _check_window(x, (window, window), (padding, padding), overhang=stride - 1 if ceil else 0)

    def sides(size: int) -> tuple[int, int]:
        steps = (size + 2 * padding - window) / stride
        count = math.ceil(steps) if ceil else math.floor(steps)
        if count * stride >= size + padding:
            count -= 1
        return padding, max(padding, count * stride + window - size - padding)

    return operations.max_pool(x, window, stride, (sides(x.shape[1]), sides(x.shape[2])))


def average_pool(x: jax.Array, window: int, stride: int, padding: int = 0, count_padding: bool = True) -> jax.Array:
    """Takes the mean over square windows, as PyTorch's avg_pool2d.

    Args:
      x: maps, (N, H, W, C).
      window: side of the window, in pixels.
      stride: step of the window, down and across, in pixels.
      padding: pixels of zeros on each side.
      count_padding: whether the zeros count in the mean, as in PyTorch and Caffe, or not, as in TensorFlow.

    Raises:
      ValueError: if the map is too small for the window.
    """
    _check_window(x, (window, window), (padding, padding))
    sums = operations.sum_pool(x, window, stride, padding)
    if count_padding:
        return sums / window**2
    return sums / operations.sum_pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), window, stride, padding)


def adaptive_average_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Pools maps of any size to maps of `size` by means over windows, as PyTorch's adaptive_avg_pool2d.

    Window i of n over H pixels is [floor(i H / n), ceil((i + 1) H / n)). Where H = n it is the identity.

    Args:
      x: maps, (N, H, W, C).
      size: (height, width) of the result.
    """
    for axis, count in enumerate(size, start=1):
        pixels = x.shape[axis]
        if pixels != count:
            windows = [(i * pixels // count, -(-(i + 1) * pixels // count)) for i in range(count)]
            means = [lax.slice_in_dim(x, *window, axis=axis).mean(axis, keepdims=True) for window in windows]
            x = jnp.concatenate(means, axis)
    return x


def global_average_pool(x: jax.Array) -> jax.Array:
    """Takes the mean over each map: (N, H, W, C) to (N, C)."""
    return x.mean((1, 2))


def to_logits(x: jax.Array) -> jax.Array:
    """Makes numbers at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_window(x: jax.Array, window: tuple[int, ...], padding: tuple[int, ...], overhang: int = 0) -> None:
    height, width = (size + 2 * pad for size, pad in zip(x.shape[1:3], padding, strict=True))
    if height + overhang < window[0] or width + overhang < window[1]:
        raise ValueError(
            f"image too small: a {window[0]}x{window[1]} window does not fit a padded map of {height}x{width};"
            " use a larger image_size"
        )
