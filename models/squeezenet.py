"""SqueezeNet: Iandola et al. 2016, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, Table 1."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from models.layers import (
    Constant,
    ConvReLU,
    Dropout,
    Module,
    Normal,
    global_average_pool,
    lecun_uniform,
    max_pool,
    to_logits,
)
from models.network import Entry, Network
from models.operations import concatenate

# s1x1 of fire2 to fire9; e1x1 and e3x3 are four times as wide.
SQUEEZE_WIDTHS = {
    "fire2": 16,
    "fire3": 16,
    "fire4": 32,
    "fire5": 32,
    "fire6": 48,
    "fire7": 48,
    "fire8": 64,
    "fire9": 64,
}
POOLED = {"1.0": ("fire4", "fire8"), "1.1": ("fire3", "fire5")}
# The initial values of the authors: Caffe's xavier.
OPTIONS: dict[str, Any] = {"kernel_initializer": lecun_uniform, "bias_initializer": Constant(0)}


class Fire(Module):
    """A layer of 1x1 convolutions that squeezes, and one of 1x1 and 3x3 ones that expands: Fig. 1."""

    def __init__(self, in_features: int, squeeze: int):
        """Builds the layers."""
        self.squeeze = ConvReLU(in_features, squeeze, kernel=1, **OPTIONS)
        self.expand1x1 = ConvReLU(squeeze, 4 * squeeze, kernel=1, **OPTIONS)
        self.expand3x3 = ConvReLU(squeeze, 4 * squeeze, kernel=3, padding=1, **OPTIONS)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H, W, 8 squeeze)."""
        x = self.squeeze(x)
        return concatenate((self.expand1x1(x), self.expand3x3(x)))


class SqueezeNet(Network):
    """Version 1.0, of the paper, or 1.1, the authors' later one.

    Version 1.1 has a smaller stem, and pools after fire3 and fire5; version 1.0 pools after fire4 and fire8.
    """

    def __init__(self, version: str, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; version is 1.0 or 1.1, dropout_rate that before the classifier."""
        features, kernel = (96, 7) if version == "1.0" else (64, 3)
        self.pooled = POOLED[version]
        self.conv1 = ConvReLU(channels, features, kernel, stride=2, **OPTIONS)
        for name, width in SQUEEZE_WIDTHS.items():
            setattr(self, name, Fire(features, width))
            features = 8 * width
        self.dropout = Dropout(dropout_rate)
        options = OPTIONS | {"kernel_initializer": Normal(0.01)}
        self.head = ConvReLU(features, num_classes, kernel=1, **options)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields conv1 and fire2 to fire9, pooled where the version says so."""
        x = max_pool(self.conv1(x), 3, 2, ceil=True)
        yield "conv1", x
        for name in SQUEEZE_WIDTHS:
            x = getattr(self, name)(x)
            x = max_pool(x, 3, 2, ceil=True) if name in self.pooled else x
            yield name, x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 512) to logits (N, num_classes), which are at least 0, as conv10 has a ReLU."""
        return global_average_pool(to_logits(self.head(self.dropout(x))))


def torch_names(version: str) -> tuple[tuple[str, str], ...]:
    """Returns the rules for torchvision's names, which count all layers in one list, ReLU and pooling included."""
    names, position = [("^conv1", "features.0"), ("^head", "classifier.1")], 3
    for fire in SQUEEZE_WIDTHS:
        names.append((f"^{fire}", f"features.{position}"))
        position += 2 if fire in POOLED[version] else 1
    return (*names, (r"\.conv\.", "."))


_squeezenet = partial(Entry, paper="Iandola 2016", dropout_rate=0.5)
ENTRIES = (
    _squeezenet("squeezenet1_0", partial(SqueezeNet, "1.0"), torch_names=torch_names("1.0")),
    _squeezenet("squeezenet1_1", partial(SqueezeNet, "1.1"), torch_names=torch_names("1.1")),
)
