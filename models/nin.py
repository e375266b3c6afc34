"""Network in network: Lin, Chen, Yan 2013."""

from collections.abc import Iterator
from functools import partial

import jax

from models.layers import Constant, ConvReLU, Dropout, Module, Normal, global_average_pool, max_pool, to_logits
from models.network import Entry, Network

# The deviation of most layers of the authors' Caffe configurations; the paper gives none.
CONV = partial(ConvReLU, kernel_initializer=Normal(0.05), bias_initializer=Constant(0))


class MLPConv(Module):
    """A convolution and two 1x1 ones, a small perceptron that slides over the map: Fig. 1(b)."""

    def __init__(self, in_features: int, widths: tuple[int, int, int], kernel: int, stride: int = 1, padding: int = 0):
        """Builds the layers; widths are those of the three convolutions."""
        self.conv1 = CONV(in_features, widths[0], kernel, stride, padding)
        self.conv2 = CONV(widths[0], widths[1], kernel=1)
        self.conv3 = CONV(widths[1], widths[2], kernel=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', last width)."""
        return self.conv3(self.conv2(self.conv1(x)))


class NIN(Network):
    """The ImageNet network of the Caffe zoo: 11x11, 5x5, 3x3 and 3x3 kernels, classified by global average pooling."""

    def __init__(self, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; dropout_rate applies before the last perceptron."""
        self.mlpconv1 = MLPConv(channels, (96, 96, 96), kernel=11, stride=4)
        self.mlpconv2 = MLPConv(96, (256, 256, 256), kernel=5, padding=2)
        self.mlpconv3 = MLPConv(256, (384, 384, 384), kernel=3, padding=1)
        self.dropout = Dropout(dropout_rate)
        self.head = MLPConv(384, (1024, 1024, num_classes), kernel=3, padding=1)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields mlpconv1 to mlpconv3, each pooled."""
        x = max_pool(self.mlpconv1(x), 3, 2, ceil=True)
        yield "mlpconv1", x
        x = max_pool(self.mlpconv2(x), 3, 2, ceil=True)
        yield "mlpconv2", x
        x = max_pool(self.mlpconv3(x), 3, 2, ceil=True)
        yield "mlpconv3", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 384) to logits (N, num_classes), which are at least 0, as the last convolution has a ReLU."""
        return global_average_pool(to_logits(self.head(self.dropout(x))))


class CIFARNIN(Network):
    """The network for CIFAR-10 of Fig. 2 and section 4.2: three perceptrons, dropout after the first two."""

    def __init__(self, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; dropout_rate applies before the second and the last perceptron."""
        self.mlpconv1 = MLPConv(channels, (192, 160, 96), kernel=5, padding=2)
        self.dropout1 = Dropout(dropout_rate)
        self.mlpconv2 = MLPConv(96, (192, 192, 192), kernel=5, padding=2)
        self.dropout2 = Dropout(dropout_rate)
        self.head = MLPConv(192, (192, 192, num_classes), kernel=3, padding=1)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields mlpconv1 and mlpconv2, each pooled."""
        x = max_pool(self.mlpconv1(x), 3, 2, ceil=True)
        yield "mlpconv1", x
        x = max_pool(self.mlpconv2(self.dropout1(x)), 3, 2, ceil=True)
        yield "mlpconv2", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 192) to logits (N, num_classes), which are at least 0, as the last convolution has a ReLU."""
        return global_average_pool(to_logits(self.head(self.dropout2(x))))


_nin = partial(Entry, paper="Lin 2013", dropout_rate=0.5)
ENTRIES = (_nin("nin", NIN), _nin("nin_cifar", CIFARNIN, image_size=32, num_classes=10))
