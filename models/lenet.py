"""LeNet-5: LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition, II.B."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from models.layers import Classifier, Constant, Conv, Dense, Dropout, Uniform, adaptive_average_pool, average_pool
from models.network import Entry, Network
from models.operations import relu


def squash(x: jax.Array) -> jax.Array:
    """The scaled hyperbolic tangent, with f(1) = 1 and f(-1) = -1: appendix A."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def lecun_1998(fan_in: int) -> dict[str, Any]:
    """Initial weights and biases within 2.4 / fan in, uniform: appendix A."""
    return {"kernel_initializer": Uniform(2.4 / fan_in), "bias_initializer": Uniform(2.4 / fan_in)}


def he_2015(fan_in: int) -> dict[str, Any]:
    """Initial weights of variance 2 / fan in, uniform, and biases of 0: He et al. 2015 (PReLU), eq. 10."""
    return {"kernel_initializer": Uniform(math.sqrt(6 / fan_in)), "bias_initializer": Constant(0)}


class LeNet5(Network):
    """LeNet-5 as it is usually built: average pooling without coefficients, C3 fully connected, a dense output.

    The paper has a trainable coefficient and a bias for each subsampled map, a sparse table of connections in C3 (Table
    I), and radial basis functions in the output.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        dropout_rate: float,
        activation: Callable[[jax.Array], jax.Array] = squash,
        initializers: Callable[[int], dict[str, Any]] = lecun_1998,
    ):
        """Builds the layers; dropout_rate applies before the output."""
        self.activation = activation
        self.conv1 = Conv(channels, 6, 5, **initializers(25 * channels))
        self.conv3 = Conv(6, 16, 5, **initializers(25 * 6))
        self.conv5 = Conv(16, 120, 5, **initializers(25 * 16))
        self.dense6 = Dense(120, 84, **initializers(120))
        self.dropout = Dropout(dropout_rate)
        self.head = Classifier(84, num_classes, **initializers(84))

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields conv1 and conv3, each subsampled."""
        x = average_pool(self.activation(self.conv1(x)), 2, 2)
        yield "conv1", x
        x = average_pool(self.activation(self.conv3(x)), 2, 2)
        yield "conv3", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 16) to logits (N, num_classes)."""
        x = self.activation(self.conv5(adaptive_average_pool(x, (5, 5))))
        x = self.activation(self.dense6(x[:, 0, 0]))
        return self.head(self.dropout(x))


_lenet = partial(Entry, paper="LeCun 1998", image_size=32, num_classes=10, channels=1)
ENTRIES = (
    _lenet("lenet5", LeNet5),
    _lenet("lenet5_tanh", partial(LeNet5, initializers=he_2015)),
    _lenet("lenet5_relu", partial(LeNet5, initializers=he_2015, activation=relu)),
)
