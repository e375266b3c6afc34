"""ZFNet: Zeiler and Fergus 2013, Visualizing and understanding convolutional networks, Fig. 3."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from models.layers import (
    Classifier,
    Constant,
    Conv,
    Dense,
    Dropout,
    LocalResponseNorm,
    Normal,
    adaptive_average_pool,
    max_pool,
)
from models.network import Entry, Network
from models.operations import relu


class ZFNet(Network):
    """AlexNet with a 7x7 stem of stride 2 and a second stride of 2: maps of 110, 55, 26, 13 and 6 pixels.

    The contrast normalisation across maps is Krizhevsky's (2012, section 3.3); pooling rounds up.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        dropout_rate: float,
        widths: tuple[int, int, int] = (384, 384, 256),
    ):
        """Builds the layers, with section 3's initial values.

        Args:
          num_classes: number of classes.
          channels: number of channels of the images.
          dropout_rate: dropout rate of the hidden dense layers.
          widths: of conv3 to conv5; section 5.1 also tries 512, 1024, 512.
        """
        width3, width4, width5 = widths
        options: dict[str, Any] = {"kernel_initializer": Normal(0.01), "bias_initializer": Constant(0)}
        self.conv1 = Conv(channels, 96, kernel=7, stride=2, padding=1, **options)
        self.norm1 = LocalResponseNorm()
        self.conv2 = Conv(96, 256, kernel=5, stride=2, **options)
        self.norm2 = LocalResponseNorm()
        self.conv3 = Conv(256, width3, kernel=3, padding=1, **options)
        self.conv4 = Conv(width3, width4, kernel=3, padding=1, **options)
        self.conv5 = Conv(width4, width5, kernel=3, padding=1, **options)
        self.dense6 = Dense((6, 6, width5), 4096, **options)
        self.dropout6 = Dropout(dropout_rate)
        self.dense7 = Dense(4096, 4096, **options)
        self.dropout7 = Dropout(dropout_rate)
        self.head = Classifier(4096, num_classes, **options)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields conv1 to conv5; 1, 2 and 5 are pooled."""
        x = self.norm1(max_pool(relu(self.conv1(x)), 3, 2, ceil=True))
        yield "conv1", x
        x = self.norm2(max_pool(relu(self.conv2(x)), 3, 2, ceil=True))
        yield "conv2", x
        x = relu(self.conv3(x))
        yield "conv3", x
        x = relu(self.conv4(x))
        yield "conv4", x
        x = max_pool(relu(self.conv5(x)), 3, 2, ceil=True)
        yield "conv5", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, F) to logits (N, num_classes)."""
        x = adaptive_average_pool(x, (6, 6))
        x = self.dropout6(relu(self.dense6(x)))
        x = self.dropout7(relu(self.dense7(x)))
        return self.head(x)


_zfnet = partial(Entry, paper="Zeiler and Fergus 2013", dropout_rate=0.5)
ENTRIES = (_zfnet("zfnet", ZFNet), _zfnet("zfnet_wide", partial(ZFNet, widths=(512, 1024, 512))))
