"""Batches: which record stands where, decoded on a pool of threads, and put on the mesh ahead of need."""

import collections
import functools
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
from input_pipeline.dataset import DamagedImageError, Dataset

Batch = dict[str, Any]


class HostBatches:
    """An iterator of batches in host memory, loaded ahead by Grain.

    `close` (or leaving a `with`) ends its threads. An error while loading is raised where the batch is asked for.

    Attributes:
      threads: that read and decode images.
      batch_bytes: of one batch's images.
      num_bytes: of all batches that are in memory at most, the one handed over last included.
      bad_images: records that were left out so far, with on_bad_image='skip'.
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

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # One thread more than cores hides the reads; beyond 32 they only wait for the interpreter.
        self.threads = config.decode_threads or min(32, cores + 1)
        # While the last images of one batch are decoded, the pool already has the next one's; small batches need more.
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
    """Training batches, without end or up to step num_steps.

    Position p of the endless sequence holds one record, shuffled anew each epoch; batch k takes the positions
    [k batch_size, (k + 1) batch_size), across epoch ends. Order and crops are functions of (seed, position) alone: the
    step is all that a resume needs.

    Args:
      dataset: the training records.
      config: batch_size (global), seed, image_size, channels, the crop's options, decode_threads, on_bad_image.
      start_step: step of the first batch.
      process_index: this process; None: as JAX counts.
      process_count: processes that share a global batch, each taking contiguous rows; None: as JAX counts.
      num_steps: steps of the whole run: the last batch is that of step num_steps - 1.

    Returns:
      An iterator of {'image': uint8 (L, image_size, image_size, channels), 'label': int32 (L,)} with
      L = batch_size / process_count.

    Raises:
      ValueError: batch_size does not divide over the processes, or an option of the crop is wrong.
      DamagedImageError: from the iterator, if an image cannot be read, or decoded and on_bad_image is 'raise'. With
        'skip' the nearest good record that follows it in the dataset takes its place, and `bad_images` grows.
    """
    import grain

    first_row, rows = _rows("batch_size", config.batch_size, process_index, process_count)
    shape = rows, config.image_size, config.image_size, config.channels
    batch_size, seed = config.batch_size, config.seed
    transform, num_uniforms = _ready, 4
    if dataset.needs_transform:
        from input_pipeline import images  # only where it is needed: it imports the decoders

        transform, num_uniforms = images.training_transform(config), UNIFORMS
    # Grain shuffles epoch e with seed + e: unhashed, seed 1 would repeat seed 0's order one epoch later.
    order_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    order = grain.MapDataset.range(len(dataset)).shuffle(seed=order_seed).repeat()
    bad_images: set[int] = set()

    def load(pool: ThreadPoolExecutor, step: int) -> Batch:
        first = step * batch_size + first_row
        # Philox counts in blocks of four numbers, so that a position's numbers do not depend on where a batch begins.
        uniforms = np.random.Generator(np.random.Philox(key=seed, counter=first * num_uniforms // 4)).random(
            (rows, num_uniforms)
        )
        image, label = np.empty(shape, np.uint8), np.empty(rows, np.int32)

        def fill(row: int) -> None:
            record = order[first + row]
            image[row], label[row] = read_good_image(dataset, record, transform, bad_images, config, uniforms[row])

        _fill_rows(pool, fill, rows)
        return {"image": image, "label": label}

    stop = sys.maxsize if num_steps is None else num_steps
    return HostBatches(load, start_step, stop, shape, config, bad_images)


def eval_batches(
    dataset: Dataset, config: ConfigDict, *, process_index: int | None = None, process_count: int | None = None
) -> HostBatches:
    """Evaluation batches: every record once, in order; the last batch is padded with zeros to the same shape.

    Args:
      dataset: the records.
      config: eval_batch_size (global), image_size, channels, eval_resize, decode_threads, on_bad_image.
      process_index: this process; None: as JAX counts.
      process_count: processes that share a global batch, each taking contiguous rows; None: as JAX counts.

    Returns:
      An iterator, equally long on every process, of {'image': uint8 (L, image_size, image_size, channels),
      'label': int32 (L,), 'mask': float32 (L,)}, L = eval_batch_size / process_count; mask is 0 on padding and, with
      on_bad_image='skip', on images that cannot be decoded, else 1.

    Raises:
      ValueError: eval_batch_size does not divide over the processes, or eval_resize is too small.
      DamagedImageError: from the iterator, if an image cannot be read, or decoded and on_bad_image is 'raise'.
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
    """Returns the first of a process's rows in the global batch, and their number."""
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
      DamagedImageError: if it cannot be read (its cause is then an OSError) or decoded.
    """
    try:
        image, label = dataset[record]
        return transform(image, *uniforms), label
    except (ValueError, OSError) as error:
        where = f"dataset {dataset.name!r}, split {dataset.split!r}, {dataset.describe(record)}"
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
    """Returns what read_image does; with on_bad_image='skip' of the nearest good record, from this one onwards.

    Raises:
      DamagedImageError: as skip_image does, or if no record is good.
    """
    for candidate in range(record, record + len(dataset)):
        try:
            return read_image(dataset, candidate % len(dataset), transform, *uniforms)
        except DamagedImageError as error:
            skip_image(error, candidate % len(dataset), bad_images, config)
    raise DamagedImageError(f"no image of dataset {dataset.name!r}, split {dataset.split!r}, can be decoded")


def skip_image(error: DamagedImageError, record: int, bad_images: set[int], config: ConfigDict) -> None:
    """Notes a bad image and says so once, unless it must end the run: a disk that is gone is no bad image."""
    if config.on_bad_image == "raise" or isinstance(error.__cause__, OSError):
        raise error
    bad_images.add(record)
    _say_once(f"left out: {str(error).removesuffix(', or set on_bad_image=skip')}")


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


def _fill_rows(pool: ThreadPoolExecutor, fill: Callable[[int], None], rows: int) -> None:
    # A task of several rows: handing one over costs as much as decoding a small image.
    def fill_chunk(chunk: range) -> None:
        for row in chunk:
            fill(row)

    size = max(1, min(16, rows // 16))
    for _ in pool.map(fill_chunk, [range(first, min(first + size, rows)) for first in range(0, rows, size)]):
        pass


class DeviceBatches:
    """An iterator of batches on the mesh, put there by a thread ahead of need; `to_device` makes it.

    Attributes:
      host: the batches that are put there.
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
        return {name: jax.make_array_from_process_local_data(self._sharding, array) for name, array in batch.items()}

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
        """Bytes that this process's batches take at most, on the host and on its devices."""
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
    """Batches, or their source, that note the records that were left out."""

    bad_images: set[int]


def count_bad_images(batches: HasBadImages, dataset: Dataset) -> int:
    """Returns how many of the dataset's records were left out so far, by any process; all processes call it."""
    bad = np.isin(np.arange(len(dataset)), list(batches.bad_images))
    return int(multihost_utils.process_allgather(bad).any(axis=0).sum())


def to_device(batches: Iterator[Batch], mesh: Mesh, prefetch: int = 2) -> DeviceBatches:
    """Puts batches on the mesh, their rows split over its axis 'data'.

    Args:
      batches: dicts of arrays whose first axis are this process's rows of the global batch; closed with the result.
      mesh: with an axis 'data' that divides the global batch.
      prefetch: batches kept on the mesh ahead of the one in use.

    Returns:
      An iterator of dicts of global jax.Arrays, with `wait_seconds` and `close`. All transfers are explicit.
    """
    return DeviceBatches(batches, NamedSharding(mesh, PartitionSpec("data")), prefetch)
