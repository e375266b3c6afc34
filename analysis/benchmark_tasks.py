"""The tasks of benchmark.py: what its flags ask to measure, how to measure it, and the columns of the tables."""

import contextlib
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

import models
from analysis import nvidia_smi, roofline, throughput
from analysis.rows import Row
from analysis.summary import match_networks
from analysis.tables import Column
from configs._option import nearest_name
from training.platform import prepare_platform
from training.state import make_mesh

MODES = ("train", "infer", "input", "real")
DTYPES = ("float32", "bfloat16", "float64")

IDENTITY = [
    Column("model", 19, "model"),
    Column("mode", 5, "mode"),
    Column("stage", 8, "stage"),
    Column("batch", 6, "batch_size"),
    Column("pixels", 6, "image_size"),
    Column("dtype", 8, "dtype"),
]
MEASURED = [
    Column("images/s", 8, "images_per_second", 1),
    Column("± %", 5, "images_per_second_uncertainty", 0.01),
    Column("a core", 8, "images_per_second_per_core", 1),
    Column("step ms", 7, "step_ms_median", 1),
    Column("p90", 7, "step_ms_p90", 1),
    Column("p99", 7, "step_ms_p99", 1),
    Column("compile s", 9, "compile_seconds", 1),
    Column("memory GB", 9, "peak_memory_bytes", 1e9),
    Column("roofline %", 10, "roofline_share", 0.01),
    Column("MFU %", 6, "mfu", 0.01),
    Column("wait %", 6, "input_wait_share", 0.01),
    Column("images/s/W", 10, "images_per_second_per_watt", 1),
]
COMPARED = [
    Column("old images/s", 12, "images_per_second_old", 1),
    Column("images/s", 8, "images_per_second", 1),
    Column("ratio", 6, "ratio", 1),
    Column("from", 6, "ratio_low", 1),
    Column("to", 6, "ratio_high", 1),
    Column("verdict", 7, "verdict"),
]


class Task(NamedTuple):
    """One combination of the flags: a mode of a network.

    Attributes:
      mode: one of MODES.
      config: the network's options; its batch_size is where the search for the largest one starts if auto is true.
      auto: whether to search for the largest batch size that fits.
    """

    mode: str
    config: ConfigDict
    auto: bool


def list_tasks(
    config: ConfigDict,
    model_words: Sequence[str],
    modes: Sequence[str],
    batch_sizes: Sequence[str],
    image_sizes: Sequence[str],
    dtypes: Sequence[str],
) -> list[Task]:
    """Returns the combinations of the values; an empty sequence stands for the config's own value.

    Networks that see the same images have the same input pipeline, which is measured once. A network that does not fit
    its options is refused if it is the only one; of several networks, each that does not fit says so in its row.

    Args:
      config: the options that all tasks share.
      model_words: names of networks, patterns such as vgg*, or all.
      modes: some of MODES.
      batch_sizes: numbers of images, or auto for the largest that fits.
      image_sizes: pixels a side.
      dtypes: some of DTYPES.

    Raises:
      ValueError: if a value is invalid.
      OSError: if the dataset of the only network cannot be read.
    """
    names = match_networks(model_words or [config.model])
    dtypes = dtypes or [config.dtype]
    for flag, words, choices in (("mode", modes, MODES), ("dtype", dtypes, DTYPES)):
        for word in words:
            if word not in choices:
                hint = nearest_name(word, list(choices)) or f"; choose {', '.join(choices)}"
                raise ValueError(f"--{flag}={word} is unknown{hint}")
    if not modes:
        raise ValueError(f"--mode is empty; choose {', '.join(MODES)}")
    sizes = [positive_number("image_size", word) for word in image_sizes] or [config.image_size]
    batches = [None if word == "auto" else positive_number("batch_sizes", word) for word in batch_sizes]
    tasks: list[Task] = []
    measured_inputs: set[tuple[int, int, int]] = set()
    for dtype, name, image_size, mode, batch_size in itertools.product(
        dtypes, names, sizes, modes, batches or [config.batch_size]
    ):
        own, entry = config.copy_and_resolve_references(), models.get_entry(name)
        own.update({"model": name, "dtype": dtype, "image_size": image_size or entry.image_size})
        own.train_sizes = ()  # a row has one size, image_size
        own.batch_size = batch_size or own.batch_size
        images = own.image_size, own.channels or entry.channels, own.batch_size
        if mode == "input" and images in measured_inputs:
            continue
        if mode == "input" or len(names) == 1:
            try:
                throughput.resolve(own, mode)
            except (ValueError, OSError):
                if len(names) == 1:
                    raise
            else:
                if mode == "input":
                    measured_inputs.add(images)
        tasks.append(Task(mode, own, auto=batch_size is None and mode != "input"))
    return tasks


