"""DenseNet: Huang, Liu, van der Maaten, Weinberger 2016, Densely connected convolutional networks, Table 1."""

from collections.abc import Iterator
from functools import partial

import jax
from flax import nnx

from models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    Dropout,
    Module,
    average_pool,
    global_average_pool,
    kaiming_normal,
    max_pool,
)
from models.network import Entry, Network
from models.operations import concatenate


class DenseLayer(Module):
    """BN-ReLU-conv 3x3; with a bottleneck ("B"), BN-ReLU-conv 1x1 of 4 * growth filters comes before it."""

    def __init__(self, in_features: int, growth: int, bottleneck: bool, dropout_rate: float):
        """Builds the layers; growth is the number of new features."""
        width = 4 * growth
        self.norm1 = BatchNorm(in_features)
        self.conv1 = _conv(in_features, width, 1) if bottleneck else _conv(in_features, growth, 3)
        self.norm2 = BatchNorm(width) if bottleneck else None
        self.conv2 = _conv(width, growth, 3) if bottleneck else None
        self.dropout = Dropout(dropout_rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H, W, I + growth)."""
        y = self.conv1(self.norm1(x, activation="relu"))
        if self.norm2 and self.conv2:
            y = self.conv2(self.norm2(y, activation="relu"))
        return concatenate((x, self.dropout(y)))


class Transition(Module):
    """BN-ReLU-conv 1x1 and average pooling, between two dense blocks."""

    def __init__(self, in_features: int, out_features: int, dropout_rate: float):
        """Builds the layers."""
        self.norm = BatchNorm(in_features)
        self.conv = _conv(in_features, out_features, 1)
        self.dropout = Dropout(dropout_rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H / 2, W / 2, O)."""
        return average_pool(self.dropout(self.conv(self.norm(x, activation="relu"))), 2, 2)


class DenseNet(Network):
    """The ImageNet networks of Table 1, and with cifar=True those for CIFAR-10 of section 3."""

    def __init__(
        self,
        layers: tuple[int, ...],
        num_classes: int,
        channels: int,
        dropout_rate: float,
        growth: int = 32,
        bottleneck: bool = True,
        cifar: bool = False,
    ):
        """Builds the layers.

        Args:
          layers: the number of layers of each dense block.
          num_classes: number of classes.
          channels: number of channels of the images.
          dropout_rate: dropout rate after each dense layer and transition; the paper has 0.2 without augmentation.
          growth: features that each layer adds.
          bottleneck: whether there are 1x1 bottlenecks, and transitions halve the features ("BC").
          cifar: whether the stem is a 3x3 convolution, not a 7x7 one and pooling.
        """
        features = 2 * growth if bottleneck else 16
        self.conv1 = _conv(channels, features, 3) if cifar else _conv(channels, features, 7, 2)
        self.norm1 = None if cifar else BatchNorm(features)
        self.depth = len(layers)
        for number, count in enumerate(layers, start=1):
            block: nnx.List[DenseLayer] = nnx.List()
            for _ in range(count):
                block.append(DenseLayer(features, growth, bottleneck, dropout_rate))
                features += growth
            setattr(self, f"block{number}", block)
            if number < len(layers):
                width = features // 2 if bottleneck else features
                setattr(self, f"transition{number}", Transition(features, width, dropout_rate))
                features = width
        self.last_norm = BatchNorm(features)
        self.head = Classifier(features, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields block1 and so on, before the transition."""
        x = self.conv1(x)
        if self.norm1:
            x = max_pool(self.norm1(x, activation="relu"), 3, 2, padding=1)
        for number in range(1, self.depth + 1):
            for layer in getattr(self, f"block{number}"):
                x = layer(x)
            yield f"block{number}", x
            if number < self.depth:
                x = getattr(self, f"transition{number}")(x)

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, F) to logits (N, num_classes)."""
        return self.head(global_average_pool(self.last_norm(x, activation="relu")))


def _conv(in_features: int, out_features: int, kernel: int, stride: int = 1) -> Conv:
    return Conv(in_features, out_features, kernel, stride, kernel // 2, bias=False, kernel_initializer=kaiming_normal)


TORCH_NAMES = (  # torchvision's densenets
    (r"^conv1\.", "features.conv0."),
    (r"^norm1\.", "features.norm0."),
    (r"^block", "features.denseblock"),
    *((rf"(denseblock\d)\.{layer}\.", rf"\1.denselayer{layer + 1}.") for layer in range(48)),
    (r"^transition", "features.transition"),
    (r"^last_norm", "features.norm5"),
    (r"^head", "classifier"),
)
OLD_TORCH_NAMES = ((r"(denselayer\d+\.(?:norm|conv))\.(?=\d\.)", r"\1"),)  # its files of 2017: denselayer1.norm.1

_imagenet = partial(Entry, paper="Huang 2016", torch_names=TORCH_NAMES, old_torch_names=OLD_TORCH_NAMES)
_cifar = partial(Entry, paper="Huang 2016", image_size=32, num_classes=10)
ENTRIES = (
    _imagenet("densenet121", partial(DenseNet, (6, 12, 24, 16))),
    _imagenet("densenet169", partial(DenseNet, (6, 12, 32, 32))),
    _imagenet("densenet201", partial(DenseNet, (6, 12, 48, 32))),
    _cifar("densenet40_k12", partial(DenseNet, (12, 12, 12), growth=12, bottleneck=False, cifar=True)),
    _cifar("densenet_bc100_k12", partial(DenseNet, (16, 16, 16), growth=12, cifar=True)),
)
