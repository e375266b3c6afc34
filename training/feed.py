"""The batches of a run: either the host loads them while the devices compute, or the devices hold the dataset."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

import input_pipeline
from training.step import Batch


class Feed:
    """Training and evaluation batches, with one interface for batches from the host and from a cache on the devices.

    Attributes:
      cache: the training images on the devices, for make_program; None if the host loads the batches.
      num_images: training images.
      num_eval_images: images of the evaluation split, including damaged ones.
      eval_split: the name of that split.
      steps_per_epoch: optimizer steps in an epoch, which may be a fraction.
    """

    def __init__(
        self, config: ConfigDict, mesh: Mesh, train_data: input_pipeline.Dataset, eval_data: input_pipeline.Dataset
    ):
        """Opens the feed; with a cache this decodes both datasets and puts them on the devices.

        Raises:
          ValueError: if the datasets do not fit into the devices' memory.
          input_pipeline.DamagedImageError: if an image cannot be decoded.
        """
        self._config, self._mesh, self._train_data, self._eval_data = config, mesh, train_data, eval_data
        self.num_images, self.num_eval_images, self.eval_split = len(train_data), len(eval_data), eval_data.split
        self.steps_per_epoch = len(train_data) / config.batch_size
        self.cache = input_pipeline.DeviceCache(train_data, config, mesh) if config.cache else None
        self._cached_eval_batches = input_pipeline.cached_eval_batches(eval_data, config, mesh) if config.cache else ()

    def train_batches(self, start: int, stop_is_due: Callable[[int], bool]) -> "TrainBatches":
        """Returns an iterator of (last step, batch), one for each call of the training step.

        Args:
          start: steps done before.
          stop_is_due: whether the host has something to do after a step; a call that takes several steps ends at such
            a step.
        """
        config = self._config
        if self.cache:
            steps = list(last_steps(config, start, stop_is_due))
            memory = f"{len(self._train_data):,} images, {self.cache.num_bytes / 2**20:,.1f} MiB on each device"
            return TrainBatches(steps, self.cache.batches(start, steps), f"cache: {memory}", self._train_data)
        batches = input_pipeline.train_batches(self._train_data, config, start_step=start, num_steps=config.num_steps)
        batches = input_pipeline.to_device(batches, self._mesh, config.prefetch_batches)
        memory = f"{batches.host.threads} threads, at most {batches.num_bytes / 2**20:,.1f} MiB of batches"
        return TrainBatches(range(start + 1, config.num_steps + 1), batches, f"input: {memory}", self._train_data)

    def eval_batches(self) -> contextlib.AbstractContextManager[Iterable[Batch]]:
        """Returns a context that gives the batches of one evaluation, on the devices."""
        if self.cache:
            return contextlib.nullcontext(self._cached_eval_batches)
        batches = input_pipeline.eval_batches(self._eval_data, self._config)
        return input_pipeline.to_device(batches, self._mesh, self._config.prefetch_batches)


class TrainBatches:
    """An iterator of (last step, batch), made by Feed.train_batches. Used as a context, it stops the loading at exit.

    Attributes:
      description: a line for the user: how the batches are made and how much memory that takes.
    """

    def __init__(self, steps: Iterable[int], batches: Any, description: str, dataset: input_pipeline.Dataset):
        self.description = description
        self._steps, self._batches, self._dataset = steps, batches, dataset

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        for step in self._steps:
            yield step, next(self._batches)

    @property
    def wait_seconds(self) -> float:
        """Seconds that were spent waiting for input."""
        return self._batches.wait_seconds

    def count_bad_images(self) -> int:
        """Returns how many training images could not be decoded and were replaced by others."""
        return input_pipeline.count_bad_images(self._batches.host, self._dataset)

    def __enter__(self) -> "TrainBatches":
        self._batches.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._batches.__exit__(*error)


def last_steps(config: ConfigDict, start: int, stop_is_due: Callable[[int], bool]) -> Iterator[int]:
    """Yields the last step of each call if one call takes several steps.

    The first call takes only one step, because it compiles; the speed is measured from the second call on.
    """
    step = start
    while step < config.num_steps:
        most = min(step + (config.steps_per_dispatch if step > start else 1), config.num_steps)
        inner = range(step + 1, most)
        step = next((n for n in inner if stop_is_due(n)), most)
        yield step
