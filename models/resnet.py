"""Residual networks.

He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition.
He, Zhang, Ren, Sun 2016, Identity mappings in deep residual networks ("v2", pre-activation).
Zhang 2019, Making convolutional networks shift-invariant again ("blur pooling").
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
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
from models.network import Entry, Network
from models.operations import convolve, relu, store


class Projection(Module):
    """A 1x1 convolution as a shortcut, with batch normalisation except in pre-activation networks."""

    def __init__(self, in_features: int, out_features: int, stride: int, batch_norm: bool = True):
        """Builds the layers."""
        self.conv: Module = _conv(in_features, out_features, 1, stride)
        self.norm = BatchNorm(out_features) if batch_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        x = self.conv(x)
        return self.norm(x) if self.norm else x


class ZeroPadding(Module):
    """Every second pixel as a shortcut, and zeros for the new channels, half of them on each side.

    The paper does not say where the zeros go; akamaster's published networks have them on both sides.
    """

    def __init__(self, in_features: int, out_features: int, stride: int):
        """Builds the shortcut."""
        self.zeros, self.stride = (out_features - in_features) // 2, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (self.zeros, self.zeros)))


def make_shortcut(
    option: str | None, in_features: int, out_features: int, stride: int, batch_norm: bool = True
) -> Module | None:
    """Makes the shortcut of a block by the options of He 2015, section 4.1; returns None where it is the identity.

    Args:
      option: A, zero padding where the shape changes; B, a projection there; C, projections everywhere; or None, for
        blocks of a plain network, which have no shortcut.
      in_features: number of features that enter the block.
      out_features: number of features that leave the block.
      stride: stride of the block.
      batch_norm: whether projections have batch normalisation.
    """
    changes = stride != 1 or in_features != out_features
    if option == "C" or (option == "B" and changes):
        return Projection(in_features, out_features, stride, batch_norm)
    return ZeroPadding(in_features, out_features, stride) if option == "A" and changes else None


class BasicBlock(Module):
    """Two 3x3 convolutions: Fig. 5, left."""

    expansion = 1

    def __init__(self, in_features: int, width: int, stride: int, shortcut: str | None):
        """Builds the layers; shortcut is A, B or C, or None for a plain network."""
        self.conv1: Module = _conv(in_features, width, 3, stride)
        self.norm1 = BatchNorm(width)
        self.conv2 = _conv(width, width, 3)
        self.norm2 = BatchNorm(width)
        self.stochastic_depth = StochasticDepth() if shortcut else None
        self.shortcut = make_shortcut(shortcut, in_features, width, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', width)."""
        y = self.norm1(self.conv1(x), activation="relu")
        y = self.norm2(self.conv2(y))
        if self.stochastic_depth:
            y = self.stochastic_depth(y) + (self.shortcut(x) if self.shortcut else x)
        return store(relu(y))


class BlurredConv(Module):
    """A convolution of maps that are blurred first, so that its stride does not alias: Zhang 2019, as in FFCV."""

    def __init__(self, conv: Module):
        """Takes the convolution."""
        self.conv = conv

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        binomial = jnp.array([1, 2, 1], x.dtype) / 4
        kernel = jnp.outer(binomial, binomial)[..., None, None]
        kernel = jnp.broadcast_to(kernel, (3, 3, 1, x.shape[-1]))
        return self.conv(convolve(x, kernel, 1, ((1, 1), (1, 1)), groups=x.shape[-1]))


class BlurredBlock(BasicBlock):
    """The block with blurred maps before its convolutions of stride 2, the shortcut's included."""

    def __init__(self, in_features: int, width: int, stride: int, shortcut: str | None):
        """Builds the layers; shortcut is A, B or C, or None for a plain network."""
        super().__init__(in_features, width, stride, shortcut)
        if stride > 1:
            self.conv1 = BlurredConv(self.conv1)
            if isinstance(self.shortcut, Projection):
                self.shortcut.conv = BlurredConv(self.shortcut.conv)


