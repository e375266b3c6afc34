"""Measures how fast networks run: python benchmark.py --models=resnet50,vgg* --mode=train,infer --batch_sizes=64,auto.

Each combination of model, data type, image size, mode and batch size gives a row: images/s, the times of the steps, of
compiling and of the first step, memory, and the share of this machine's peak, which the same run measures. With
--rows=FILE the program measures nothing, but compares or draws the rows of an earlier run.

Exit codes: 0 done; 1 slower than the rows of --compare by more than --tolerance; 2 invalid flags, config or data; 3 a
row could not be measured (its error is in the row); 130 and 143 after SIGINT and SIGTERM. The files of --json and --csv
are written after each row, so an interrupted run leaves its rows; standard output (-) gets them only at the end.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


import datetime
import os
import pathlib
import shlex
import sys

import jax
from absl import flags
from ml_collections import config_flags

from analysis import benchmark_tasks, comparison, rows, tables, throughput, throughput_report
from analysis.benchmark_tasks import DTYPES, MODES
from analysis.rows import Row
from analysis.tables import Display
from training import command_line
from training.output import results
from training.workdir import write_atomically

BASE = pathlib.Path(__file__).resolve().parent / "configs" / "base.py"

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/; default: base.py.")
_MODELS = flags.DEFINE_list("models", None, "Names, patterns such as vgg*, or all; default: the config's.")
_MODE = flags.DEFINE_list("mode", ["train"], f"Some of {', '.join(MODES)}; real: from the dataset; input: loader only.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", None, "Numbers; auto: the largest that fits; default: the config's.")
_IMAGE_SIZE = flags.DEFINE_list("image_size", None, "Pixels a side, one or several; default: the network's own.")
_DTYPE = flags.DEFINE_list("dtype", None, f"Of {', '.join(DTYPES)}, one or several; default: the config's.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Most time for a row's steps; 1 % precision ends it.", lower_bound=0)
_JSON = flags.DEFINE(
    command_line.PATH, "json", None, "A file for the rows; -: standard output, which then has nothing else."
)
_CSV = flags.DEFINE(
    command_line.PATH, "csv", None, "A file for the rows; -: standard output, which then has nothing else."
)
_ROWS = flags.DEFINE(
    command_line.PATH, "rows", None, "A file that --json wrote: its rows are read, and nothing is measured."
)
_COMPARE = flags.DEFINE(
    command_line.PATH, "compare", None, "A file that --json wrote: its rows are compared with the new ones."
)
_TOLERANCE = flags.DEFINE_float("tolerance", 0.05, "For --compare: share of images/s that may be lost.", 0, 1)
_REPORT = flags.DEFINE(command_line.PATH, "report", None, "A folder for pictures.")
_RUNS = flags.DEFINE(
    command_line.PATH, "runs", None, "For --report: finished runs whose accuracy is drawn too: 'runs/*'."
)
_PROFILE = flags.DEFINE(
    command_line.PATH, "profile", None, "A folder for a profile of each row, for xprof and Perfetto."
)


def main() -> int:
    """Runs the program; returns its exit code."""
    with command_line.refusing_bad_input():
        check_flags()
        old = rows.read(_COMPARE.value) if _COMPARE.value else []
        result = rows.read(_ROWS.value) if _ROWS.value else []
        tasks = [] if _ROWS.value else list_tasks()
        check_outputs()
        runs = throughput_report.find_runs(_RUNS.value) if _RUNS.value else []

    jax.config.update("jax_enable_compilation_cache", False)  # the time to compile is measured too
    with Display(len(tasks), to_errors="-" in (_JSON.value, _CSV.value)) as display:
        if tasks:
            columns = benchmark_tasks.choose_columns(tasks)
            display.say(tables.heading(columns))
            origin = throughput.describe_machine() | {"command": shlex.join(["python", *sys.argv])}
        for task in tasks:
            profile = pathlib.Path(_PROFILE.value) if _PROFILE.value else None
            for row in benchmark_tasks.measure(task, display.begin, _SECONDS.value, profile, bool(_REPORT.value)):
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                result.append(row | origin | {"measured_at": now})
                display.say(tables.line(columns, result[-1]))
                write(result)
            display.advance()
        compared = comparison.compare(result, old, _TOLERANCE.value)
        if _COMPARE.value:
            show_comparison(display, compared, comparison.differing_conditions(result, old))
        if _REPORT.value:
            with command_line.refusing_bad_input():
                pictures = throughput_report.draw(result, pathlib.Path(_REPORT.value), runs)
            display.say(f"pictures: {', '.join(map(str, pictures))}")
    write(result, finished=True)
    if _COMPARE.value and not compared:
        command_line.refuse(f"--compare={_COMPARE.value} has no row of these models, modes, sizes and dtypes")
    if benchmark_tasks.has_failed(result):
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
    typed = config_flags.get_override_values(flags.FLAGS["config"])
    for option in ("teacher", "train_sizes"):
        if option in typed:
            raise ValueError(
                f"{option} has no effect: the step is measured without a teacher, and with images of one size; "
                f"leave {option} out"
            )


def list_tasks() -> list[benchmark_tasks.Task]:
    """Returns the combinations of the flags; raises ValueError or OSError if one is invalid."""
    several = (flag.value or () for flag in (_MODELS, _MODE, _BATCH_SIZES, _IMAGE_SIZE, _DTYPE))
    return benchmark_tasks.list_tasks(_CONFIG.value, *several)


def check_outputs() -> None:
    """Raises OSError if an output could not be written later."""
    for flag in (_JSON, _CSV):
        if flag.value not in (None, "-"):
            rows.check_file(flag.name, flag.value)
    for flag in (_REPORT, _PROFILE):
        if flag.value:
            pathlib.Path(flag.value).mkdir(parents=True, exist_ok=True)
            if not os.access(flag.value, os.W_OK):
                raise PermissionError(f"--{flag.name}={flag.value} cannot be written to; choose another folder")


def show_comparison(display: Display, compared: list[Row], differences: list[str]) -> None:
    """Prints how the rows compare with those of --compare."""
    columns = benchmark_tasks.choose_compared_columns(compared)
    display.say(f"\nagainst {_COMPARE.value}, tolerance {_TOLERANCE.value:.0%}; from and to: the ratio's 95 % interval")
    for difference in differences:
        display.say(f"not the same conditions: {difference}")
    display.say(tables.heading(columns))
    for row in compared:
        display.say(tables.line(columns, row))


def write(result: list[Row], finished: bool = False) -> None:
    """Writes the rows so far to the files of --json and --csv; once finished, also to standard output."""
    for flag, make_text in ((_JSON, rows.as_json), (_CSV, rows.as_csv)):
        if flag.value not in (None, "-"):
            try:
                write_atomically(pathlib.Path(flag.value), make_text(result))
            except OSError as error:
                command_line.machine_failed(f"--{flag.name}={flag.value} cannot be written: {error}")
        elif flag.value == "-" and finished:
            with results():
                print(make_text(result), end="")


if __name__ == "__main__":
    command_line.run(main, default_config=BASE)
