"""The class of a dataset, which holds the records of one split, and the choice of held-out validation records."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

HELD_OUT_SPLITS = {"train": "train", "eval": "validation", "validation": "validation", "all": "all"}


class DamagedImageError(ValueError):
    """An image that cannot be decoded; the message names the dataset, the split, the record and the file."""


class UnreadableImageError(OSError):
    """An image whose file cannot be read, as of a failing disk; the message names the same as DamagedImageError's."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The records of one split, readable in any order and from any thread.

    `len(dataset)` is the number of records; `dataset[i]` is (image, label), where the image is encoded bytes or uint8
    (H, W, C). A damaged record raises a ValueError, and a file that cannot be read raises an OSError.

    Attributes:
      name: the value of config.dataset.
      split: the name of the split in the dataset.
      class_names: names of the classes in words; a label is a position in this tuple.
      size: number of records.
      read: maps a record's index to its image and label.
      describe: maps a record's index to a phrase that names the record or the file, for error messages.
      needs_transform: False if the images already have the network's size and channels, so that they go into batches
        without decoding, cropping or flipping.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    size: int
    read: Callable[[int], tuple[bytes | np.ndarray, int]]
    describe: Callable[[int], str]
    needs_transform: bool = True

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, record: int) -> tuple[bytes | np.ndarray, int]:
        if not 0 <= record < self.size:
            raise IndexError(f"record {record} of {self.size}")
        return self.read(record)

    def file_name(self, record: int) -> str:
        """Returns the path or name of a record's file; where the dataset has none, the description of the record."""
        return self.describe(record).rpartition(", file ")[2]


def held_out_split(name: str, split: str) -> str:
    """Returns 'train', 'validation' or 'all' for a split of a dataset that has no splits of its own.

    Raises:
      ValueError: if the split is not one of HELD_OUT_SPLITS; the message names the dataset.
    """
    if split not in HELD_OUT_SPLITS:
        raise ValueError(f"dataset {name!r} has no split {split!r}: use 'train', 'validation' or 'all'")
    return HELD_OUT_SPLITS[split]


def held_out_records(name: str, split: str, size: int, validation_share: float, split_seed: int) -> np.ndarray:
    """Returns the indices of the records that belong to a split of a dataset without splits of its own, sorted, int64.

    Args:
      name: name of the dataset, for the error message.
      split: 'train', 'validation' or 'all'.
      size: number of records of both splits together.
      validation_share: share of the records that are held out for validation, (0, 1).
      split_seed: seed for the shuffle that chooses the held-out records.

    Raises:
      ValueError: if one of the splits would be empty.
    """
    if split == "all":
        return np.arange(size)
    held_out = math.ceil(validation_share * size)
    if not 0 < held_out < size:
        raise ValueError(
            f"validation_share={validation_share} holds out {held_out} of {size} records of {name!r}: "
            "leave at least one on both sides"
        )
    # RandomState gives the same numbers in every version of NumPy, so an upgrade cannot mix the two splits.
    order = np.random.RandomState(split_seed).permutation(size)
    return np.sort(order[:held_out] if split == "validation" else order[held_out:])
