"""Xception: Chollet 2016, Xception: deep learning with depthwise separable convolutions, Fig. 5."""

import itertools
from collections.abc import Iterator

import jax
from flax import nnx

from models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    Dropout,
    Module,
    StochasticDepth,
    global_average_pool,
    kaiming_normal,
    max_pool,
)
from models.network import TENSORFLOW_PIXELS, Entry, Network
from models.operations import relu, store

# The widths of each block's separable convolutions: the entry flow, the middle flow and the exit flow's block.
WIDTHS = ((128, 128), (256, 256), (728, 728), *((728, 728, 728),) * 8, (728, 1024))


class SeparableConv(Module):
    """A 3x3 convolution of each channel by itself, and a 1x1 one, with nothing between them (section 4.7)."""

    def __init__(self, in_features: int, out_features: int):
        """Builds the layers."""
        self.depthwise = _conv(in_features, in_features, 3, padding=1, groups=in_features)
        self.pointwise = _conv(in_features, out_features, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H, W, O)."""
        return self.pointwise(self.depthwise(x))


class Block(Module):
    """Separable convolutions, each with ReLU before and batch normalisation after it, and a shortcut around them."""

    def __init__(self, in_features: int, widths: tuple[int, ...], first: bool):
        """Builds the layers; a block that changes the width halves the map; the first starts without ReLU."""
        self.first = first
        pairs = itertools.pairwise((in_features, *widths))
        self.convs = nnx.List([SeparableConv(*pair) for pair in pairs])
        self.norms = nnx.List([BatchNorm(width) for width in widths])
        features = widths[-1]
        changes = features != in_features
        self.shortcut = _conv(in_features, features, 1, stride=2) if changes else None
        self.shortcut_norm = BatchNorm(features) if changes else None
        self.stochastic_depth = StochasticDepth()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        y = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y if self.first and not index else relu(y)))
        if not self.shortcut or not self.shortcut_norm:
            return store(x + self.stochastic_depth(y))
        return self.shortcut_norm(self.shortcut(x)) + self.stochastic_depth(max_pool(y, 3, 2, padding=1))


class Xception(Network):
    """The network of Fig. 5 with PyTorch's padding: 1 pixel on each side, where TensorFlow may pad one side only."""

    def __init__(self, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; dropout_rate applies before the classifier."""
        self.conv1 = _conv(channels, 32, 3, stride=2)
        self.norm1 = BatchNorm(32)
        self.conv2 = _conv(32, 64, 3)
        self.norm2 = BatchNorm(64)
        features = 64
        for number, widths in enumerate(WIDTHS, start=1):
            setattr(self, f"block{number}", Block(features, widths, first=number == 1))
            features = widths[-1]
        self.conv3 = SeparableConv(features, 1536)
        self.norm3 = BatchNorm(1536)
        self.conv4 = SeparableConv(1536, 2048)
        self.norm4 = BatchNorm(2048)
        self.dropout = Dropout(dropout_rate)
        self.head = Classifier(2048, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields block1 to block12, each with its shortcut."""
        x = self.norm1(self.conv1(x), activation="relu")
        x = self.norm2(self.conv2(x), activation="relu")
        for number in range(1, len(WIDTHS) + 1):
            x = getattr(self, f"block{number}")(x)
            yield f"block{number}", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 1024) to logits (N, num_classes)."""
        x = self.norm3(self.conv3(x), activation="relu")
        x = self.norm4(self.conv4(x), activation="relu")
        return self.head(self.dropout(global_average_pool(x)))


def _conv(in_features: int, out_features: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> Conv:
    return Conv(
        in_features, out_features, kernel, stride, padding, groups, bias=False, kernel_initializer=kaiming_normal
    )


TORCH_NAMES = (  # timm's legacy_xception, which counts a block's layers in one list, ReLU included
    *((rf"^(block1)\.convs\.{index}\.", rf"\1.rep.{3 * index}.") for index in range(2)),
    *((rf"^(block1)\.norms\.{index}\.", rf"\1.rep.{3 * index + 1}.") for index in range(2)),
    *((rf"\.convs\.{index}\.", f".rep.{3 * index + 1}.") for index in range(3)),
    *((rf"\.norms\.{index}\.", f".rep.{3 * index + 2}.") for index in range(3)),
    (r"\.depthwise", ".conv1"),
    (r"shortcut_norm", "skipbn"),
    (r"shortcut", "skip"),
    (r"^norm(\d)", r"bn\1"),
    (r"^head", "fc"),
)

ENTRIES = (
    Entry(
        "xception",
        Xception,
        "Chollet 2016",
        image_size=299,
        dropout_rate=0.5,
        torch_names=TORCH_NAMES,
        **TENSORFLOW_PIXELS,
    ),
)
