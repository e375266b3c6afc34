"""Batches: which record stands where, decoded on a pool of threads, and put on the mesh ahead of need."""

import collections
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.datasets import DamagedImageError, Dataset

Batch = dict[str, Any]


class HostBatches:
    """An iterator of batches in host memory, loaded ahead by Grain.

    `close` (or leaving a `with`) ends its threads. An error while loading is raised where the batch is asked for.
    """

    def __init__(self, load: Callable[[ThreadPoolExecutor, int], Batch], first: int, stop: int, config: ConfigDict):
        import grain

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        # One thread more than cores hides the reads; beyond 32 they only wait for the interpreter.
        self._pool = pool = ThreadPoolExecutor(config.decode_threads or min(32, cores + 1), thread_name_prefix="decode")
        # Two batches at a time: while the last images of one are decoded, the pool already has the next one's.
        ahead = grain.ReadOptions(min(2, config.prefetch_batches), config.prefetch_batches)
        steps = grain.MapDataset.range(first, stop)
        self._batches = iter(steps.map(lambda step: load(pool, step)).to_iter_dataset(ahead))

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
    process_index: int = 0,
    process_count: int = 1,
    num_steps: int | None = None,
) -> HostBatches:
    """Training batches, without end or up to step num_steps.

    Position p of the endless sequence holds one record, shuffled anew each epoch; batch k takes the positions
    [k batch_size, (k + 1) batch_size), across epoch ends. Order and crops are functions of (seed, position) alone: the
    step is all that a resume needs.

    Args:
      dataset: the training records.
      config: batch_size (global), seed, image_size, channels, the crop's options, decode_threads, prefetch_batches.
      start_step: step of the first batch.
      process_index: this process.
      process_count: processes that share a global batch, each taking contiguous rows.
      num_steps: steps of the whole run: the last batch is that of step num_steps - 1.

    Returns:
      An iterator of {'image': uint8 (L, image_size, image_size, channels), 'label': int32 (L,)} with
      L = batch_size / process_count.

    Raises:
      ValueError: batch_size does not divide over the processes, or an option of the crop is wrong.
      DamagedImageError: from the iterator, if an image cannot be decoded.
    """
    import grain

    rows = _rows("batch_size", config.batch_size, process_count)
    shape = rows, config.image_size, config.image_size, config.channels
    batch_size, seed = config.batch_size, config.seed
    transform, num_uniforms = _ready, 4
    if dataset.name != "synthetic":
        from input_pipeline import images

        transform, num_uniforms = images.training_transform(config), images.UNIFORMS
    # Grain shuffles epoch e with seed + e: unhashed, seed 1 would repeat seed 0's order one epoch later.
    order_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    order = grain.MapDataset.range(len(dataset)).shuffle(seed=order_seed).repeat()

    def load(pool: ThreadPoolExecutor, step: int) -> Batch:
        first = step * batch_size + process_index * rows
        # Philox counts in blocks of four numbers, so that a position's numbers do not depend on where a batch begins.
        uniforms = np.random.Generator(np.random.Philox(key=seed, counter=first * num_uniforms // 4)).random(
            (rows, num_uniforms)
        )
        image, label = np.empty(shape, np.uint8), np.empty(rows, np.int32)

        def fill(row: int) -> None:
            image[row], label[row] = read_image(dataset, order[first + row], transform, uniforms[row])

        _fill_rows(pool, fill, rows)
        return {"image": image, "label": label}

    return HostBatches(load, start_step, sys.maxsize if num_steps is None else num_steps, config)


def eval_batches(
    dataset: Dataset, config: ConfigDict, *, process_index: int = 0, process_count: int = 1
) -> HostBatches:
    """Evaluation batches: every record once, in order; the last batch is padded with zeros to the same shape.

    Args:
      dataset: the records.
      config: eval_batch_size (global), image_size, channels, eval_resize, decode_threads, prefetch_batches.
      process_index: this process.
      process_count: processes that share a global batch, each taking contiguous rows.

    Returns:
      An iterator, equally long on every process, of {'image': uint8 (L, image_size, image_size, channels),
      'label': int32 (L,), 'mask': float32 (L,)}, L = eval_batch_size / process_count; mask is 0 on padding, else 1.

    Raises:
      ValueError: eval_batch_size does not divide over the processes, or eval_resize is too small.
      DamagedImageError: from the iterator, if an image cannot be decoded.
    """
    batch_size = config.eval_batch_size
    rows = _rows("eval_batch_size", batch_size, process_count)
    shape = rows, config.image_size, config.image_size, config.channels
    transform = _ready
    if dataset.name != "synthetic":
        from input_pipeline import images

        transform = images.evaluation_transform(config)

    def load(pool: ThreadPoolExecutor, step: int) -> Batch:
        first = step * batch_size + process_index * rows
        filled = min(max(len(dataset) - first, 0), rows)
        image, label = np.empty(shape, np.uint8), np.zeros(rows, np.int32)
        image[filled:] = 0

        def fill(row: int) -> None:
            image[row], label[row] = read_image(dataset, first + row, transform)

        _fill_rows(pool, fill, filled)
        return {"image": image, "label": label, "mask": (np.arange(rows) < filled).astype(np.float32)}

    return HostBatches(load, 0, -(-len(dataset) // batch_size), config)


def _rows(option: str, batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"{option}={batch_size} must be a positive multiple of the {process_count} processes")
    return batch_size // process_count


def _ready(image: np.ndarray, *uniforms: np.ndarray) -> np.ndarray:
    return image


def read_image(dataset: Dataset, record: int, transform: Callable, *uniforms: np.ndarray) -> tuple[np.ndarray, int]:
    image, label = dataset[record]
    try:
        return transform(image, *uniforms), label
    except ValueError as error:
        where = f"dataset {dataset.name!r}, split {dataset.split!r}, {dataset.describe(record)}"
        raise DamagedImageError(f"damaged image in {where}: {error}; replace or remove it") from error


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
      wait_seconds: seconds that the consumer has waited for batches so far.
    """

    def __init__(self, batches: Iterator[Batch], sharding: NamedSharding, prefetch: int):
        self.wait_seconds = 0.0
        self._batches = batches
        self._sharding = sharding
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="to_device")
        self._ahead = collections.deque(self._pool.submit(self._load) for _ in range(prefetch))

    def _load(self) -> Batch:
        batch = next(self._batches)
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

    def close(self) -> None:
        """Ends the thread, and closes the host's batches."""
        self._pool.shutdown(cancel_futures=True)
        if hasattr(self._batches, "close"):
            self._batches.close()

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
