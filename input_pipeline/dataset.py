"""What a dataset is to the rest of the program: the records of one split, and how a split is held out of the others."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

HELD_OUT_SPLITS = {"train": "train", "eval": "validation", "validation": "validation"}


class DamagedImageError(ValueError):
    """An image cannot be decoded; the message names dataset, split, record and file."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The records of one split, readable in any order and from any thread.

    `len(dataset)` counts them; `dataset[i]` is (encoded bytes or uint8 (H, W, C), label). Reading a damaged record
    raises a ValueError, and a file that cannot be read an OSError.

    Attributes:
      name: as the config has it.
      split: the split's own name.
      class_names: for people; a label is a position in it.
      size: number of records.
      read: from a record's index to its image and label.
      describe: from a record's index to its record or file, for error messages.
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


def held_out_split(name: str, split: str) -> str:
    """Returns 'train' or 'validation' for a split of a dataset that comes in one piece.

    Raises:
      ValueError: the dataset, called name, has no such split.
    """
    if split not in HELD_OUT_SPLITS:
        raise ValueError(f"dataset {name!r} has no split {split!r}: use 'train' or 'validation'")
    return HELD_OUT_SPLITS[split]


def held_out_records(name: str, split: str, size: int, validation_share: float, split_seed: int) -> np.ndarray:
    """Returns which records of a dataset in one piece belong to a split, sorted, int64.

    Args:
      name: of the dataset, for the error message.
      split: 'train' or 'validation'.
      size: records of both splits together.
      validation_share: share of the records that are held out for validation, (0, 1).
      split_seed: seed for the shuffle that chooses them.

    Raises:
      ValueError: one of the splits would be empty.
    """
    held_out = math.ceil(validation_share * size)
    if not 0 < held_out < size:
        raise ValueError(
            f"validation_share={validation_share} holds out {held_out} of {size} records of {name!r}: "
            "leave at least one on both sides"
        )
    # NumPy promises that RandomState's numbers never change: a new version must not mix training and validation.
    order = np.random.RandomState(split_seed).permutation(size)
    return np.sort(order[:held_out] if split == "validation" else order[held_out:])
