"""GoogLeNet: Szegedy et al. 2014, Going deeper with convolutions, Table 1.

The paper gives neither initial values nor the constants of the normalisation: those here are BVLC's (Caffe's
bvlc_googlenet). The variants with batch normalisation are initialised as torchvision's.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax

from models.layers import (
    BatchNorm,
    Classifier,
    Constant,
    ConvReLU,
    Dense,
    Dropout,
    LocalResponseNorm,
    Module,
    Normal,
    adaptive_average_pool,
    average_pool,
    global_average_pool,
    lecun_uniform,
    max_pool,
)
from models.network import TENSORFLOW_PIXELS, Entry, Network
from models.operations import concatenate, relu

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
INCEPTIONS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
AUX_HEADS = ("inception4a", "inception4d")

# BVLC's initial values: Caffe's xavier, and biases of 0.2. With these biases most ReLUs are active at the start;
# without them the 22 layers do not start to learn.
PAPER_CONV = partial(ConvReLU, kernel_initializer=lecun_uniform, bias_initializer=Constant(0.2))
PAPER_HIDDEN = partial(Dense, kernel_initializer=lecun_uniform, bias_initializer=Constant(0.2))
PAPER_OUTPUT = partial(Classifier, kernel_initializer=lecun_uniform, bias_initializer=Constant(0))
BATCH_NORM_CONV = partial(
    ConvReLU, bias=False, batch_norm=partial(BatchNorm, epsilon=1e-3), kernel_initializer=Normal(0.01)
)
BATCH_NORM_HIDDEN = partial(Dense, kernel_initializer=Normal(0.01))
BATCH_NORM_OUTPUT = partial(Classifier, kernel_initializer=Normal(0.01))


class Inception(Module):
    """An Inception module with dimension reductions: Fig. 2(b)."""

    def __init__(
        self,
        in_features: int,
        widths: tuple[int, ...],
        conv: Callable[..., Module] = PAPER_CONV,
        last_kernel: int = 5,
    ):
        """Builds the four branches; the third's last kernel is 5x5 in the paper, 3x3 in torchvision."""
        width1, reduce2, width2, reduce3, width3, width4 = widths
        self.branch1 = conv(in_features, width1, kernel=1)
        self.branch2_reduce = conv(in_features, reduce2, kernel=1)
        self.branch2 = conv(reduce2, width2, kernel=3, padding=1)
        self.branch3_reduce = conv(in_features, reduce3, kernel=1)
        self.branch3 = conv(reduce3, width3, kernel=last_kernel, padding=last_kernel // 2)
        self.branch4 = conv(in_features, width4, kernel=1)
        self.features = width1 + width2 + width3 + width4

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H, W, sum of the branches' widths)."""
        branches = (
            self.branch1(x),
            self.branch2(self.branch2_reduce(x)),
            self.branch3(self.branch3_reduce(x)),
            self.branch4(max_pool(x, 3, 1, padding=1)),
        )
        return concatenate(branches)


class NaiveInception(Module):
    """An Inception module without 1x1 convolutions before the large ones or after the pooling: Fig. 2(a)."""

    def __init__(
        self,
        in_features: int,
        widths: tuple[int, ...],
        conv: Callable[..., Module] = PAPER_CONV,
        last_kernel: int = 5,
    ):
        """Builds the branches; of a row of Table 1 it takes the widths of 1x1, 3x3 and 5x5."""
        width1, _, width2, _, width3, _ = widths
        self.branch1 = conv(in_features, width1, kernel=1)
        self.branch2 = conv(in_features, width2, kernel=3, padding=1)
        self.branch3 = conv(in_features, width3, kernel=last_kernel, padding=last_kernel // 2)
        self.features = width1 + width2 + width3 + in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H, W, sum of the branches' widths + I)."""
        branches = self.branch1(x), self.branch2(x), self.branch3(x), max_pool(x, 3, 1, padding=1)
        return concatenate(branches)


class AuxiliaryHead(Module):
    """An auxiliary classifier on an Inception module's output: section 5."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        dropout_rate: float,
        conv: Callable[..., Module],
        hidden: Callable[..., Module],
        output: Callable[..., Module],
        adaptive: bool,
    ):
        """Builds the layers.

        Without `adaptive`, maps of 14x14 get the paper's pooling, 5x5 with a stride of 3, and other maps get adaptive
        pooling. With it, all maps get adaptive pooling, as in torchvision.
        """
        self.conv = conv(in_features, 128, kernel=1)
        self.dense = hidden((4, 4, 128), 1024)
        self.dropout = Dropout(dropout_rate)
        self.output = output(1024, num_classes)
        self.adaptive = adaptive

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to logits (N, num_classes)."""
        if self.adaptive or x.shape[1:3] != (14, 14):
            x = adaptive_average_pool(x, (4, 4))
        else:
            x = average_pool(x, 5, 3)
        x = relu(self.dense(self.conv(x)))
        return self.output(self.dropout(x))


class GoogLeNet(Network):
    """The network of Table 1; batch normalisation, if asked for, replaces biases and local response normalisation."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        dropout_rate: float,
        batch_norm: bool = False,
        torchvision: bool = False,
        local_response_norm: bool = True,
        naive: bool = False,
    ):
        """Builds the layers.

        Args:
          num_classes: number of classes.
          channels: number of channels of the images.
          dropout_rate: dropout rate of the main classifier.
          batch_norm: whether every convolution has batch normalisation.
          torchvision: whether to differ from the paper where torchvision does: 3x3 kernels for 5x5 ones, a last
            pooling of 2x2, and adaptive pooling in the auxiliary classifiers.
          local_response_norm: whether the stem has it, where it has no batch normalisation.
          naive: whether the Inception modules are those of Fig. 2(a), whose pooling branch passes all features on.
        """
        self.batch_norm, self.torchvision = batch_norm, torchvision
        conv, _, output = self._kinds()
        normalized = local_response_norm and not batch_norm
        # alpha 1e-4 in Caffe, which divides it by the size.
        self.norm1 = LocalResponseNorm(alpha=1e-4 / 5, k=1.0) if normalized else None
        self.norm2 = LocalResponseNorm(alpha=1e-4 / 5, k=1.0) if normalized else None
        self.conv1 = conv(channels, 64, kernel=7, stride=2, padding=3)
        self.conv2_reduce = conv(64, 64, kernel=1)
        self.conv2 = conv(64, 192, kernel=3, padding=1)
        features = 192
        for name, widths in INCEPTIONS.items():
            inception = (NaiveInception if naive else Inception)(features, widths, conv, 3 if torchvision else 5)
            setattr(self, name, inception)
            features = inception.features
        self.dropout = Dropout(dropout_rate)
        self.head = output(features, num_classes)

    def make_auxiliary_head(self, in_features: int, num_classes: int, dropout_rate: float) -> AuxiliaryHead:
        """Returns the classifier of section 5."""
        return AuxiliaryHead(in_features, num_classes, dropout_rate, *self._kinds(), adaptive=self.torchvision)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields the Inception modules, not pooled."""
        x = max_pool(self.conv1(x), 3, 2, ceil=True)
        x = self.norm1(x) if self.norm1 else x
        x = self.conv2(self.conv2_reduce(x))
        x = self.norm2(x) if self.norm2 else x
        x = max_pool(x, 3, 2, ceil=True)
        for name in INCEPTIONS:
            x = getattr(self, name)(x)
            yield name, x
            if name == "inception3b":
                x = max_pool(x, 3, 2, ceil=True)
            elif name == "inception4e":
                x = max_pool(x, 2 if self.torchvision else 3, 2, ceil=True)

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 1024) to logits (N, num_classes)."""
        return self.head(self.dropout(global_average_pool(x)))

    def _kinds(self) -> tuple[Callable[..., Module], Callable[..., Module], Callable[..., Module]]:
        """Makers of convolutions, hidden dense layers and classifiers."""
        if self.batch_norm:
            return BATCH_NORM_CONV, BATCH_NORM_HIDDEN, BATCH_NORM_OUTPUT
        return PAPER_CONV, PAPER_HIDDEN, PAPER_OUTPUT


TORCH_NAMES = (  # torchvision's googlenet
    (r"^inception4a_head", "aux1"),
    (r"^inception4d_head", "aux2"),
    (r"^(aux\d)\.dense", r"\1.fc1"),
    (r"^(aux\d)\.output", r"\1.fc2"),
    (r"^conv2\.", "conv3."),
    (r"^conv2_reduce", "conv2"),
    (r"\.branch([23])_reduce", r".branch\1.0"),
    (r"\.branch([23])\.(conv|batch_norm)", r".branch\1.1.\2"),
    (r"\.branch4", ".branch4.1"),
    (r"\.batch_norm", ".bn"),
    (r"^head", "fc"),
)

_googlenet: Callable[..., Entry] = partial(
    Entry,
    paper="Szegedy 2014",
    dropout_rate=0.4,
    aux_heads=AUX_HEADS,
    torch_names=TORCH_NAMES,
    **TENSORFLOW_PIXELS,
)
ENTRIES = (
    _googlenet("googlenet", GoogLeNet),
    _googlenet("googlenet_no_lrn", partial(GoogLeNet, local_response_norm=False)),
    _googlenet("googlenet_naive", partial(GoogLeNet, naive=True)),
    _googlenet("googlenet_bn", partial(GoogLeNet, batch_norm=True)),
    _googlenet("googlenet_bn_3x3", partial(GoogLeNet, batch_norm=True, torchvision=True), dropout_rate=0.2),
)