class Bottleneck(Module):
    """1x1, 3x3 and 1x1 convolutions: Fig. 5, right. The stride is the 3x3's, as in torchvision and elsewhere (v1.5)."""

    expansion = 4
    stride_first = False

    def __init__(self, in_features: int, width: int, stride: int, shortcut: str):
        """Builds the layers; shortcut is A, B or C."""
        out_features = width * self.expansion
        self.conv1 = _conv(in_features, width, 1, stride if self.stride_first else 1)
        self.norm1 = BatchNorm(width)
        self.conv2 = _conv(width, width, 3, 1 if self.stride_first else stride)
        self.norm2 = BatchNorm(width)
        self.conv3 = _conv(width, out_features, 1)
        self.norm3 = BatchNorm(out_features)
        self.stochastic_depth = StochasticDepth()
        self.shortcut = make_shortcut(shortcut, in_features, out_features, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', 4 width)."""
        y = self.norm1(self.conv1(x), activation="relu")
        y = self.norm2(self.conv2(y), activation="relu")
        y = self.stochastic_depth(self.norm3(self.conv3(y)))
        return store(relu(y + (self.shortcut(x) if self.shortcut else x)))


class BottleneckV1(Bottleneck):
    """The block with the stride on the first 1x1, as printed."""

    stride_first = True


class PreActivationBlock(Module):
    """Normalisation and ReLU before each of two 3x3 convolutions: He 2016, Fig. 1(b)."""

    expansion = 1

    def __init__(self, in_features: int, width: int, stride: int, shortcut: str, activated: bool = False):
        """Builds the layers.

        If activated, the input has passed a normalisation and a ReLU already, before it goes to the branch and to the
        shortcut. This is so in the first block (the paper's appendix).
        """
        self.norm1 = None if activated else BatchNorm(in_features)
        self.conv1 = _conv(in_features, width, 3, stride)
        self.norm2 = BatchNorm(width)
        self.conv2 = _conv(width, width, 3)
        self.stochastic_depth = StochasticDepth()
        self.shortcut = make_shortcut(shortcut, in_features, width, stride, batch_norm=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', width)."""
        y = self.norm1(x, activation="relu") if self.norm1 else x
        x = self.shortcut(y) if self.shortcut else x
        y = self.conv2(self.norm2(self.conv1(y), activation="relu"))
        return store(x + self.stochastic_depth(y))


class PreActivationBottleneck(Module):
    """Normalisation and ReLU before 1x1, 3x3 and 1x1 convolutions, the stride the 3x3's: He 2016, section 4."""

    expansion = 4

    def __init__(self, in_features: int, width: int, stride: int, shortcut: str, activated: bool = False):
        """Builds the layers.

        If activated, the input has passed a normalisation and a ReLU already, before it goes to the branch and to the
        shortcut. This is so in the first block (the paper's appendix).
        """
        out_features = width * self.expansion
        self.norm1 = None if activated else BatchNorm(in_features)
        self.conv1 = _conv(in_features, width, 1)
        self.norm2 = BatchNorm(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.norm3 = BatchNorm(width)
        self.conv3 = _conv(width, out_features, 1)
        self.stochastic_depth = StochasticDepth()
        self.shortcut = make_shortcut(shortcut, in_features, out_features, stride, batch_norm=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', 4 width)."""
        y = self.norm1(x, activation="relu") if self.norm1 else x
        x = self.shortcut(y) if self.shortcut else x
        y = self.conv2(self.norm2(self.conv1(y), activation="relu"))
        y = self.conv3(self.norm3(y, activation="relu"))
        return store(x + self.stochastic_depth(y))


class ResNet(Network):
    """The ImageNet networks of Table 1, and with cifar=True those for CIFAR-10 of section 4.2."""

    def __init__(
        self,
        block: Any,
        repeats: tuple[int, ...],
        num_classes: int,
        channels: int,
        dropout_rate: float,
        shortcut: str | None = "B",
        cifar: bool = False,
    ):
        """Builds the layers.

        Args:
          block: one of this file's blocks.
          repeats: number of blocks of each stage.
          num_classes: number of classes.
          channels: number of channels of the images.
          dropout_rate: dropout rate before the classifier; the paper has no dropout.
          shortcut: the option of make_shortcut, or None for a plain network.
          cifar: whether the stem is a 3x3 convolution of 16 filters, not a 7x7 of 64 and pooling.
        """
        features = width = 16 if cifar else 64
        self.conv1 = _conv(channels, features, 3) if cifar else _conv(channels, features, 7, 2)
        self.norm1 = BatchNorm(features)
        self.cifar, self.depth = cifar, len(repeats)
        pre_activation = block in (PreActivationBlock, PreActivationBottleneck)
        options = {"activated": True} if pre_activation else {}
        for number, count in enumerate(repeats, start=1):
            stage: nnx.List[Module] = nnx.List()
            for position in range(count):
                stage.append(block(features, width, 2 if number > 1 and not position else 1, shortcut, **options))
                features, options = width * block.expansion, {}
            setattr(self, f"stage{number}", stage)
            width *= 2
        self.last_norm = BatchNorm(features) if pre_activation else None
        self.dropout = Dropout(dropout_rate)
        self.head = Classifier(features, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields stage1 and so on: conv2_x to conv5_x of Table 1."""
        x = self.norm1(self.conv1(x), activation="relu")
        if not self.cifar:
            x = max_pool(x, 3, 2, padding=1)
        for number in range(1, self.depth + 1):
            for block in getattr(self, f"stage{number}"):
                x = block(x)
            yield f"stage{number}", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, F) to logits (N, num_classes)."""
        x = self.last_norm(x, activation="relu") if self.last_norm else x
        return self.head(self.dropout(global_average_pool(x)))


def _conv(in_features: int, out_features: int, kernel: int, stride: int = 1) -> Conv:
    return Conv(in_features, out_features, kernel, stride, kernel // 2, bias=False, kernel_initializer=kaiming_normal)


TORCH_NAMES = (  # torchvision's resnets
    (r"^stage(\d)\.", r"layer\1."),
    (r"\.shortcut\.conv", ".downsample.0"),
    (r"\.shortcut\.norm", ".downsample.1"),
    (r"norm(\d)", r"bn\1"),
    (r"^head", "fc"),
)
CIFAR_TORCH_NAMES = (*TORCH_NAMES, (r"^fc", "linear"))  # akamaster/pytorch_resnet_cifar10's

# The blocks of each stage by the number of layers: Table 1.
IMAGENET_REPEATS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _for_imagenet(depth: int, basic: type[Module], bottleneck: type[Module], **options: Any) -> Callable[..., ResNet]:
    """Basic blocks in the networks of 18 and 34 layers, bottlenecks in the deeper ones."""
    return partial(ResNet, basic if depth < 50 else bottleneck, IMAGENET_REPEATS[depth], **options)


def _for_cifar(depth: int, shortcut: str | None, block: type[Module] = BasicBlock) -> Callable[..., ResNet]:
    """Three stages of n blocks each: 6n + 2 layers, or 9n + 2 with bottlenecks."""
    layers = 3 if block is PreActivationBottleneck else 2
    return partial(ResNet, block, ((depth - 2) // (3 * layers),) * 3, shortcut=shortcut, cifar=True)


_resnet = partial(Entry, paper="He 2015", torch_names=TORCH_NAMES)
_cifar = partial(_resnet, image_size=32, num_classes=10, torch_names=CIFAR_TORCH_NAMES)
# He 2016 has no torch_names. timm's networks pool before the first normalisation; ours, as the authors', pool after it
# and its ReLU. The two agree only where no scale is negative, and training may make scales negative.
_v2 = partial(Entry, paper="He 2016")
_cifar_v2 = partial(_v2, image_size=32, num_classes=10)
ENTRIES = (
    *(_resnet(f"resnet{depth}", _for_imagenet(depth, BasicBlock, Bottleneck)) for depth in IMAGENET_REPEATS),
    *(_resnet(f"resnet{depth}_v1", _for_imagenet(depth, BasicBlock, BottleneckV1)) for depth in (50, 101, 152)),
    *(
        _v2(f"resnet{depth}_v2", _for_imagenet(depth, PreActivationBlock, PreActivationBottleneck))
        for depth in IMAGENET_REPEATS
    ),
    *(
        _resnet(f"resnet34_{option.lower()}", _for_imagenet(34, BasicBlock, Bottleneck, shortcut=option))
        for option in ("A", "C")
    ),
    _resnet("resnet18_blur", partial(ResNet, BlurredBlock, IMAGENET_REPEATS[18])),  # FFCV's ResNet-18
    *(_resnet(f"plain{depth}", _for_imagenet(depth, BasicBlock, Bottleneck, shortcut=None)) for depth in (18, 34)),
    *(_cifar(f"resnet{depth}", _for_cifar(depth, "A")) for depth in (20, 32, 44, 56, 110)),
    *(_cifar(f"plain{depth}", _for_cifar(depth, None)) for depth in (20, 32, 44, 56)),
    _cifar_v2("resnet110_v2", _for_cifar(110, "A", PreActivationBlock)),
    _cifar_v2("resnet164_v2", _for_cifar(164, "B", PreActivationBottleneck)),
)
