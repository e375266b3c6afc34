"""Repeated augmentation: a batch has several copies of each image, cropped and augmented independently.

Hoffer 2019, Augment your batch; Berman 2019, MultiGrain, section 3.3; timm's and torchvision's RASampler. With c copies
the sequence of the run has each record of the shuffled epochs c times in a row. An epoch has as many steps as without
copies, so it sees one c-th of the images, and c epochs see each image c times.

In a batch the copies are spread: mixup and cutmix mix neighbours, which must be different images.
"""

import functools
import math
from typing import TypeVar

import jax

Index = TypeVar("Index", int, jax.Array)


@functools.cache
def neighbour_distance(batch_size: int, copies: int) -> int:
    """Returns the distance in the sequence of two neighbours in a batch.

    It is the smallest number that puts different images side by side and takes each place of the batch's part of the
    sequence once; 1 if there is only one copy, or if no such number exists.

    >>> neighbour_distance(2048, 3), neighbour_distance(9, 3), neighbour_distance(4, 3)
    (3, 4, 1)
    """
    if copies == 1:
        return 1
    distances = range(copies, batch_size - copies + 1)
    return next((distance for distance in distances if math.gcd(distance, batch_size) == 1), 1)


def place_of_record(step: Index, row: Index, batch_size: int, copies: int) -> Index:
    """Returns the position of a row's record in the endless sequence of the shuffled epochs without copies.

    >>> [place_of_record(1, row, batch_size=8, copies=2) for row in range(8)]
    [4, 5, 7, 4, 6, 7, 5, 6]

    Args:
      step: number of the batch, 0 for the first.
      row: of the global batch, 0 for the first.
      batch_size: images in the global batch.
      copies: of each image.
    """
    if copies == 1:
        return step * batch_size + row
    return (step * batch_size + row * neighbour_distance(batch_size, copies) % batch_size) // copies
