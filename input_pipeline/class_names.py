"""The names of the classes of well-known datasets, in words."""

import functools
from collections.abc import Sequence
from pathlib import Path

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip
"""Krizhevsky 2009; the order of the archive's fine_label_names.txt."""

CIFAR100_COARSE = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
    "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
    "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
)  # fmt: skip
"""Krizhevsky 2009; the order of the archive's coarse_label_names.txt."""

FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

IMAGENETTE = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip


@functools.cache
def imagenet_words() -> dict[str, str]:
    """Returns a dict from the WordNet ids of ILSVRC 2012's 1,000 classes, in their order, to their names.

    A name is the first lemma of the synset in WordNet 3.0 (copyright Princeton University). If two classes have the
    same lemma, one of them has a second word, as in torchvision 0.29.2.
    """
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def in_words(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names with ImageNet's WordNet ids replaced: 'tench' for 'n01440764'."""
    return tuple(imagenet_words().get(name, name) for name in names)


def known_class_names(dataset: str) -> tuple[str, ...]:
    """Returns the class names of a dataset that prepare.py knows, even if it is not prepared; () for other datasets."""
    return {
        "imagenet2012": tuple(imagenet_words().values()),
        "imagenette": in_words(IMAGENETTE),
        "cifar10": CIFAR10,
        "cifar100": CIFAR100,
        "mnist": tuple("0123456789"),
        "fashion_mnist": FASHION_MNIST,
    }.get(dataset.split("/")[0].split(":")[0], ())
