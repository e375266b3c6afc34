"""VGG: Simonyan and Zisserman 2014, Very deep convolutional networks for large-scale image recognition, Table 1."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
from flax import nnx

from models.layers import (
    BatchNorm,
    Classifier,
    Constant,
    ConvReLU,
    Dense,
    Dropout,
    Normal,
    adaptive_average_pool,
    kaiming_normal,
    max_pool,
)
from models.network import Entry, Network
from models.operations import relu

WIDTHS = (64, 128, 256, 512, 512)
# The kernels of each stage's convolutions.
CONFIGURATIONS = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}


class VGG(Network):
    """A column of Table 1, with torchvision's initial values and, if asked for, its batch normalisation."""

    def __init__(self, configuration: str, batch_norm: bool, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; dropout_rate applies to the two hidden dense layers."""
        options: dict[str, Any] = {
            "batch_norm": BatchNorm if batch_norm else None,
            "kernel_initializer": kaiming_normal,
            "bias_initializer": Constant(0),
        }
        for number, (width, kernels) in enumerate(zip(WIDTHS, CONFIGURATIONS[configuration], strict=True), start=1):
            stage: nnx.List[ConvReLU] = nnx.List()
            for kernel in kernels:
                stage.append(ConvReLU(channels, width, kernel, padding=kernel // 2, **options))
                channels = width
            setattr(self, f"stage{number}", stage)
        initializers: dict[str, Any] = {"kernel_initializer": Normal(0.01), "bias_initializer": Constant(0)}
        self.dense1 = Dense((7, 7, 512), 4096, **initializers)
        self.dropout1 = Dropout(dropout_rate)
        self.dense2 = Dense(4096, 4096, **initializers)
        self.dropout2 = Dropout(dropout_rate)
        self.head = Classifier(4096, num_classes, **initializers)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields stage1 to stage5, each pooled."""
        for number in range(1, 6):
            for conv in getattr(self, f"stage{number}"):
                x = conv(x)
            x = max_pool(x, 2, 2)
            yield f"stage{number}", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 512) to logits (N, num_classes)."""
        x = adaptive_average_pool(x, (7, 7))
        x = self.dropout1(relu(self.dense1(x)))
        x = self.dropout2(relu(self.dense2(x)))
        return self.head(x)


def torch_names(configuration: str, batch_norm: bool) -> tuple[tuple[str, str], ...]:
    """Returns the rules for torchvision's names, which count all layers in one list, ReLU and pooling included."""
    names, position = [], 0
    for stage, kernels in enumerate(CONFIGURATIONS[configuration], start=1):
        for conv in range(len(kernels)):
            names.append((rf"^stage{stage}\.{conv}\.conv", f"features.{position}"))
            names.append((rf"^stage{stage}\.{conv}\.batch_norm", f"features.{position + 1}"))
            position += 3 if batch_norm else 2
        position += 1
    return (*names, ("^dense1", "classifier.0"), ("^dense2", "classifier.3"), ("^head", "classifier.6"))


_vgg = partial(Entry, paper="Simonyan and Zisserman 2014", dropout_rate=0.5)
ENTRIES = (
    *(
        _vgg(
            f"{name}{'_bn' * batch_norm}",
            partial(VGG, configuration, batch_norm),
            torch_names=torch_names(configuration, batch_norm),
        )
        for batch_norm in (False, True)
        for name, configuration in (("vgg11", "A"), ("vgg13", "B"), ("vgg16", "D"), ("vgg19", "E"))
    ),
    _vgg("vgg16_c", partial(VGG, "C", False)),
)
