"""VGG: Simonyan and Zisserman 2014, Very deep convolutional networks for large-scale image recognition, Table 1."""

import jax
from flax import nnx

from models.layers import (
    BatchNorm,
    Classifier,
    Constant,
    ConvReLU,
    Dense,
    Dropout,
    Module,
    Normal,
    adaptive_average_pool,
    kaiming_normal,
    max_pool,
)

WIDTHS = (64, 128, 256, 512, 512)
# The 3x3 convolutions of each stage: configurations A, B, D and E.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Module):
    """A column of Table 1, with torchvision's initial values and, if asked for, its batch normalisation."""

    def __init__(self, depth: int, batch_norm: bool, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; dropout_rate is that of the two hidden dense layers."""
        options = {
            "batch_norm": BatchNorm if batch_norm else None,
            "kernel_initializer": kaiming_normal,
            "bias_initializer": Constant(0),
        }
        stages = []
        for width, repeats in zip(WIDTHS, STAGES[depth], strict=True):
            stage = nnx.List()
            for _ in range(repeats):
                stage.append(ConvReLU(channels, width, kernel=3, padding=1, **options))
                channels = width
            stages.append(stage)
        self.stages = nnx.List(stages)
        initializers = {"kernel_initializer": Normal(0.01), "bias_initializer": Constant(0)}
        self.dense1 = Dense((7, 7, 512), 4096, **initializers)
        self.dropout1 = Dropout(dropout_rate)
        self.dense2 = Dense(4096, 4096, **initializers)
        self.dropout2 = Dropout(dropout_rate)
        self.head = Classifier(4096, num_classes, **initializers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to logits (N, num_classes)."""
        for stage in self.stages:
            for conv in stage:
                x = conv(x)
            x = max_pool(x, 2, 2)
        x = adaptive_average_pool(x, (7, 7))
        x = self.dropout1(nnx.relu(self.dense1(x)))
        x = self.dropout2(nnx.relu(self.dense2(x)))
        return self.head(x)


def torch_names(depth: int, batch_norm: bool) -> tuple[tuple[str, str], ...]:
    """Returns what makes torchvision's names, which count all layers in one list, ReLU and pooling included."""
    names, position = [], 0
    for stage, repeats in enumerate(STAGES[depth]):
        for conv in range(repeats):
            names.append((rf"^stages\.{stage}\.{conv}\.conv", f"features.{position}"))
            names.append((rf"^stages\.{stage}\.{conv}\.batch_norm", f"features.{position + 1}"))
            position += 3 if batch_norm else 2
        position += 1
    return (*names, ("^dense1", "classifier.0"), ("^dense2", "classifier.3"), ("^head", "classifier.6"))