def positive_number(flag: str, word: str) -> int:
    """Returns the value of a word of a flag; raises ValueError if it is not a whole number above 0."""
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"--{flag}={word} is no number above 0; give one, or several with commas: 64,128")
    return int(word)


def choose_columns(tasks: Sequence[Task]) -> list[Column]:
    """Returns the table's columns, without those that are empty in these modes or on this machine."""
    modes = {task.mode for task in tasks}
    shown = {
        "stage": "input" in modes,
        "images_per_second_per_core": "input" in modes,
        "input_wait_share": "real" in modes,
        "images_per_second_per_watt": nvidia_smi.driver_version() is not None,
        "mfu": roofline.data_sheet(jax.devices()[0].device_kind) is not None,
    }
    return [column for column in IDENTITY + MEASURED if shown.get(column.key, True)]


def choose_compared_columns(compared: Sequence[Row]) -> list[Column]:
    """Returns the columns of a comparison, without those that are empty in its rows."""
    return [column for column in IDENTITY if any(row[column.key] for row in compared)] + COMPARED


def measure(
    task: Task,
    begin: Callable[[str], None],
    seconds: float,
    profile_folder: pathlib.Path | None = None,
    layer_times: bool = False,
) -> Iterator[Row]:
    """Yields the rows of a task; a measurement that fails yields a row with the reason.

    Args:
      task: from list_tasks.
      begin: is called with a description of each measurement before it starts.
      seconds: the most time that the steps of a row take.
      profile_folder: where to put a profile of each row, in a folder of its own; None for no profile.
      layer_times: whether rows need the time of each kind of layer, which takes a profile.
    """
    config = task.config

    def attempt(batch_size: int) -> list[Row]:
        config.batch_size = batch_size
        begin(f"{config.model} {task.mode} {batch_size}")
        identity = {"model": config.model, "mode": task.mode, "batch_size": batch_size}
        identity |= {"image_size": config.image_size, "dtype": config.dtype, "auto": task.auto}
        reads_dataset = task.mode in ("real", "input")
        identity["dataset"] = config.dataset if reads_dataset else "synthetic"
        identity["cache"] = config.cache if reads_dataset else ""
        measured = throughput.guarded(lambda: _measure_once(config, task.mode, seconds, profile_folder, layer_times))
        return [identity | row for row in measured]

    if task.auto:
        smallest = jax.device_count()
        # Each device's share of each micro-batch must consist of whole virtual batches.
        multiple = smallest * config.accumulation_steps * max(config.bn_virtual_batch_size, 1)
        yield from throughput.largest_batch_size(lambda size: attempt(size)[0], config.batch_size, smallest, multiple)
    else:
        yield from attempt(config.batch_size)


def has_failed(rows: Sequence[Row]) -> bool:
    """Whether a row could not be measured.

    Running out of memory is how the search for the largest batch ends: it is a failure only if no batch size fits.
    """
    same = ("model", "mode", "image_size", "dtype")
    fitting = {tuple(row[name] for name in same) for row in rows if row["status"] == "ok"}
    return any(
        row["status"] == "error"
        or row["status"] == "out_of_memory"
        and not (row["auto"] and tuple(row[name] for name in same) in fitting)
        for row in rows
    )


def _measure_once(
    config: ConfigDict, mode: str, seconds: float, profile_folder: pathlib.Path | None, layer_times: bool
) -> list[Row]:
    """Measures a mode of a network; returns one row, or in the mode input one row for each stage."""
    config = throughput.resolve(config, mode)
    if mode == "input":
        from analysis.input_stages import measure_input  # imports Grain and OpenCV, which only this mode needs

        return measure_input(config, seconds=seconds)
    prepare_platform(config)
    ceilings = _measure_ceilings(config.dtype, config.tf32)
    with contextlib.ExitStack() as stack:
        profile = None
        if profile_folder:
            profile = profile_folder / f"{config.model},{mode},{config.batch_size},{config.image_size},{config.dtype}"
        elif layer_times:
            profile = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return [throughput.measure(config, mode, ceilings, seconds, profile)]


@functools.cache
def _measure_ceilings(dtype: str, tf32: bool) -> roofline.Ceilings:
    """Measures the most that the devices can do, once for each precision of products."""
    return roofline.measure_ceilings(dtype, make_mesh())
