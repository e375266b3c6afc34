"""Makes batches: chooses their records, decodes these on a pool of threads, and puts batches on the mesh in advance."""

import collections
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.crops import UNIFORMS
from input_pipeline.dataset import DamagedImageError, Dataset, UnreadableImageError
from input_pipeline.files import say_once
from input_pipeline.repetition import place_of_record
from input_pipeline.training_sizes import size_at, sizes_by_step

Batch = dict[str, Any]


def num_decode_threads(config: ConfigDict) -> int:
    """Returns the number of threads that read and decode images: decode_threads, or if it is 0, cores + 1, at most 32.

    One thread more than cores keeps the cores busy during reads; more than 32 threads only wait for the GIL.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.decode_threads or min(32, cores + 1)


class HostBatches:
    """An iterator of batches in host memory, which Grain loads in advance.

    `close`, or the end of the `with` block, ends its threads. An error while loading is raised by `next` for the batch
    that it concerns.

    Attributes:
      threads: number of threads that read and decode images.
      batch_bytes: bytes of one batch's images.
      num_bytes: most bytes of all batches in memory, including the one returned last.
      bad_images: indices of the records that were left out so far, if on_bad_image is 'skip'.
    """

    def __init__(
        self,
        load: Callable[[ThreadPoolExecutor, int], Batch],
        first: int,
        stop: int,
        shape: tuple[int, ...],
        config: ConfigDict,
        bad_images: set[int],
    ):
        import grain

        self.threads = num_decode_threads(config)
        # Several batches are loaded at once, so that the threads have work while the last images of a batch are
        # decoded; small batches need more of them.
        ahead = max(2, math.ceil(2 * self.threads / shape[0]))
        self.batch_bytes = math.prod(shape)
        self.num_bytes = (ahead + 1) * self.batch_bytes
        self.bad_images = bad_images
        self._pool = pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        steps = grain.MapDataset.range(first, stop)
        self._batches = iter(steps.map(lambda step: load(pool, step)).to_iter_dataset(grain.ReadOptions(ahead, ahead)))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        self._batches.close()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "HostBatches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def train_batches(
    dataset: Dataset,
    config: ConfigDict,
    *,
    start_step: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
    num_steps: int | None = None,
) -> HostBatches:
    """Returns training batches, up to step num_steps or, if it is None, without end.

    The records form an endless sequence, shuffled anew for each epoch. Batch k holds the positions
    [k batch_size, (k + 1) batch_size) of the sequence and may span two epochs. Order and crops depend only on the seed
    and the position, so a resume needs nothing but the step. With repeated_augmentation the sequence has each record
    several times in a row, and batch k has its part of the sequence in another order.

    Args:
      dataset: the training records.
      config: batch_size (global), repeated_augmentation, seed, image_size, channels, the crop's options,
        decode_threads, on_bad_image.
      start_step: step of the first batch.
      process_index: number of this process; None: JAX's.
      process_count: processes that share a global batch, each taking contiguous rows; None: JAX's.
      num_steps: steps of the whole run; the last batch is that of step num_steps - 1.

    Returns:
      An iterator of {'image': uint8 (L, S, S, channels), 'label': int32 (L,)} with L = batch_size / process_count. S is
      image_size, or the size that train_sizes has at the step.

    Raises:
      ValueError: if batch_size is not divisible by the number of processes, or an option of the crop is invalid.
      DamagedImageError: from the iterator, if an image cannot be decoded and on_bad_image is 'raise'. With 'skip' the
        next good record of the dataset replaces the image, and `bad_images` grows.
      UnreadableImageError: from the iterator, if a file cannot be read.
    """
    import grain

    first_row, rows = _rows("batch_size", config.batch_size, process_index, process_count)
    sizes = sizes_by_step(config, len(dataset) / config.batch_size)
    batch_size, copies, seed = config.batch_size, config.repeated_augmentation, config.seed
    transforms, num_uniforms = {config.image_size: _ready}, 4
    if dataset.needs_transform or config.train_sizes:
        from input_pipeline import images  # imported only here, because it imports the decoders

        transforms, num_uniforms = {size: images.training_transform(config, size) for size in sizes.values()}, UNIFORMS
    # The seed is hashed because Grain shuffles epoch e with seed + e: otherwise the orders of seed 1 would be those of
    # seed 0, one epoch later.
    order_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    order = grain.MapDataset.range(len(dataset)).shuffle(seed=order_seed).repeat()
    bad_images: set[int] = set()

    def load(pool: ThreadPoolExecutor, step: int) -> Batch:
        first = step * batch_size + first_row
        # Philox makes numbers in blocks of four and can start at any block, so the random numbers of a position do not
        # depend on where a batch begins.
        uniforms = np.random.Generator(np.random.Philox(key=seed, counter=first * num_uniforms // 4)).random(
            (rows, num_uniforms)
        )
        size = size_at(sizes, step)
        image, label = np.empty((rows, size, size, config.channels), np.uint8), np.empty(rows, np.int32)

        def fill(row: int) -> None:
            record = order[place_of_record(step, first_row + row, batch_size, copies)]
            image[row], label[row] = read_good_image(
                dataset, record, transforms[size], bad_images, config, uniforms[row]
            )

        _fill_rows(pool, fill, rows)
        return {"image": image, "label": label}

    stop = sys.maxsize if num_steps is None else num_steps
    largest = max(sizes.values())
    shape = rows, largest, largest, config.channels
    return HostBatches(load, start_step, stop, shape, config, bad_images)


def eval_batches(
    dataset: Dataset, config: ConfigDict, *, process_index: int | None = None, process_count: int | None = None
) -> HostBatches:
    """Returns evaluation batches with every record once, in order; the last batch is padded with zeros.

    Args:
      dataset: the records.
      config: eval_batch_size (global), image_size, channels, eval_resize, decode_threads, on_bad_image.
      process_index: number of this process; None: JAX's.
      process_count: processes that share a global batch, each taking contiguous rows; None: JAX's.

    Returns:
      An iterator of {'image': uint8 (L, image_size, image_size, channels), 'label': int32 (L,), 'mask': float32 (L,)}
      with L = eval_batch_size / process_count and the same number of batches on every process. mask is 0 for padding
      and, if on_bad_image is 'skip', for images that cannot be decoded; otherwise it is 1.

    Raises:
      ValueError: if eval_batch_size is not divisible by the number of processes, or eval_resize is too small.
      DamagedImageError: from the iterator, if an image cannot be decoded and on_bad_image is 'raise'.
      UnreadableImageError: from the iterator, if a file cannot be read.
    """
    batch_size = config.eval_batch_size
    first_row, rows = _rows("eval_batch_size", batch_size, process_index, process_count)
    shape = rows, config.image_size, config.image_size, config.channels
    transform = _ready
    if dataset.needs_transform:
        from input_pipeline import images

        transform = images.evaluation_transform(config)
    bad_images: set[int] = set()

    def load(pool: ThreadPoolExecutor, step: int) -> Batch:
        first = step * batch_size + first_row
        filled = min(max(len(dataset) - first, 0), rows)
        image, label, mask = np.empty(shape, np.uint8), np.zeros(rows, np.int32), np.zeros(rows, np.float32)
        image[filled:] = 0

        def fill(row: int) -> None:
            try:
                image[row], label[row] = read_image(dataset, first + row, transform)
                mask[row] = 1
            except DamagedImageError as error:
                skip_image(error, first + row, bad_images, config)
                image[row] = 0

        _fill_rows(pool, fill, filled)
        return {"image": image, "label": label, "mask": mask}

    return HostBatches(load, 0, -(-len(dataset) // batch_size), shape, config, bad_images)


def _rows(option: str, batch_size: int, process_index: int | None, process_count: int | None) -> tuple[int, int]:
    """Returns the index of a process's first row in the global batch, and its number of rows."""
    count = jax.process_count() if process_count is None else process_count
    if batch_size < 1 or batch_size % count:
        raise ValueError(f"{option}={batch_size} must be a positive multiple of the {count} processes")
    rows = batch_size // count
    return rows * (jax.process_index() if process_index is None else process_index), rows


