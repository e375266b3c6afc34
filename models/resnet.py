"""Residual networks: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers import BatchNorm, Classifier, Conv, Dropout, Module, global_average_pool, kaiming_normal, max_pool


class Projection(Module):
    """Shortcut option B: a 1x1 convolution where the shape changes."""

    def __init__(self, in_features: int, out_features: int, stride: int):
        """Builds the layers."""
        self.conv = _conv(in_features, out_features, 1, stride)
        self.norm = BatchNorm(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        return self.norm(self.conv(x))


class ZeroPadding(Module):
    """Shortcut option A: every second pixel, and zeros for the new channels, half of them on each side.

    The paper does not say where the zeros go; akamaster's published networks have them on both sides.
    """

    def __init__(self, in_features: int, out_features: int, stride: int):
        """Builds the shortcut."""
        self.zeros, self.stride = (out_features - in_features) // 2, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (self.zeros, self.zeros)))


class BasicBlock(Module):
    """Two 3x3 convolutions: Fig. 5, left."""

    expansion = 1

    def __init__(self, in_features: int, width: int, stride: int, shortcut: type[Module] | None):
        """Builds the layers; shortcut None leaves a plain network."""
        self.conv1 = _conv(in_features, width, 3, stride)
        self.norm1 = BatchNorm(width)
        self.conv2 = _conv(width, width, 3)
        self.norm2 = BatchNorm(width)
        self.residual = shortcut is not None
        changes = self.residual and (stride != 1 or in_features != width)
        self.shortcut = shortcut(in_features, width, stride) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', width)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.residual:
            y += self.shortcut(x) if self.shortcut else x
        return nnx.relu(y)


class Bottleneck(Module):
    """1x1, 3x3 and 1x1 convolutions: Fig. 5, right.

    The stride is the 3x3's, as in torchvision and elsewhere ("v1.5"); the paper has it in the first 1x1.
    """

    expansion = 4

    def __init__(self, in_features: int, width: int, stride: int, shortcut: type[Module]):
        """Builds the layers."""
        out_features = width * self.expansion
        self.conv1 = _conv(in_features, width, 1)
        self.norm1 = BatchNorm(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.norm2 = BatchNorm(width)
        self.conv3 = _conv(width, out_features, 1)
        self.norm3 = BatchNorm(out_features)
        changes = stride != 1 or in_features != out_features
        self.shortcut = shortcut(in_features, out_features, stride) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', 4 width)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return nnx.relu(y + (self.shortcut(x) if self.shortcut else x))


class ResNet(Module):
    """The ImageNet networks of Table 1, and with cifar=True those for CIFAR-10 of section 4.2."""

    def __init__(
        self,
        block: type[Module],
        repeats: tuple[int, ...],
        num_classes: int,
        channels: int,
        dropout_rate: float,
        shortcut: type[Module] | None = Projection,
        cifar: bool = False,
    ):
        """Builds the layers.

        Args:
          block: BasicBlock or Bottleneck.
          repeats: the number of blocks of each stage.
          num_classes: how many classes.
          channels: of the images.
          dropout_rate: that before the classifier; the paper has none.
          shortcut: what a shortcut is where the shape changes, or None for a plain network.
          cifar: whether the stem is a 3x3 convolution of 16 filters, not a 7x7 of 64 and pooling.
        """
        features = 16 if cifar else 64
        self.conv1 = _conv(channels, features, 3) if cifar else _conv(channels, features, 7, 2)
        self.norm1 = BatchNorm(features)
        self.cifar = cifar
        stages, width = [], features
        for index, count in enumerate(repeats):
            stage = nnx.List()
            for position in range(count):
                stage.append(block(features, width, 2 if index and not position else 1, shortcut))
                features = width * block.expansion
            stages.append(stage)
            width *= 2
        self.stages = nnx.List(stages)
        self.dropout = Dropout(dropout_rate)
        self.head = Classifier(features, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to logits (N, num_classes)."""
        x = nnx.relu(self.norm1(self.conv1(x)))
        if not self.cifar:
            x = max_pool(x, 3, 2, padding=1)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(self.dropout(global_average_pool(x)))


def _conv(in_features: int, out_features: int, kernel: int, stride: int = 1) -> Conv:
    return Conv(in_features, out_features, kernel, stride, kernel // 2, bias=False, kernel_initializer=kaiming_normal)


TORCH_NAMES = (  # torchvision's resnets
    *((rf"^stages\.{stage}", f"layer{stage + 1}") for stage in range(4)),
    (r"\.shortcut\.conv", ".downsample.0"),
    (r"\.shortcut\.norm", ".downsample.1"),
    (r"norm(\d)", r"bn\1"),
    (r"^head", "fc"),
)
CIFAR_TORCH_NAMES = (*TORCH_NAMES, (r"^fc", "linear"))  # akamaster/pytorch_resnet_cifar10's
