"""Measures how fast networks run: python benchmark.py --models=resnet50,vgg* --mode=train,infer --batch_sizes=64,auto.

A row for each model, data type, image size, mode and batch size: images/s, the times of the steps, of compiling and of
the first step, memory, and the share of what this machine can do at most, which is measured in the same run.
--rows=FILE takes the rows of an earlier run instead, to compare or to draw them.

Exit codes: 0 done; 1 slower than --compare's rows by more than --tolerance; 2 bad flags, config or data; 3 a row could
not be measured, and says why; 130 and 143 after SIGINT and SIGTERM, with the rows so far in the files of --json
and --csv; standard output (-) has them only at the end.
"""

import contextlib
import datetime
import fnmatch
import functools
import itertools
import os
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

import models
from analysis import comparison, nvidia_smi, roofline, rows, throughput, throughput_report
from analysis.rows import Column, Row
from configs._option import nearest_name
from training import command_line
from training.platform import prepare_platform
from training.state import make_mesh
from training.workdir import write_atomically

BASE = pathlib.Path(__file__).resolve().parent / "configs" / "base.py"
MODES = ("train", "infer", "input", "real")
DTYPES = ("float32", "bfloat16", "float64")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/; default: base.py.")
_MODELS = flags.DEFINE_list("models", None, "Names, patterns as vgg*, or all; default: the config's.")
_MODE = flags.DEFINE_list("mode", ["train"], f"Of {', '.join(MODES)}: input is the loader alone, real the whole loop.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", None, "Numbers; auto: the largest that fits; default: the config's.")
_IMAGE_SIZE = flags.DEFINE_list("image_size", None, "Pixels a side, one or several; default: the network's own.")
_DTYPE = flags.DEFINE_list("dtype", None, f"Of {', '.join(DTYPES)}, one or several; default: the config's.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Time for a row's steps; less if 1 % is reached before.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "A file for the rows; - for standard output, and nothing else there.")
_CSV = flags.DEFINE_string("csv", None, "A file for the rows; - for standard output, and nothing else there.")
_ROWS = flags.DEFINE_string("rows", None, "A file that --json wrote: its rows are taken instead of measuring.")
_COMPARE = flags.DEFINE_string("compare", None, "A file that --json wrote, whose rows to compare with.")
_TOLERANCE = flags.DEFINE_float("tolerance", 0.05, "For --compare: share of images/s that may be lost.", 0, 1)
_REPORT = flags.DEFINE_string("report", None, "A folder for pictures.")
_RUNS = flags.DEFINE_string("runs", None, "For --report: finished runs whose accuracy is drawn, too: 'runs/*'.")
_PROFILE = flags.DEFINE_string("profile", None, "A folder for a profile of each row, for xprof and Perfetto.")

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
    """What a combination of the flags asks for: a mode of a network, at one batch size or the largest."""

    mode: str
    config: ConfigDict
    auto: bool


def main() -> int:
    """Runs the program; returns its exit code."""
    with command_line.refusing_bad_input():
        check_flags()
        old = rows.read(_COMPARE.value) if _COMPARE.value else []
        result = rows.read(_ROWS.value) if _ROWS.value else []
        tasks = [] if _ROWS.value else list_tasks()
        check_outputs()
        runs = throughput_report.find_runs(_RUNS.value) if _RUNS.value else []

    jax.config.update("jax_enable_compilation_cache", False)  # compiling is measured, too
    with rows.Display(len(tasks), to_errors="-" in (_JSON.value, _CSV.value)) as display:
        if tasks:
            columns = choose_columns(tasks)
            display.say(rows.heading(columns))
            origin = throughput.describe_machine() | {"command": shlex.join(["python", *sys.argv])}
        for task in tasks:
            for row in measure(task, display.begin):
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                result.append(row | origin | {"measured_at": now})
                display.say(rows.line(columns, result[-1]))
                write(result)
            display.advance()
        compared = comparison.compare(result, old, _TOLERANCE.value)
        if _COMPARE.value:
            show_comparison(compared, comparison.differing_conditions(result, old), display.say)
        if _REPORT.value:
            with command_line.refusing_bad_input():
                pictures = throughput_report.draw(result, pathlib.Path(_REPORT.value), runs)
            display.say(f"pictures: {', '.join(map(str, pictures))}")
    write(result, finished=True)
    if _COMPARE.value and not compared:
        command_line.refuse(f"--compare={_COMPARE.value} has no row of these models, modes, sizes and dtypes")
    if has_failed(result):
        return 3
    return int(any(row["verdict"] in ("slower", "failed") for row in compared))


def check_flags() -> None:
    """Raises ValueError if a flag would have no effect."""
    measuring = (_MODELS, _MODE, _BATCH_SIZES, _IMAGE_SIZE, _DTYPE, _SECONDS, _PROFILE)
    useless = [
        (flag, f"with --rows={_ROWS.value}, which measures nothing; leave one out") for flag in measuring if _ROWS.value
    ]
    useless += [] if _REPORT.value else [(_RUNS, "without --report; give both")]
    useless += [] if _COMPARE.value else [(_TOLERANCE, "without --compare; give both")]
    for flag, condition in useless:
        if flag.present:
            raise ValueError(f"--{flag.name} has no effect {condition}")


def list_tasks() -> list[Task]:
    """Returns the combinations of the flags; raises ValueError if one cannot be."""
    names = list(dict.fromkeys(name for word in _MODELS.value or [_CONFIG.value.model] for name in match(word)))
    dtypes = _DTYPE.value or [_CONFIG.value.dtype]
    for flag, words, choices in (("mode", _MODE.value, MODES), ("dtype", dtypes, DTYPES)):
        for word in set(words) - set(choices):
            hint = nearest_name(word, list(choices)) or f"; choose {', '.join(choices)}"
            raise ValueError(f"--{flag}={word} is unknown{hint}")
    if not _MODE.value:
        raise ValueError(f"--mode is empty; choose {', '.join(MODES)}")
    image_sizes = [number("image_size", word) for word in _IMAGE_SIZE.value or []]
    batch_sizes = [None if word == "auto" else number("batch_sizes", word) for word in _BATCH_SIZES.value or []]
    tasks, inputs = [], set()
    for dtype, name, image_size, mode, batch_size in itertools.product(
        dtypes,
        names,
        image_sizes or [_CONFIG.value.image_size],
        _MODE.value,
        batch_sizes or [_CONFIG.value.batch_size],
    ):
        config, entry = _CONFIG.value.copy_and_resolve_references(), models.get_entry(name)
        config.update({"model": name, "dtype": dtype, "image_size": image_size or entry.image_size})
        config.batch_size = batch_size or config.batch_size
        images = config.image_size, config.channels or entry.channels, config.batch_size
        if mode == "input" and images in inputs:
            continue  # networks that see the same images have the same loader
        if mode == "input" or len(names) == 1:
            try:
                throughput.resolve(config, mode)
            except (ValueError, OSError):
                if len(names) == 1:  # of several networks, one that does not fit says so in its row
                    raise
            else:
                if mode == "input":
                    inputs.add(images)
        tasks.append(Task(mode, config, auto=batch_size is None and mode != "input"))
    return tasks


def match(word: str) -> list[str]:
    """Returns the networks that a word of --models stands for; raises ValueError if there is none."""
    return fnmatch.filter(models.REGISTRY, "*" if word == "all" else word) or [models.get_entry(word).name]


def number(flag: str, word: str) -> int:
    """Returns the number that a word of a flag is; raises ValueError if it is none above 0."""
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"--{flag}={word} is no number above 0; give one, or several with commas: 64,128")
    return int(word)


