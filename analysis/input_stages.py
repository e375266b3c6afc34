"""The speed of the input pipeline, stage by stage, which shows the stage that limits it."""

import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from ml_collections import ConfigDict

import input_pipeline
from analysis import timing
from analysis.rows import Row
from input_pipeline import crops
from input_pipeline.batches import Batch
from training.state import make_mesh

SAMPLE = 512  # images that each stage works on, repeatedly


def measure_input(config: ConfigDict, *, seconds: float) -> list[Row]:
    """Measures each stage between the stored training images and the devices.

    `read` (from the page cache, if the sample is in it), `decode` (the part that a training crop needs) and `crop`
    (resize and flip) run alone, each on the pipeline's number of threads. `batch` does all three and fills batches,
    `transfer` puts the same batch on the devices repeatedly, `all` is the whole pipeline. Images that are not stored
    encoded have no `decode`, and synthetic ones no `crop`.

    Args:
      config: resolved options.
      seconds: how long to measure each stage, after a warm-up.

    Returns:
      A row for each stage: stage, channels, images_per_second with an interval of at least 95 % (None if there was no
      time for six turns), images_per_second_per_core, peak_memory_bytes (the most bytes of all batches in memory; None
      for stages that make no batches) and its source.

    Raises:
      ValueError, FileNotFoundError: as input_pipeline.load_dataset does.
    """
    dataset, mesh = input_pipeline.load_dataset(config, "train"), make_mesh()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows: list[Row] = []

    def add(stage: str, images: int, turns: list[float], memory_bytes: int | None = None) -> None:
        rate, low, high, uncertainty = images * len(turns) / sum(turns), None, None, None
        if len(turns) >= timing.MIN_ITERATIONS:
            low, high = (images * end for end in timing.rate_interval(turns))
            uncertainty = (high - low) / 2 / rate
        rows.append(
            {
                "stage": stage,
                "channels": config.channels,
                "images_per_second": rate,
                "images_per_second_low": low,
                "images_per_second_high": high,
                "images_per_second_uncertainty": uncertainty,
                "images_per_second_per_core": rate / cores,
                "peak_memory_bytes": memory_bytes,
                "peak_memory_source": memory_bytes and "loader's bound",
            }
        )

    with input_pipeline.train_batches(dataset, config) as host:
        add("batch", config.batch_size, _time_batches(host, seconds), host.num_bytes)
        batch, threads = next(host), host.threads
    for stage, work in _stages_of_an_image(dataset, config):
        add(stage, SAMPLE, _time_calls(work, threads, seconds))
    with input_pipeline.to_device(_forever(batch), mesh, prefetch=1) as transferred:
        add("transfer", config.batch_size, _time_batches(transferred, seconds))
    with input_pipeline.to_device(
        input_pipeline.train_batches(dataset, config), mesh, config.prefetch_batches
    ) as batches:
        add("all", config.batch_size, _time_batches(batches, seconds), batches.num_bytes)
    order = ("read", "decode", "crop", "batch", "transfer", "all")
    return sorted(rows, key=lambda row: order.index(row["stage"]))


def _stages_of_an_image(dataset: input_pipeline.Dataset, config: ConfigDict) -> Iterator[tuple[str, Callable]]:
    """Yields the name of each stage and a function that does its work for the n-th image of the sample."""
    records = np.random.default_rng(0).permutation(len(dataset))[:SAMPLE].tolist()
    records = [records[number % len(records)] for number in range(SAMPLE)]
    yield "read", lambda number: dataset[records[number]]
    if not dataset.needs_transform:
        return
    from input_pipeline import images  # imported only here, because it imports the decoders

    sample = [dataset[record][0] for record in records]
    uniforms = np.random.default_rng(0).random((SAMPLE, crops.UNIFORMS))
    choose_box, transform = crops.training_box(config), images.training_transform(config)
    if isinstance(sample[0], bytes):
        decode_box = images.box_decoder(config)

        def decode(number: int) -> None:
            def box(height: int, width: int) -> crops.Box:
                return choose_box(height, width, uniforms[number])

            decode_box(sample[number], box, config.image_size)

        yield "decode", decode
        sample = [decode_box(encoded, crops.whole, math.inf) for encoded in sample]
    yield "crop", lambda number: transform(sample[number], uniforms[number])


def _time_calls(work: Callable[[int], object], threads: int, seconds: float) -> list[float]:
    def several(first: int) -> None:
        for number in range(first, first + 16):
            work(number)

    with ThreadPoolExecutor(threads) as pool:
        turns = iter(lambda: list(pool.map(several, range(0, SAMPLE, 16))), None)
        return _time_turns(turns, seconds)


def _time_batches(batches: Iterator[Batch], seconds: float) -> list[float]:
    for _ in range(5):  # the first batches were loaded before the clock starts
        next(batches)
    return _time_turns(map(jax.block_until_ready, batches), seconds)


def _time_turns(turns: Iterator, seconds: float) -> list[float]:
    """Returns the seconds of each turn, of at least one, without the first turn."""
    next(turns)
    ends = [time.perf_counter()]
    while len(ends) < 2 or ends[-1] - ends[0] < seconds:
        next(turns)
        ends.append(time.perf_counter())
    return np.diff(ends).tolist()


def _forever(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch
