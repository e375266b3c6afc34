"""MobileNet: Howard et al. 2017, MobileNets: efficient convolutional neural networks for mobile vision, Table 1."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
from flax import nnx

from models.layers import BatchNorm, Classifier, Conv, Dropout, Module, global_average_pool, kaiming_normal
from models.network import TENSORFLOW_PIXELS, Entry, Network

# The widths of each stage's blocks. The first block of each stage but the first has a stride of 2.
WIDTHS = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


class DepthwiseSeparable(Module):
    """A 3x3 convolution of each channel by itself, and a 1x1 one: Fig. 3, right, with ReLUs that end at 6."""

    def __init__(self, in_features: int, out_features: int, stride: int, padding: int | str, epsilon: float):
        """Builds the layers; padding is the depthwise convolution's."""
        self.depthwise = _conv(in_features, in_features, 3, stride, padding, groups=in_features)
        self.norm1 = BatchNorm(in_features, epsilon)
        self.pointwise = _conv(in_features, out_features, 1)
        self.norm2 = BatchNorm(out_features, epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        x = self.norm1(self.depthwise(x), activation="relu6")
        return self.norm2(self.pointwise(x), activation="relu6")


class MobileNet(Network):
    """The network of Table 1, thinned by the width multiplier of section 3.3."""

    def __init__(
        self, num_classes: int, channels: int, dropout_rate: float, width_multiplier: float = 1.0, keras: bool = False
    ):
        """Builds the layers.

        Args:
          num_classes: number of classes.
          channels: number of channels of the images.
          dropout_rate: dropout rate before the classifier.
          width_multiplier: alpha, 0 < alpha <= 1, in eighths, by which all widths are multiplied.
          keras: whether padding is TensorFlow's and the epsilon of batch normalisation 1e-3, as Keras's weights need;
            otherwise both are PyTorch's.
        """
        padding, epsilon = ("SAME", 1e-3) if keras else (1, 1e-5)
        features = int(32 * width_multiplier)
        self.conv1 = _conv(channels, features, 3, 2, padding)
        self.norm1 = BatchNorm(features, epsilon)
        for number, widths in enumerate(WIDTHS, start=1):
            stage: nnx.List[nnx.Module] = nnx.List()
            for position, width in enumerate(widths):
                width = int(width * width_multiplier)
                stride = 2 if number > 1 and not position else 1
                stage.append(DepthwiseSeparable(features, width, stride, padding, epsilon))
                features = width
            setattr(self, f"stage{number}", stage)
        self.dropout = Dropout(dropout_rate)
        self.head = Classifier(features, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields stage1 to stage5, the blocks of one resolution each."""
        x = self.norm1(self.conv1(x), activation="relu6")
        for number in range(1, len(WIDTHS) + 1):
            for block in getattr(self, f"stage{number}"):
                x = block(x)
            yield f"stage{number}", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, F) to logits (N, num_classes)."""
        return self.head(self.dropout(global_average_pool(x)))


def _conv(
    in_features: int, out_features: int, kernel: int, stride: int = 1, padding: int | str = 0, groups: int = 1
) -> Conv:
    return Conv(
        in_features, out_features, kernel, stride, padding, groups, bias=False, kernel_initializer=kaiming_normal
    )


TORCH_NAMES = (  # timm's mobilenetv1
    (r"^conv1", "conv_stem"),
    *((rf"^stage{number}\.", f"blocks.{number - 1}.") for number in range(1, 6)),
    (r"\.depthwise", ".conv_dw"),
    (r"\.pointwise", ".conv_pw"),
    (r"norm(\d)", r"bn\1"),
    (r"^head", "classifier"),
)

_mobilenet: Callable[..., Entry] = partial(
    Entry, paper="Howard 2017", dropout_rate=0.001, torch_names=TORCH_NAMES, **TENSORFLOW_PIXELS
)
ENTRIES = (
    _mobilenet("mobilenet_v1", MobileNet),
    _mobilenet("mobilenet_v1_keras", partial(MobileNet, keras=True)),
    _mobilenet("mobilenet_v1_075", partial(MobileNet, width_multiplier=0.75)),
    _mobilenet("mobilenet_v1_075_keras", partial(MobileNet, width_multiplier=0.75, keras=True)),
    _mobilenet("mobilenet_v1_050", partial(MobileNet, width_multiplier=0.5)),
    _mobilenet("mobilenet_v1_050_keras", partial(MobileNet, width_multiplier=0.5, keras=True)),
    _mobilenet("mobilenet_v1_025", partial(MobileNet, width_multiplier=0.25)),
    _mobilenet("mobilenet_v1_025_keras", partial(MobileNet, width_multiplier=0.25, keras=True)),
)
