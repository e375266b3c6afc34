"""What all networks are: stages, a classifier, and auxiliary classifiers behind the stages that are asked for."""

from collections.abc import Iterator

import jax

from models.layers import Classifier, ConvReLU, Dense, Dropout, Module, adaptive_average_pool
from models.operations import relu

AUX_DROPOUT_RATE = 0.7


class AuxiliaryHead(Module):
    """The auxiliary classifier of networks without one of their own: GoogLeNet's (Szegedy 2014, section 5) on any map.

    Average pooling to 4x4, a 1x1 convolution of 128 filters, a dense layer of 1024, dropout, the classifier.
    """

    def __init__(self, in_features: int, num_classes: int, dropout_rate: float):
        """Builds the layers; dropout_rate is that before the classifier."""
        self.conv = ConvReLU(in_features, 128, kernel=1)
        self.dense = Dense((4, 4, 128), 1024)
        self.dropout = Dropout(dropout_rate)
        self.output = Classifier(1024, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to logits (N, num_classes)."""
        x = self.conv(adaptive_average_pool(x, (4, 4)))
        return self.output(self.dropout(relu(self.dense(x))))


class Network(Module):
    """A network: subclasses say what their stages are, how they classify and, maybe, what an auxiliary head is."""

    aux_heads: tuple[str, ...] = ()

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields the name and the map (N, H, W, F) of each stage, in depth order, of images (N, H, W, C)."""
        raise NotImplementedError

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps the last stage's map to logits (N, num_classes)."""
        raise NotImplementedError

    def make_auxiliary_head(self, in_features: int, num_classes: int, dropout_rate: float) -> Module:
        """Returns an auxiliary classifier from maps (N, H, W, in_features) to logits (N, num_classes)."""
        return AuxiliaryHead(in_features, num_classes, dropout_rate)

    def add_auxiliary_heads(self, features: dict[str, int], num_classes: int, dropout_rate: float) -> None:
        """Adds auxiliary classifiers, each as STAGE_head.

        Args:
          features: the stages to have one, in depth order, and how many features their maps have.
          num_classes: how many classes.
          dropout_rate: that of the network; the heads' is 0.7, or where the network has none, 0.
        """
        self.aux_heads = tuple(features)
        for stage, in_features in features.items():
            head = self.make_auxiliary_head(in_features, num_classes, AUX_DROPOUT_RATE if dropout_rate else 0.0)
            setattr(self, f"{stage}_head", head)

    def __call__(self, images: jax.Array) -> jax.Array | tuple[jax.Array, list[jax.Array]]:
        """Maps (N, H, W, C) to logits (N, num_classes), with auxiliary heads to (logits, [their logits by depth])."""
        aux_logits = []
        for stage, x in self.stages(images):
            if stage in self.aux_heads:
                aux_logits.append(getattr(self, f"{stage}_head")(x))
        logits = self.classify(x)
        return (logits, aux_logits) if self.aux_heads else logits
