"""ConvNeXt: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, A ConvNet for the 2020s. In torchvision's form."""

from collections.abc import Iterator
from functools import partial

import jax
from flax import nnx

from models.layers import (
    Classifier,
    Constant,
    Conv,
    Dense,
    Dropout,
    LayerNorm,
    LayerScale,
    Module,
    Normal,
    StochasticDepth,
    global_average_pool,
)
from models.network import Entry, Network
from models.operations import store

WIDTHS = {"T": (96, 192, 384, 768), "S": (96, 192, 384, 768), "B": (128, 256, 512, 1024)}  # section 3
BLOCKS = {"T": (3, 3, 9, 3), "S": (3, 3, 27, 3), "B": (3, 3, 27, 3)}
LAYER_SCALE = 1e-6  # appendix A.1
# Initial kernels are normal with a standard deviation of 0.02: appendix A.1. The paper truncates the distribution at
# -2 and 2, which is 100 standard deviations from 0, so the truncation changes nothing.
CONV = partial(Conv, kernel_initializer=Normal(0.02), bias_initializer=Constant(0))
DENSE = partial(Dense, kernel_initializer=Normal(0.02), bias_initializer=Constant(0))


class Block(Module):
    """A 7x7 depthwise convolution, a normalisation and two dense layers at each pixel: Fig. 4, right."""

    def __init__(self, width: int):
        """Builds the layers."""
        self.depthwise = CONV(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm(width)
        self.dense1 = DENSE(width, 4 * width)
        self.dense2 = DENSE(4 * width, width)
        self.layer_scale = LayerScale(width, LAYER_SCALE)
        self.stochastic_depth = StochasticDepth()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, width) to the same shape."""
        y = self.dense1(self.norm(self.depthwise(x)))
        y = self.layer_scale(self.dense2(jax.nn.gelu(y, approximate=False)))
        return store(x + self.stochastic_depth(y))


class Downsampling(Module):
    """A normalisation and a 2x2 convolution with a stride of 2, between two stages: section 2.6."""

    def __init__(self, in_features: int, out_features: int):
        """Builds the layers."""
        self.norm = LayerNorm(in_features)
        self.conv = CONV(in_features, out_features, 2, stride=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H / 2, W / 2, O)."""
        return self.conv(self.norm(x))


class ConvNeXt(Network):
    """The networks of section 3: four stages behind a stem that cuts the image into patches of 4x4 pixels."""

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        num_classes: int,
        channels: int,
        dropout_rate: float,
    ):
        """Builds the layers.

        Args:
          widths: number of features of each stage.
          blocks: number of blocks of each stage.
          num_classes: number of classes.
          channels: number of channels of the images.
          dropout_rate: dropout rate before the classifier; the paper has no dropout.
        """
        self.stem = CONV(channels, widths[0], 4, stride=4)
        self.stem_norm = LayerNorm(widths[0])
        self.depth = len(widths)
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            if number > 1:
                setattr(self, f"downsampling{number}", Downsampling(widths[number - 2], width))
            setattr(self, f"stage{number}", nnx.List([Block(width) for _ in range(count)]))
        self.last_norm = LayerNorm(widths[-1])
        self.dropout = Dropout(dropout_rate)
        self.head = Classifier(widths[-1], num_classes, Normal(0.02), Constant(0))

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields stage1 and so on."""
        x = self.stem_norm(self.stem(x))
        for number in range(1, self.depth + 1):
            if number > 1:
                x = getattr(self, f"downsampling{number}")(x)
            for block in getattr(self, f"stage{number}"):
                x = block(x)
            yield f"stage{number}", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, F) to logits (N, num_classes)."""
        return self.head(self.dropout(self.last_norm(global_average_pool(x))))


TORCH_NAMES = (  # torchvision's
    (r"^stem\.", "features.0.0."),
    (r"^stem_norm\.", "features.0.1."),
    *((rf"^stage{number}\.", f"features.{2 * number - 1}.") for number in range(1, 5)),
    *((rf"^downsampling{number}\.", f"features.{2 * number - 2}.") for number in range(2, 5)),
    (r"\.depthwise\.", ".block.0."),
    (r"(\.\d+\.\d+)\.norm\.", r"\1.block.2."),
    (r"\.dense1\.", ".block.3."),
    (r"\.dense2\.", ".block.5."),
    (r"\.layer_scale\.factor$", ".layer_scale"),
    (r"(\.\d)\.norm\.", r"\1.0."),
    (r"(\.\d)\.conv\.", r"\1.1."),
    (r"^last_norm\.", "classifier.0."),
    (r"^head\.", "classifier.2."),
)

TIMM_NAMES = (  # in timm's files, to those of torchvision
    (r"^stem\.", "features.0."),
    *((rf"^stages\.{stage}\.downsample\.", f"features.{2 * stage}.") for stage in range(1, 4)),
    *((rf"^stages\.{stage}\.blocks\.", f"features.{2 * stage + 1}.") for stage in range(4)),
    (r"\.conv_dw\.", ".block.0."),
    (r"(\.\d+\.\d+)\.norm\.", r"\1.block.2."),
    (r"\.mlp\.fc1\.", ".block.3."),
    (r"\.mlp\.fc2\.", ".block.5."),
    (r"\.gamma$", ".layer_scale"),
    (r"^head\.norm\.", "classifier.0."),
    (r"^head\.fc\.", "classifier.2."),
)

_entry = partial(Entry, paper="Liu 2022", torch_names=TORCH_NAMES, old_torch_names=TIMM_NAMES)
ENTRIES = tuple(
    _entry(f"convnext_{name}", partial(ConvNeXt, WIDTHS[letter], BLOCKS[letter]))
    for name, letter in (("tiny", "T"), ("small", "S"), ("base", "B"))
)