def _ready(image: np.ndarray, *uniforms: np.ndarray) -> np.ndarray:
    return image


def read_image(dataset: Dataset, record: int, transform: Callable, *uniforms: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns a record's image, transformed, and its label.

    Raises:
      DamagedImageError: if the image cannot be decoded.
      UnreadableImageError: if its file cannot be read.
    """
    try:
        image, label = dataset[record]
        return transform(image, *uniforms), label
    except (ValueError, OSError) as error:
        where = f"dataset {dataset.name!r}, split {dataset.split!r}, {dataset.describe(record)}"
        if isinstance(error, OSError):
            raise UnreadableImageError(f"cannot read an image of {where}: {error}") from error
        advice = "replace or remove it, or set on_bad_image=skip"
        raise DamagedImageError(f"damaged image in {where}: {error}; {advice}") from error


def read_good_image(
    dataset: Dataset,
    record: int,
    transform: Callable,
    bad_images: set[int],
    config: ConfigDict,
    *uniforms: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Returns the same as read_image; if on_bad_image is 'skip', of the first good record from this one onwards.

    Raises:
      DamagedImageError: if the image is damaged and on_bad_image is 'raise', or if no record is good.
      UnreadableImageError: if a file cannot be read.
    """
    for candidate in range(record, record + len(dataset)):
        try:
            return read_image(dataset, candidate % len(dataset), transform, *uniforms)
        except DamagedImageError as error:
            skip_image(error, candidate % len(dataset), bad_images, config)
    raise DamagedImageError(f"no image of dataset {dataset.name!r}, split {dataset.split!r}, can be decoded")


def skip_image(error: DamagedImageError, record: int, bad_images: set[int], config: ConfigDict) -> None:
    """Adds a record to bad_images and reports it once on standard error.

    Raises:
      DamagedImageError: the given error, if on_bad_image is 'raise'.
    """
    if config.on_bad_image == "raise":
        raise error
    bad_images.add(record)
    say_once(f"left out: {str(error).removesuffix(', or set on_bad_image=skip')}")


def _fill_rows(pool: ThreadPoolExecutor, fill: Callable[[int], None], rows: int) -> None:
    # Each task has several rows, because submitting a task takes as long as decoding a small image.
    def fill_chunk(chunk: range) -> None:
        for row in chunk:
            fill(row)

    size = max(1, min(16, rows // 16))
    for _ in pool.map(fill_chunk, [range(first, min(first + size, rows)) for first in range(0, rows, size)]):
        pass


class DeviceBatches:
    """An iterator of batches on the mesh, made by `to_device`. A thread puts batches on the mesh in advance.

    Attributes:
      host: the iterator of the batches on the host.
      wait_seconds: seconds that the consumer has waited for batches so far.
    """

    def __init__(self, batches: Iterator[Batch], sharding: NamedSharding, prefetch: int):
        self.host: Any = batches
        self.wait_seconds = 0.0
        self._prefetch = prefetch
        self._sharding = sharding
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="to_device")
        self._ahead = collections.deque(self._pool.submit(self._load) for _ in range(prefetch))

    def _load(self) -> Batch:
        batch = next(self.host)
        # train.py forbids implicit copies to the devices; with several processes JAX counts this copy as one.
        with jax.transfer_guard_host_to_device("allow"):
            return {
                name: jax.make_array_from_process_local_data(self._sharding, array) for name, array in batch.items()
            }

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._ahead.append(self._pool.submit(self._load))
        start = time.perf_counter()
        try:
            return self._ahead.popleft().result()
        finally:
            self.wait_seconds += time.perf_counter() - start

    @property
    def num_bytes(self) -> int:
        """Most bytes of this process's batches, on the host and on its devices together."""
        return self.host.num_bytes + (self._prefetch + 1) * self.host.batch_bytes

    def close(self) -> None:
        """Ends the thread, and closes the host's batches."""
        self._pool.shutdown(cancel_futures=True)
        if hasattr(self.host, "close"):
            self.host.close()

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class HasBadImages(Protocol):
    """An object that makes batches and collects the indices of the records that were left out."""

    bad_images: set[int]


def count_bad_images(batches: HasBadImages, dataset: Dataset) -> int:
    """Returns how many of the dataset's records any process has left out so far; all processes must call it."""
    bad = np.isin(np.arange(len(dataset)), list(batches.bad_images))
    return int(multihost_utils.process_allgather(bad).any(axis=0).sum())


def to_device(batches: Iterator[Batch], mesh: Mesh, prefetch: int = 2) -> DeviceBatches:
    """Puts batches on the mesh, their rows split over its axis 'data'.

    Args:
      batches: dicts of arrays, whose first axis is this process's rows of the global batch; closed when the result is.
      mesh: with an axis 'data' that divides the global batch.
      prefetch: batches kept on the mesh ahead of the one in use.

    Returns:
      An iterator of dicts of global jax.Arrays, with `wait_seconds` and `close`. All transfers are explicit.
    """
    return DeviceBatches(batches, NamedSharding(mesh, PartitionSpec("data")), prefetch)
