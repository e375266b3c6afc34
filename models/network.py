"""What all networks have: stages, a classifier, auxiliary classifiers where they are asked for, a registry entry."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from models.layers import Classifier, ConvReLU, Dense, Dropout, Module, adaptive_average_pool
from models.operations import relu

AUX_DROPOUT_RATE = 0.7  # Szegedy 2014, section 5


class AuxiliaryHead(Module):
    """GoogLeNet's auxiliary classifier (Szegedy 2014, section 5), for networks whose authors have none of their own.

    Average pooling to 4x4, a 1x1 convolution of 128 filters, a dense layer of 1024, dropout, the classifier.
    """

    def __init__(self, in_features: int, num_classes: int, dropout_rate: float):
        """Builds the layers; dropout_rate applies before the classifier."""
        self.conv = ConvReLU(in_features, 128, kernel=1)
        self.dense = Dense((4, 4, 128), 1024)
        self.dropout = Dropout(dropout_rate)
        self.output = Classifier(1024, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to logits (N, num_classes)."""
        x = self.conv(adaptive_average_pool(x, (4, 4)))
        return self.output(self.dropout(relu(self.dense(x))))


class Network(Module):
    """A network. A subclass defines its stages and its classifier, and an auxiliary classifier if it has its own."""

    aux_heads: tuple[str, ...] = ()

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields the name and the map of each stage, in depth order; models.get_stages lists the names.

        `dict(model.stages(images))` holds all maps, and JAX can differentiate them. A stage is computed only when its
        map is requested: a loop that ends at a stage computes none of the later stages.

        Args:
          x: images, (N, H, W, C) floats, normalised as in training.

        Yields:
          The stage's name, and its map (N, H', W', F).
        """
        raise NotImplementedError

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps the last stage's map to logits (N, num_classes)."""
        raise NotImplementedError

    def set_image_size(self, image_size: int) -> None:
        """Builds the parameters that depend on the image size anew, for another size; convolutions have none."""

    def make_auxiliary_head(self, in_features: int, num_classes: int, dropout_rate: float) -> Module:
        """Returns an auxiliary classifier from maps (N, H, W, in_features) to logits (N, num_classes)."""
        return AuxiliaryHead(in_features, num_classes, dropout_rate)

    def add_auxiliary_heads(self, features: dict[str, int], num_classes: int, dropout_rate: float) -> None:
        """Adds auxiliary classifiers, each as STAGE_head.

        Args:
          features: names of the stages that get one, in depth order, and the number of features of their maps.
          num_classes: number of classes.
          dropout_rate: dropout rate of the network. The heads have a rate of 0.7, but no dropout where this is 0.
        """
        self.aux_heads = tuple(features)
        for stage, in_features in features.items():
            head = self.make_auxiliary_head(in_features, num_classes, AUX_DROPOUT_RATE if dropout_rate else 0.0)
            setattr(self, f"{stage}_head", head)

    def __call__(self, images: jax.Array) -> jax.Array | tuple[jax.Array, list[jax.Array]]:
        """Maps (N, H, W, C) to logits (N, num_classes); with auxiliary heads, to (logits, [their logits by depth])."""
        aux_logits = []
        for stage, x in self.stages(images):
            if stage in self.aux_heads:
                aux_logits.append(getattr(self, f"{stage}_head")(x))
        logits = self.classify(x)
        return (logits, aux_logits) if self.aux_heads else logits


@dataclass(frozen=True)
class Entry:
    """A network of the registry, with its default values.

    Attributes:
      name: the name that create_model knows it by.
      build: a subclass of Network, or a functools.partial of one; called with num_classes, channels and dropout_rate,
        it makes the network with abstract variables.
      paper: who defined it, and when.
      image_size: side of its images, in pixels.
      num_classes: number of classes of the dataset that it was made for.
      channels: number of channels of its images.
      dropout_rate: dropout rate before its classifier.
      aux_heads: the stages that its authors put an auxiliary classifier behind; get_stages lists all that can have one.
      torch_names: pairs of a regular expression and its replacement. Applied one after the other, they turn the path of
        a variable into its name in PyTorch's published weights. Empty where PyTorch has no such network.
      old_torch_names: pairs of the same kind. They turn the names in older files, or in the files of another library,
        into the names that torch_names makes.
      torch_mean: mean of each channel that those weights want subtracted from pixels in [0, 1]; torchvision's
        `transform_input` is accounted for.
      torch_std: standard deviation of each channel that they want the result divided by.
    """

    name: str
    build: Callable[..., Network]
    paper: str
    image_size: int = 224
    num_classes: int = 1000
    channels: int = 3
    dropout_rate: float = 0.0
    aux_heads: tuple[str, ...] = ()
    torch_names: tuple[tuple[str, str], ...] = ()
    old_torch_names: tuple[tuple[str, str], ...] = ()
    torch_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    torch_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def family(self) -> str:
        """The name of the file in models/ that defines the network."""
        return getattr(self.build, "func", self.build).__module__.rpartition(".")[2]


# Pixels between -1 and 1, for weights that came from TensorFlow or were trained as there.
TENSORFLOW_PIXELS: dict[str, Any] = {"torch_mean": (0.5, 0.5, 0.5), "torch_std": (0.5, 0.5, 0.5)}