def check_outputs() -> None:
    """Raises OSError if an output could not be written once it is there."""
    for flag in (_JSON, _CSV):
        if flag.value not in (None, "-"):
            rows.check_file(flag.name, flag.value)
    for flag in (_REPORT, _PROFILE):
        if flag.value:
            pathlib.Path(flag.value).mkdir(parents=True, exist_ok=True)
            if not os.access(flag.value, os.W_OK):
                raise PermissionError(f"--{flag.name}={flag.value} cannot be written to; choose another folder")


def choose_columns(tasks: list[Task]) -> list[Column]:
    """Returns the table's columns, without those that stay empty in these modes or on this machine."""
    modes = {task.mode for task in tasks}
    shown = {
        "stage": "input" in modes,
        "images_per_second_per_core": "input" in modes,
        "input_wait_share": "real" in modes,
        "images_per_second_per_watt": nvidia_smi.driver_version() is not None,
        "mfu": roofline.data_sheet(jax.devices()[0].device_kind) is not None,
    }
    return [column for column in IDENTITY + MEASURED if shown.get(column.key, True)]


def measure(task: Task, begin: Callable[[str], None]) -> Iterator[Row]:
    """Yields the rows of a task; what cannot be measured says so in its row."""
    config = task.config

    def attempt(batch_size: int) -> list[Row]:
        config.batch_size = batch_size
        begin(f"{config.model} {task.mode} {batch_size}")
        identity = {"model": config.model, "mode": task.mode, "batch_size": batch_size}
        identity |= {"image_size": config.image_size, "dtype": config.dtype, "auto": task.auto}
        reads_dataset = task.mode in ("real", "input")
        identity["dataset"] = config.dataset if reads_dataset else "synthetic"
        identity["cache"] = config.cache if reads_dataset else ""
        measured = throughput.guarded(lambda: measure_once(config, task.mode))
        return [identity | row for row in measured]

    if task.auto:
        smallest = jax.device_count()
        # Each device's share of each micro-batch is whole virtual batches.
        multiple = smallest * config.accumulation_steps * max(config.bn_virtual_batch_size, 1)
        yield from throughput.largest_batch_size(lambda size: attempt(size)[0], config.batch_size, smallest, multiple)
    else:
        yield from attempt(config.batch_size)


