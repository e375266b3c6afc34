"""Inception after GoogLeNet.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015, Rethinking the Inception architecture for computer vision: v3.
Szegedy, Ioffe, Vanhoucke, Alemi 2016, Inception-v4, Inception-ResNet and the impact of residual connections.

Where the papers leave a choice, widths and padding are those of the authors' published networks, as torchvision (v3)
and timm (the others) have them.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
from flax import nnx

from models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    ConvReLU,
    Dropout,
    Module,
    StochasticDepth,
    adaptive_average_pool,
    average_pool,
    global_average_pool,
    kaiming_normal,
    max_pool,
)
from models.network import TENSORFLOW_PIXELS, Entry, Network
from models.operations import concatenate, relu, store

CONV = partial(ConvReLU, bias=False, batch_norm=partial(BatchNorm, epsilon=1e-3), kernel_initializer=kaiming_normal)
# A function from the number of features in to a module and its number of features out.
Layer = Callable[[int], tuple[Module, int]]


# Branches


class MaxPool(Module):
    """Maxima over 3x3 windows with a stride of 2."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to (N, floor((H - 1) / 2), ..., C)."""
        return max_pool(x, 3, 2)


class AveragePool(Module):
    """Means over 3x3 windows."""

    def __init__(self, count_padding: bool):
        """Builds the layer; count_padding is that of average_pool."""
        self.count_padding = count_padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to the same shape."""
        return average_pool(x, 3, 1, padding=1, count_padding=self.count_padding)


def conv(width: int, kernel: int | tuple[int, int] = 1, stride: int = 1, valid: bool = False) -> Layer:
    """A convolution, batch normalisation and ReLU, unpadded if valid (the figures' V) or strided."""

    def make(in_features: int) -> tuple[Module, int]:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid or stride > 1 else tuple(side // 2 for side in sides)
        return CONV(in_features, width, kernel, stride, padding), width

    return make


def split(width: int) -> Layer:
    """1x3 and 3x1 convolutions side by side."""
    return lambda in_features: (Branches(in_features, [conv(width, (1, 3))], [conv(width, (3, 1))]), 2 * width)


def grid_pool(in_features: int) -> tuple[Module, int]:
    """Pooling that halves the map."""
    return MaxPool(), in_features


def average(in_features: int) -> tuple[Module, int]:
    """Average pooling whose means leave the zeros of the padding out: TensorFlow's, in v4 and Inception-ResNet."""
    return AveragePool(count_padding=False), in_features


def padded_average(in_features: int) -> tuple[Module, int]:
    """Pooling as torchvision's v3 does it: zeros of the padding count."""
    return AveragePool(count_padding=True), in_features


def sequence(in_features: int, layers: list[Layer]) -> tuple[nnx.List, int]:
    """Returns the layers' modules, one after the other, and the number of features of the last."""
    modules: nnx.List[nnx.Module] = nnx.List()
    for layer in layers:
        module, in_features = layer(in_features)
        modules.append(module)
    return modules, in_features


def run(modules: nnx.List, x: jax.Array) -> jax.Array:
    """Applies one module after the other."""
    for module in modules:
        x = module(x)
    return x


class Branches(Module):
    """Sequences of layers side by side, whose maps are concatenated: an Inception module."""

    def __init__(self, in_features: int, *branches: list[Layer]):
        """Builds branch0, branch1 and so on."""
        self.count, self.features = len(branches), 0
        for index, layers in enumerate(branches):
            modules, width = sequence(in_features, layers)
            setattr(self, f"branch{index}", modules)
            self.features += width

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', features)."""
        branches = [run(getattr(self, f"branch{index}"), x) for index in range(self.count)]
        return concatenate(branches)


def branches(*layers: list[Layer]) -> Layer:
    """Branches as a layer."""

    def make(in_features: int) -> tuple[Module, int]:
        module = Branches(in_features, *layers)
        return module, module.features

    return make


class AuxiliaryHead(Module):
    """The auxiliary classifier of Inception-v3, on maps of 17x17 pixels: Fig. 8."""

    def __init__(self, in_features: int, num_classes: int):
        """Builds the layers."""
        self.conv0 = CONV(in_features, 128, kernel=1)
        self.conv1 = CONV(128, 768, kernel=5)
        self.output = Classifier(768, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to logits (N, num_classes); maps below 17x17 are pooled adaptively."""
        x = average_pool(x, 5, 3) if min(x.shape[1:3]) >= 17 else adaptive_average_pool(x, (5, 5))
        return self.output(global_average_pool(self.conv1(self.conv0(x))))


# Inception-v3: 2015, Table 1


def figure5(pool_width: int) -> Layer:
    """The module for maps of 35x35; its second branch keeps one 5x5 convolution, as the published network does."""
    return branches(
        [conv(64)],
        [conv(48), conv(64, 5)],
        [conv(64), conv(96, 3), conv(96, 3)],
        [padded_average, conv(pool_width)],
    )


def figure6(width: int) -> Layer:
    """The module for maps of 17x17, its 7x7 convolutions factorised."""
    return branches(
        [conv(192)],
        [conv(width), conv(width, (1, 7)), conv(192, (7, 1))],
        [conv(width), conv(width, (7, 1)), conv(width, (1, 7)), conv(width, (7, 1)), conv(192, (1, 7))],
        [padded_average, conv(192)],
    )


FIGURE7 = branches(  # the module for maps of 8x8
    [conv(320)],
    [conv(384), split(384)],
    [conv(448), conv(384, 3), split(384)],
    [padded_average, conv(192)],
)
V3_STEM = [conv(32, 3, 2), conv(32, 3, valid=True), conv(64, 3), grid_pool]
V3_STEM += [conv(80), conv(192, 3, valid=True), grid_pool]
V3_MODULES = {
    "mixed_5b": figure5(32),
    "mixed_5c": figure5(64),
    "mixed_5d": figure5(64),
    "mixed_6a": branches([conv(384, 3, 2)], [conv(64), conv(96, 3), conv(96, 3, 2)], [grid_pool]),
    "mixed_6b": figure6(128),
    "mixed_6c": figure6(160),
    "mixed_6d": figure6(160),
    "mixed_6e": figure6(192),
    "mixed_7a": branches(
        [conv(192), conv(320, 3, 2)],
        [conv(192), conv(192, (1, 7)), conv(192, (7, 1)), conv(192, 3, 2)],
        [grid_pool],
    ),
    "mixed_7b": FIGURE7,
    "mixed_7c": FIGURE7,
}
AUX_HEADS = ("mixed_6e",)


class InceptionV3(Network):
    """The network of 2015, its modules named as by its authors."""

    def __init__(self, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; dropout_rate applies before the classifier."""
        self.stem, features = sequence(channels, V3_STEM)
        for name, layer in V3_MODULES.items():
            module, features = layer(features)
            setattr(self, name, module)
        self.dropout = Dropout(dropout_rate)
        self.head = Classifier(features, num_classes)

    def make_auxiliary_head(self, in_features: int, num_classes: int, dropout_rate: float) -> AuxiliaryHead:
        """Returns the classifier of Fig. 8, which has no dropout."""
        return AuxiliaryHead(in_features, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields the modules mixed_5b to mixed_7c."""
        x = run(self.stem, x)
        for name in V3_MODULES:
            x = getattr(self, name)(x)
            yield name, x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 2048) to logits (N, num_classes)."""
        return self.head(self.dropout(global_average_pool(x)))


# Inception-v4: 2016, Fig. 9, and Inception-ResNet-v2: Fig. 15

V4_STEM = [  # Fig. 3
    conv(32, 3, 2),
    conv(32, 3, valid=True),
    conv(64, 3),
    branches([grid_pool], [conv(96, 3, 2)]),
    branches(
        [conv(64), conv(96, 3, valid=True)],
        [conv(64), conv(64, (1, 7)), conv(64, (7, 1)), conv(96, 3, valid=True)],
    ),
    branches([conv(192, 3, 2)], [grid_pool]),
]
V4_STAGES = {
    "stem": V4_STEM,
    "inception_a": [  # Fig. 4
        branches(
            [conv(96)],
            [conv(64), conv(96, 3)],
            [conv(64), conv(96, 3), conv(96, 3)],
            [average, conv(96)],
        )
    ]
    * 4,
    "reduction_a": [branches([conv(384, 3, 2)], [conv(192), conv(224, 3), conv(256, 3, 2)], [grid_pool])],  # Fig. 7
    "inception_b": [  # Fig. 5
        branches(
            [conv(384)],
            [conv(192), conv(224, (1, 7)), conv(256, (7, 1))],
            [conv(192), conv(192, (7, 1)), conv(224, (1, 7)), conv(224, (7, 1)), conv(256, (1, 7))],
            [average, conv(128)],
        )
    ]
    * 7,
    "reduction_b": [  # Fig. 8
        branches(
            [conv(192), conv(192, 3, 2)],
            [conv(256), conv(256, (1, 7)), conv(320, (7, 1)), conv(320, 3, 2)],
            [grid_pool],
        )
    ],
    "inception_c": [  # Fig. 6
        branches(
            [conv(256)],
            [conv(384), split(256)],
            [conv(384), conv(448, (3, 1)), conv(512, (1, 3)), split(256)],
            [average, conv(256)],
        )
    ]
    * 3,
}


class Residual(Module):
    """An Inception module with a residual connection: its map, brought to the width of x, is scaled and added to x."""

    def __init__(self, in_features: int, inception: Layer, scale: float, activated: bool):
        """Builds the layers; activated says whether the sum passes a ReLU, scale is that of section 3.3."""
        self.inception, features = inception(in_features)
        self.linear = Conv(features, in_features, kernel=1, kernel_initializer=kaiming_normal)
        self.stochastic_depth = StochasticDepth()
        self.scale, self.activated = scale, activated

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to the same shape."""
        x += self.stochastic_depth(self.scale * self.linear(self.inception(x)))
        return store(relu(x) if self.activated else x)


def residual(*layers: list[Layer], scale: float, activated: bool = True) -> Layer:
    """A residual Inception module as a layer."""
    return lambda in_features: (Residual(in_features, branches(*layers), scale, activated), in_features)


_RESIDUAL_A = residual([conv(32)], [conv(32), conv(32, 3)], [conv(32), conv(48, 3), conv(64, 3)], scale=0.17)
_RESIDUAL_B = residual([conv(192)], [conv(128), conv(160, (1, 7)), conv(192, (7, 1))], scale=0.1)
_residual_c = partial(residual, [conv(192)], [conv(192), conv(224, (1, 3)), conv(256, (3, 1))])
INCEPTION_RESNET_V2_STAGES = {
    "stem": [  # the published network's: v3's stem and a module, where the paper has v4's
        *V3_STEM,
        branches([conv(96)], [conv(48), conv(64, 5)], [conv(64), conv(96, 3), conv(96, 3)], [average, conv(64)]),
    ],
    "inception_a": [_RESIDUAL_A] * 10,  # Fig. 16
    "reduction_a": [branches([conv(384, 3, 2)], [conv(256), conv(256, 3), conv(384, 3, 2)], [grid_pool])],  # Fig. 7
    "inception_b": [_RESIDUAL_B] * 20,  # Fig. 17
    "reduction_b": [  # Fig. 18
        branches(
            [conv(256), conv(384, 3, 2)],
            [conv(256), conv(288, 3, 2)],
            [conv(256), conv(288, 3), conv(320, 3, 2)],
            [grid_pool],
        )
    ],
    "inception_c": [_residual_c(scale=0.2)] * 9 + [_residual_c(scale=1.0, activated=False), conv(1536)],  # Fig. 19
}


class InceptionV4(Network):
    """The networks of 2016: Inception-v4, and with the other stages Inception-ResNet-v2."""

    def __init__(
        self, num_classes: int, channels: int, dropout_rate: float, layers: dict[str, list[Layer]] = V4_STAGES
    ):
        """Builds the layers; dropout_rate applies before the classifier, layers are those of each stage."""
        features = channels
        for name in layers:
            modules, features = sequence(features, layers[name])
            setattr(self, name, modules)
        self.stage_names = tuple(layers)
        self.dropout = Dropout(dropout_rate)
        self.head = Classifier(features, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields stem, inception_a, reduction_a, inception_b, reduction_b and inception_c."""
        for name in self.stage_names:
            x = run(getattr(self, name), x)
            yield name, x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 1536) to logits (N, num_classes)."""
        return self.head(self.dropout(global_average_pool(x)))


# PyTorch's names


def _torch_branches(modules: str, *names: str) -> tuple[tuple[str, str], ...]:
    """torchvision's names for the branches of v3's modules, with digits that a later rule makes larger by one."""
    return tuple((rf"^mixed_({modules})\.branch{index}\.", rf"Mixed_\1.{name}_") for index, name in enumerate(names))


TORCH_NAMES = (  # torchvision's inception_v3
    (r"^mixed_6e_head\.output", "AuxLogits.fc"),
    (r"^mixed_6e_head", "AuxLogits"),
    *((rf"^stem\.{index}\.", f"Conv2d_{name}.") for index, name in ((0, "1a_3x3"), (1, "2a_3x3"), (2, "2b_3x3"))),
    *((rf"^stem\.{index}\.", f"Conv2d_{name}.") for index, name in ((4, "3b_1x1"), (5, "4a_3x3"))),
    *_torch_branches("5[bcd]", "branch1x1", "branch5x5", "branch3x3dbl", "branch_pool"),
    *_torch_branches("6a", "branch3x3", "branch3x3dbl"),
    *_torch_branches("6[bcde]", "branch1x1", "branch7x7", "branch7x7dbl", "branch_pool"),
    *_torch_branches("7a", "branch3x3", "branch7x7x3"),
    *_torch_branches("7[bc]", "branch1x1", "branch3x3", "branch3x3dbl", "branch_pool"),
    (r"(branch1x1|branch_pool|6a\.branch3x3)_\d\.", r"\1."),
    *((rf"_{count}\.", f"_{count + 1}.") for count in (4, 3, 2, 1, 0)),
    (r"_(\d)\.branch0\.0\.", r"_\1a."),
    (r"_(\d)\.branch1\.0\.", r"_\1b."),
    (r"\.batch_norm\.", ".bn."),
    (r"^head", "fc"),
)
_V4_POSITIONS = (("stem", 0, 6), ("inception_a", 6, 4), ("reduction_a", 10, 1), ("inception_b", 11, 7))
_V4_POSITIONS += (("reduction_b", 18, 1), ("inception_c", 19, 3))
V4_TORCH_NAMES = (  # timm's inception_v4, whose features are one list
    (r"^stem\.3\.branch1\.0\.", "features.3.conv."),
    (r"^stem\.5\.branch0\.0\.", "features.5.conv."),
    (r"^(inception_[abc]\.\d|reduction_a\.0)\.branch0\.0\.", r"\1.branch0."),
    (r"^(inception_c\.\d)\.branch([12])\.([012])\.(?!branch)", r"\1.branch\2_\3."),
    (r"^(inception_c\.\d)\.branch([12])\.(\d)\.branch0\.0\.", r"\1.branch\2_\3a."),
    (r"^(inception_c\.\d)\.branch([12])\.(\d)\.branch1\.0\.", r"\1.branch\2_\3b."),
    *(
        (rf"^{stage}\.{index}\.", f"features.{first + index}.")
        for stage, first, count in _V4_POSITIONS
        for index in range(count)
    ),
    (r"\.batch_norm\.", ".bn."),
    (r"^head", "last_linear"),
)
INCEPTION_RESNET_V2_TORCH_NAMES = (  # timm's inception_resnet_v2
    *(
        (rf"^stem\.{index}\.", f"{name}.")
        for index, name in ((0, "conv2d_1a"), (1, "conv2d_2a"), (2, "conv2d_2b"), (4, "conv2d_3b"), (5, "conv2d_4a"))
    ),
    (r"^stem\.7\.", "mixed_5b."),
    (r"^inception_c\.9\.", "block8."),
    (r"^inception_c\.10\.", "conv2d_7b."),
    (r"^inception_a", "repeat"),
    (r"^inception_b", "repeat_1"),
    (r"^inception_c", "repeat_2"),
    (r"^reduction_a\.0", "mixed_6a"),
    (r"^reduction_b\.0", "mixed_7a"),
    (r"\.inception\.", "."),
    (r"^((?!mixed_7a).*)\.branch0\.0\.", r"\1.branch0."),
    (r"\.linear\.", ".conv2d."),
    (r"\.batch_norm\.", ".bn."),
    (r"^head", "classif"),
)

ENTRIES = (
    Entry(
        "inception_v3",
        InceptionV3,
        "Szegedy 2015",
        image_size=299,
        dropout_rate=0.5,
        aux_heads=AUX_HEADS,
        torch_names=TORCH_NAMES,
        **TENSORFLOW_PIXELS,
    ),
    Entry(
        "inception_v4",
        InceptionV4,
        "Szegedy 2016",
        image_size=299,
        dropout_rate=0.2,
        torch_names=V4_TORCH_NAMES,
        **TENSORFLOW_PIXELS,
    ),
    Entry(
        "inception_resnet_v2",
        partial(InceptionV4, layers=INCEPTION_RESNET_V2_STAGES),
        "Szegedy 2016",
        image_size=299,
        dropout_rate=0.2,
        torch_names=INCEPTION_RESNET_V2_TORCH_NAMES,
        **TENSORFLOW_PIXELS,
    ),
)
