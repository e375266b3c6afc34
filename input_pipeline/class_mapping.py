"""Maps the classes of a dataset to the classes of a network, by their names and never by their positions."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from input_pipeline.class_names import imagenet_words
from input_pipeline.dataset import Dataset


def match_classes(names: Sequence[str], known: Sequence[str], by_number: bool = True) -> list[int]:
    """Returns the position in `known` of each of the names.

    ImageNet's classes match whether they are called by WordNet id or in words. Folders that are called 0 to n - 1, as
    ImageNet-V2's are, name the classes of a network with n classes by number, unless by_number is False.

    Args:
      names: a dataset's classes.
      known: a network's classes, in the order of its logits.
      by_number: whether the numbers 0 to n - 1 may stand for the names of a network's n classes.

    Raises:
      ValueError: if the network lacks a class of the dataset, or two names are of one class; the message lists them.
    """
    if list(names) == list(known):
        return list(range(len(names)))
    if by_number and set(names) == set(map(str, range(len(known)))):
        return [int(name) for name in names]
    positions = {_canonical(name): position for position, name in enumerate(known)}
    unknown = [name for name in names if _canonical(name) not in positions]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the dataset's {len(names)} classes are none of the network's {len(known)}: "
            f"{_listed(unknown)}; name them as the network's are: {_listed(known)}"
        )
    matched = [positions[_canonical(name)] for name in names]
    if len(set(matched)) < len(matched):
        twice = [name for name, position in zip(names, matched, strict=True) if matched.count(position) > 1]
        raise ValueError(f"the dataset has one class under several names: {_listed(twice)}; merge their images")
    return matched


def with_classes_of(dataset: Dataset, known: Sequence[str]) -> Dataset:
    """Returns the dataset with the labels and the class names of a network, and with the same images.

    Args:
      dataset: its classes may be only some of the network's, in any order.
      known: the network's classes, in the order of its logits.

    Raises:
      ValueError: if the network lacks a class of the dataset; the message lists these classes.
    """
    if dataset.class_names == tuple(known):
        return dataset
    numbers = match_classes(dataset.class_names, known)

    def read(record: int) -> tuple[bytes | np.ndarray, int]:
        image, label = dataset.read(record)
        if not 0 <= label < len(numbers):
            raise ValueError(f"{dataset.describe(record)} has the label {label}, but there are {len(numbers)} classes")
        return image, numbers[label]

    return dataclasses.replace(dataset, class_names=tuple(known), read=read)


def check_same_classes(names: Sequence[str], known: Sequence[str], workdir: object) -> None:
    """Checks that a run can be resumed with a dataset.

    Args:
      names: the dataset's classes, in the order of its labels.
      known: the run's classes; at the end there may be surplus classes whose names are their numbers.
      workdir: the run's folder, for the error message.

    Raises:
      ValueError: if the classes or their order differ; the message lists those that differ.
    """
    used = list(known[: len(names)])
    spare = list(known[len(names) :])
    if list(names) == used and spare == list(map(str, range(len(names), len(known)))):
        return
    missing, added = [name for name in known if name not in names], [name for name in names if name not in known]
    parts = [f"without {_listed(missing)}"] * bool(missing) + [f"with {_listed(added)}"] * bool(added)
    difference = " and ".join(parts) or "in another order"
    raise ValueError(f"the dataset now has the classes of {workdir} {difference}; choose another --workdir")


def _canonical(name: str) -> str:
    """Returns the WordNet id of an ImageNet class, and any other name unchanged."""
    return _wordnet_ids().get(name, name)


@functools.cache
def _wordnet_ids() -> dict[str, str]:
    return {words: wordnet_id for wordnet_id, words in imagenet_words().items()}


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = [repr(name) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} others" if len(names) > most else "")