def measure_once(config: ConfigDict, mode: str) -> list[Row]:
    """Measures a mode of a network, a row; of the mode input one for each stage."""
    config = throughput.resolve(config, mode)
    if mode == "input":
        from analysis.input_stages import measure_input  # Grain and OpenCV are for this alone

        return measure_input(config, seconds=_SECONDS.value)
    prepare_platform(config)
    ceilings = measure_ceilings(config.dtype, config.tf32)
    with contextlib.ExitStack() as stack:
        profile = None
        if _PROFILE.value:
            name = f"{config.model},{mode},{config.batch_size},{config.image_size},{config.dtype}"
            profile = pathlib.Path(_PROFILE.value, name)
        elif _REPORT.value:  # a picture shows the time by kind of layer
            profile = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return [throughput.measure(config, mode, ceilings, _SECONDS.value, profile)]


@functools.cache
def measure_ceilings(dtype: str, tf32: bool) -> roofline.Ceilings:
    """Measures what the devices can do at most, once for each way of multiplying."""
    return roofline.measure_ceilings(dtype, make_mesh())


def has_failed(result: list[Row]) -> bool:
    """Whether a row could not be measured; that the memory ends is what auto looks for, if only something fits."""
    same = ("model", "mode", "image_size", "dtype")
    fitting = {tuple(row[name] for name in same) for row in result if row["status"] == "ok"}
    return any(
        row["status"] == "error"
        or row["status"] == "out_of_memory"
        and not (row["auto"] and tuple(row[name] for name in same) in fitting)
        for row in result
    )


def show_comparison(compared: list[Row], differences: list[str], say: Callable[[str], None]) -> None:
    """Prints how the rows compare with those of --compare."""
    columns = [column for column in IDENTITY if any(row[column.key] for row in compared)] + COMPARED
    say(f"\nagainst {_COMPARE.value}, tolerance {_TOLERANCE.value:.0%}; the ratio lies between from and to by 95 %")
    for difference in differences:
        say(f"not the same conditions: {difference}")
    say(rows.heading(columns))
    for row in compared:
        say(rows.line(columns, row))


def write(result: list[Row], finished: bool = False) -> None:
    """Writes the rows so far to the files of --json and --csv; once finished, to standard output, too."""
    for flag, make_text in ((_JSON, rows.as_json), (_CSV, rows.as_csv)):
        if flag.value not in (None, "-"):
            write_atomically(pathlib.Path(flag.value), make_text(result))
        elif flag.value == "-" and finished:
            print(make_text(result), end="")


if __name__ == "__main__":
    command_line.run(main, default_config=BASE)
