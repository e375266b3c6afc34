"""Trains a network of this file, which is not in models/: python benchmarks/studies/small_networks.py --config=FILE ...

Each network exists for one comparison of digits.py. The program takes what train.py takes, and --config.model may be a
name of ENTRIES too.
"""

import math
import pathlib
import sys
from collections.abc import Iterator
from functools import partial

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import jax
import numpy as np
from flax import nnx

import models
from models.layers import (
    Classifier,
    Constant,
    ConvReLU,
    Initializer,
    LocalResponseNorm,
    Normal,
    global_average_pool,
    max_pool,
)
from models.network import Entry, Network
from training import command_line


def he(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A normal distribution of variance 2 / fan in, for a convolution (H, W, I, O): He et al. 2015 (PReLU), eq. 10."""
    return Normal(math.sqrt(2 / math.prod(shape[:3])))(random, shape)


def glorot(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A normal distribution of variance 2 / (fan in + fan out), (H, W, I, O): Glorot and Bengio 2010, eq. 12."""
    return Normal(math.sqrt(2 / (math.prod(shape[:2]) * (shape[2] + shape[3]))))(random, shape)


class SmallNetwork(Network):
    """Stages of convolutions with ReLU, each stage pooled by 2; then the mean of the map, and a classifier."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        dropout_rate: float,
        stages: tuple[tuple[tuple[int, int], ...], ...],
        initializer: Initializer = he,
        local_response_norm: bool = False,
    ):
        """Builds the layers.

        Args:
          num_classes: number of classes.
          channels: number of channels of the images.
          dropout_rate: without effect.
          stages: for each convolution of each stage the side of its kernel and the number of its filters.
          initializer: of the convolutions' kernels.
          local_response_norm: whether each stage is normalised before its pooling, as in AlexNet.
        """
        for number, layers in enumerate(stages, start=1):
            stage: nnx.List[ConvReLU] = nnx.List()
            for kernel, width in layers:
                options = {"kernel_initializer": initializer, "bias_initializer": Constant(0)}
                stage.append(ConvReLU(channels, width, kernel, padding=kernel // 2, **options))
                channels = width
            setattr(self, f"stage{number}", stage)
        self.depth = len(stages)
        self.norm = LocalResponseNorm() if local_response_norm else None
        self.head = Classifier(channels, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields stage1 and so on, each pooled."""
        for number in range(1, self.depth + 1):
            for conv in getattr(self, f"stage{number}"):
                x = conv(x)
            x = max_pool(self.norm(x) if self.norm else x, 2, 2)
            yield f"stage{number}", x

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, F) to logits (N, num_classes)."""
        return self.head(global_average_pool(x))


BOTTLENECK = (1, 16), (3, 64)
TWO_CONVOLUTIONS = ((5, 32),), ((5, 32),)
THIRTY_LAYERS = ((3, 16),) * 14, ((3, 16),) * 15  # and the classifier
NETWORKS = {
    # One receptive field; the three 3x3 convolutions of a 7x7 one have 27/49 of its weights: Simonyan and Zisserman
    # 2014, section 2.3.
    "filters_7x7": {"stages": (((3, 24), (7, 24)), ((7, 24),))},
    "filters_3x3": {"stages": (((3, 24),) * 4, ((3, 24),) * 3)},
    # The same multiply-accumulates within 2 %: 34 x 34 x 9, and 64 x 16 + 16 x 64 x 9.
    "no_bottlenecks": {"stages": (((3, 34),) * 3, ((3, 34),) * 2)},
    "bottlenecks": {"stages": (((3, 64), *BOTTLENECK, *BOTTLENECK), BOTTLENECK * 2)},
    "no_lrn": {"stages": TWO_CONVOLUTIONS},
    "lrn": {"stages": TWO_CONVOLUTIONS, "local_response_norm": True},
    # With AlexNet's initial values, for pixels between -128 and 127, as AlexNet has them.
    "no_lrn_255": {"stages": TWO_CONVOLUTIONS, "initializer": Normal(0.01)},
    "lrn_255": {"stages": TWO_CONVOLUTIONS, "initializer": Normal(0.01), "local_response_norm": True},
    # As in Fig. 3 of He 2015 (PReLU).
    "plain30_he": {"stages": THIRTY_LAYERS},
    "plain30_glorot": {"stages": THIRTY_LAYERS, "initializer": glorot},
}
ENTRIES = tuple(
    Entry(name, partial(SmallNetwork, **options), paper="", image_size=16, num_classes=10, channels=1)
    for name, options in NETWORKS.items()
)


def register() -> None:
    """Adds the networks to the registry of this process."""
    models.REGISTRY.update({entry.name: entry for entry in ENTRIES})


if __name__ == "__main__":
    import train

    register()
    command_line.run(train.main)
