"""The side of the training images by the step, as train_sizes sets it by the epoch.

Small images first make a run shorter (Howard 2018, DAWNBench's "progressive resizing"; FFCV's recipes). A last stage at
or above the size of the evaluation corrects the difference that random crops make to the apparent size of objects
(Touvron 2019, Fixing the train-test resolution discrepancy).
"""

from ml_collections import ConfigDict


def sizes_by_step(config: ConfigDict, steps_per_epoch: float) -> dict[int, int]:
    """Returns a dict from each step at which the side of the images changes, 0 included, to the new side in pixels.

    Changes after the last step of the run are left out.

    Args:
      config: resolved options; without train_sizes the side is image_size.
      steps_per_epoch: optimizer steps in an epoch, which may be a fraction.
    """
    pairs = config.train_sizes or ((0, config.image_size),)
    sizes = {round(epoch * steps_per_epoch): size for epoch, size in pairs}  # of two at one step the last one counts
    return {step: size for step, size in sizes.items() if step < (config.num_steps or float("inf"))}


def unused_sizes(config: ConfigDict, steps_per_epoch: float) -> list[int]:
    """Returns the sizes of train_sizes, in pixels, that no step of the run has, because the run ends before them.

    Args:
      config: resolved options.
      steps_per_epoch: optimizer steps in an epoch, which may be a fraction.
    """
    used = sizes_by_step(config, steps_per_epoch)
    return [size for epoch, size in config.train_sizes if used.get(round(epoch * steps_per_epoch)) != size]


def size_at(sizes: dict[int, int], step: int) -> int:
    """Returns the side in pixels of the images of a step, from the result of sizes_by_step.

    >>> [size_at({0: 128, 30: 160}, step) for step in (0, 29, 30, 99)]
    [128, 128, 160, 160]
    """
    return sizes[max(first for first in sizes if first <= step)]
