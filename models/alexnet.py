"""AlexNet, of 2012 and of 2014.

Krizhevsky, Sutskever, Hinton 2012, ImageNet classification with deep convolutional neural networks.
Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from models.layers import (
    Classifier,
    Constant,
    Conv,
    ConvReLU,
    Dense,
    Dropout,
    LocalResponseNorm,
    Normal,
    adaptive_average_pool,
    max_pool,
)
from models.network import Entry, Network
from models.operations import relu


class AlexNet(Network):
    """The network of 2012, Fig. 2: two groups, a GPU each, in conv2, conv4 and conv5; groups=1 joins them."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        dropout_rate: float,
        groups: int = 2,
        local_response_norm: bool = True,
    ):
        """Builds the layers, with section 5's initial values; dropout_rate applies to the hidden dense layers."""
        zero: dict[str, Any] = {"kernel_initializer": Normal(0.01), "bias_initializer": Constant(0)}
        one: dict[str, Any] = {"kernel_initializer": Normal(0.01), "bias_initializer": Constant(1)}
        self.conv1 = Conv(channels, 96, kernel=11, stride=4, **zero)
        self.norm1 = LocalResponseNorm() if local_response_norm else None
        self.conv2 = Conv(96, 256, kernel=5, padding=2, groups=groups, **one)
        self.norm2 = LocalResponseNorm() if local_response_norm else None
        self.conv3 = Conv(256, 384, kernel=3, padding=1, **zero)
        self.conv4 = Conv(384, 384, kernel=3, padding=1, groups=groups, **one)
        self.conv5 = Conv(384, 256, kernel=3, padding=1, groups=groups, **one)
        self.dense6 = Dense((6, 6, 256), 4096, **one)
        self.dropout6 = Dropout(dropout_rate)
        self.dense7 = Dense(4096, 4096, **one)
        self.dropout7 = Dropout(dropout_rate)
        self.head = Classifier(4096, num_classes, **zero)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields conv1 to conv5; 1, 2 and 5 are pooled."""
        x = relu(self.conv1(x))
        x = max_pool(self.norm1(x) if self.norm1 else x, 3, 2)
        yield "conv1", x
        x = relu(self.conv2(x))
        x = max_pool(self.norm2(x) if self.norm2 else x, 3, 2)
        yield "conv2", x
        x = relu(self.conv3(x))
        yield "conv3", x
        x = relu(self.conv4(x))
        yield "conv4", x
        x = max_pool(relu(self.conv5(x)), 3, 2)
        yield "conv5", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 256) to logits (N, num_classes)."""
        x = adaptive_average_pool(x, (6, 6))
        x = self.dropout6(relu(self.dense6(x)))
        x = self.dropout7(relu(self.dense7(x)))
        return self.head(x)


class AlexNetOneWeirdTrick(Network):
    """The single-column network of 2014, as torchvision builds it: conv3 and conv4 have 384 and 256 filters."""

    def __init__(self, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; dropout_rate applies before the two hidden dense layers."""
        self.conv1 = ConvReLU(channels, 64, kernel=11, stride=4, padding=2)
        self.conv2 = ConvReLU(64, 192, kernel=5, padding=2)
        self.conv3 = ConvReLU(192, 384, kernel=3, padding=1)
        self.conv4 = ConvReLU(384, 256, kernel=3, padding=1)
        self.conv5 = ConvReLU(256, 256, kernel=3, padding=1)
        self.dropout6 = Dropout(dropout_rate)
        self.dense6 = Dense((6, 6, 256), 4096)
        self.dropout7 = Dropout(dropout_rate)
        self.dense7 = Dense(4096, 4096)
        self.head = Classifier(4096, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields conv1 to conv5; 1, 2 and 5 are pooled."""
        x = max_pool(self.conv1(x), 3, 2)
        yield "conv1", x
        x = max_pool(self.conv2(x), 3, 2)
        yield "conv2", x
        x = self.conv3(x)
        yield "conv3", x
        x = self.conv4(x)
        yield "conv4", x
        x = max_pool(self.conv5(x), 3, 2)
        yield "conv5", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 256) to logits (N, num_classes)."""
        x = adaptive_average_pool(x, (6, 6))
        x = relu(self.dense6(self.dropout6(x)))
        x = relu(self.dense7(self.dropout7(x)))
        return self.head(x)


TORCH_NAMES = (  # torchvision's alexnet
    (r"^conv1\.conv", "features.0"),
    (r"^conv2\.conv", "features.3"),
    (r"^conv3\.conv", "features.6"),
    (r"^conv4\.conv", "features.8"),
    (r"^conv5\.conv", "features.10"),
    (r"^dense6", "classifier.1"),
    (r"^dense7", "classifier.4"),
    (r"^head", "classifier.6"),
)

_alexnet = partial(Entry, paper="Krizhevsky 2012", image_size=227, dropout_rate=0.5)
ENTRIES = (
    _alexnet("alexnet", AlexNet),
    _alexnet("alexnet_ungrouped", partial(AlexNet, groups=1)),
    _alexnet("alexnet_no_lrn", partial(AlexNet, local_response_norm=False)),
    Entry("alexnet_owt", AlexNetOneWeirdTrick, "Krizhevsky 2014", dropout_rate=0.5, torch_names=TORCH_NAMES),
)
