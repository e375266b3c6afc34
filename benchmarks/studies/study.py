"""The common part of the studies: runs train.py several times, stores the results as JSON, makes tables and figures.

A study lists its runs and says how to show their rows; `main` does the rest. The same command continues a study that
was stopped: runs whose workdir has a summary.json are finished, the other runs are resumed or started.
"""

import json
import math
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import jax
from absl import flags

from analysis import rows as row_files
from analysis import tables
from configs._option import words_of
from training import command_line
from training.metrics import is_evaluation, read_rows
from training.workdir import write_atomically

jax.config.update("jax_platforms", "cpu")  # of this process only: the runs need the devices

Row = dict[str, Any]
SIZES = ("full", "cpu", "reduced")

SIZE = flags.DEFINE_enum("size", "full", SIZES, "full: for a GPU; cpu: two cores, half an hour; reduced: seconds.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the runs; default: runs/ + study + size.")
DATASET = flags.DEFINE_string("dataset", None, "Overrides --config.dataset; default: the recipe's.")
_MINUTES = flags.DEFINE_float("minutes", None, "Stop, with a checkpoint, after so many minutes.", lower_bound=0.1)
_RUNS = flags.DEFINE_list("runs", None, "Names of the runs to train; default: all.")
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds of the runs to train; default: all.")
_JSON = flags.DEFINE_string("json", None, "A file for the rows, instead of the docs; default: benchmarks/results/.")
REPORT = flags.DEFINE_bool("report", False, "Train nothing; only make tables and figures of the rows.")


class Run(NamedTuple):
    """A run of train.py.

    Attributes:
      name: its name in the table; runs of the same name differ only in the seed.
      recipe: of configs/, without the suffix.
      overrides: of the recipe's options.
      seed: config.seed.
    """

    name: str
    recipe: str
    overrides: dict[str, Any]
    seed: int


class Files(NamedTuple):
    """The files of a study of one size.

    Attributes:
      folder: of the workdirs.
      rows: the JSON file.
      figure: the PNG file.
      comment: the label of the two comments in docs/results.md that the table goes between; None for no table there.
    """

    folder: pathlib.Path
    rows: pathlib.Path
    figure: pathlib.Path
    comment: str | None


def main(
    name: str,
    list_runs: Callable[[str], list[Run]],
    make_table: Callable[[list[Row]], str],
    draw: Callable[[list[Row], pathlib.Path], None],
) -> int:
    """Trains the runs that are not finished, and shows all finished ones; returns the exit code.

    Rows go to benchmarks/results/NAME_SIZE.json, the table into docs/results.md between its two comments, and the
    figure to docs/NAME_SIZE.png. With the reduced size or --json only the rows and a figure beside them are written.

    Args:
      name: of the study and its program.
      list_runs: returns the runs of a size, one of SIZES, in order.
      make_table: returns a Markdown table of the rows of all finished runs.
      draw: draws these rows into a file.
    """
    files = files_of(f"{name}_{SIZE.value}")
    exit_code = 0
    if not REPORT.value:
        with command_line.refusing_bad_input():
            runs = _choose(list_runs(SIZE.value))
        exit_code = _make(runs, files)
        if exit_code == 2:  # the run has printed one line that says why
            return exit_code
    show(files, make_table, draw)
    return exit_code


def files_of(label: str) -> Files:
    """Returns the files of a study, whose label is its name and size."""
    folder = pathlib.Path(_WORKDIR.value or f"runs/{label}")
    if _JSON.value is None and SIZE.value != "reduced":
        rows, figure = ROOT / "benchmarks" / "results" / f"{label}.json", ROOT / "docs" / f"{label}.png"
        return Files(folder, rows, figure, label)
    rows = pathlib.Path(_JSON.value or folder / f"{label}.json")
    return Files(folder, rows, rows.with_suffix(".png"), None)


def read(files: Files) -> list[Row]:
    """Returns the rows of the finished runs."""
    return json.loads(files.rows.read_text()) if files.rows.exists() else []


def record(files: Files, row: Row) -> None:
    """Adds a row to the file; it replaces a row of the same name and seed."""
    row_files.record(files.rows, row, ("name", "seed"))


def show(
    files: Files,
    make_table: Callable[[list[Row]], str],
    draw: Callable[[list[Row], pathlib.Path], None] | None = None,
) -> None:
    """Prints the table of the rows and draws their figure, and puts both into the docs if the study belongs there."""
    rows = read(files)
    if not rows:
        return command_line.say(f"there are no rows in {files.rows} yet")
    text = make_table(rows)
    command_line.say(text)
    try:
        if draw:
            draw(rows, files.figure)
            text += f"\n\n![{files.figure.stem}]({files.figure.name})"
    except ImportError:
        command_line.say("note: no figure, as matplotlib is not installed; install it and run with --report")
    if files.comment:
        _put_into(ROOT / "docs" / "results.md", files.comment, text)


def by_name(rows: list[Row]) -> dict[str, list[Row]]:
    """Returns the rows of each name, with all seeds, in the order in which the names first appear."""
    return {name: [row for row in rows if row["name"] == name] for name in dict.fromkeys(row["name"] for row in rows)}


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Returns mean ± sample standard deviation, or a single value alone."""
    values = list(values)
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def mean_over_steps(curve: dict[str, list[float]], name: str, begin: float, end: float) -> float:
    """Returns the mean of a metric between two shares of a run, each log weighted by its number of steps."""
    steps = curve["step"]
    lengths = [step - before for before, step in zip([0, *steps], steps, strict=False)]
    logs = zip(steps, curve[name], lengths, strict=True)
    chosen = [(value, length) for step, value, length in logs if begin < step / steps[-1] <= end]
    return statistics.fmean(*zip(*chosen, strict=True))


def table(headings: list[str], lines: Iterable[list[Any]]) -> str:
    """Returns a table in Markdown."""
    return tables.markdown(headings, [[str(cell) for cell in line] for line in lines])


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure of matplotlib atomically: the file is always the whole old or the whole new figure."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110)
    temporary.rename(path)


def _choose(runs: list[Run]) -> list[Run]:
    for flag, words, known in (
        ("runs", _RUNS.value, [run.name for run in runs]),
        ("seeds", _SEEDS.value, [str(run.seed) for run in runs]),
    ):
        for word in words or ():
            if word not in known:
                raise ValueError(f"--{flag}={word} is not in the study; choose of {', '.join(dict.fromkeys(known))}")
    return [
        run
        for run in runs
        if (_RUNS.value is None or run.name in _RUNS.value) and (_SEEDS.value is None or str(run.seed) in _SEEDS.value)
    ]


def _make(runs: list[Run], files: Files) -> int:
    """Trains the runs that are not finished and records each when it ends; returns the exit code."""
    seconds = 60 * _MINUTES.value if _MINUTES.value else math.inf
    end, to_save = time.monotonic() + seconds, min(30, seconds / 10)  # the time that a run needs to save and to end
    exit_code = 0
    for run in runs:
        workdir = files.folder / f"{run.name},seed={run.seed}"
        if (workdir / "summary.json").exists():
            if (run.name, run.seed) not in [(row["name"], row["seed"]) for row in read(files)]:
                record(files, _row(run, workdir))
            continue
        left = end - time.monotonic() - to_save
        # A run handles a signal only after it compiled: none is started without time for that.
        code = _train(run, workdir, left) if left > 3 * to_save else None
        stopped = code is None or (code == 143 and time.monotonic() > end - to_save)
        if (workdir / "summary.json").exists():
            record(files, _row(run, workdir))
        elif stopped:
            command_line.say("stopped; run the same command to continue")
            break
        elif code in (2, 130, 143, -signal.SIGINT, -signal.SIGTERM):
            return code if code > 0 else 128 - code
        else:
            print(f"{run.name}, seed {run.seed}, ended with exit code {code}", file=sys.stderr)
            exit_code = 3
    else:
        if not exit_code:
            command_line.say("the study is complete")
    return exit_code


def _train(run: Run, workdir: pathlib.Path, seconds: float) -> int:
    """Runs train.py, and ends it with SIGTERM after so many seconds; returns its exit code."""
    words = [*_words(run), f"--workdir={workdir.absolute()}"]
    # The study has its own compilation cache, so that the time of a network's first run always includes compilation.
    words += [f"--config.compilation_cache_dir={workdir.parent.absolute() / 'compiled'}"]
    command_line.say(f"\n{run.name}, seed {run.seed}: {shlex.join(words)}")
    start = time.monotonic()
    # In its own process group, so that a signal from the terminal reaches it once, through us. In our session, so that
    # ending the session ends it too.
    process = subprocess.Popen([sys.executable, *words[1:]], cwd=ROOT, process_group=0)
    numbers = signal.SIGINT, signal.SIGTERM
    previous = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in numbers}
    try:
        code = process.wait(timeout=seconds if seconds < math.inf else None)
    except subprocess.TimeoutExpired:
        process.terminate()
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if workdir.exists():
        with open(workdir / "calls.jsonl", "a") as file:
            file.write(json.dumps({"seconds": time.monotonic() - start, "exit_code": code}) + "\n")
    return code


def _words(run: Run) -> list[str]:
    """Returns the command of a run without its workdir."""
    overrides = run.overrides | ({"dataset": DATASET.value} if DATASET.value else {}) | {"seed": run.seed}
    return [
        "python",
        "train.py",
        f"--config=configs/{run.recipe}.py",
        *(f"--config.{option}={words_of(value)}" for option, value in overrides.items()),
    ]


def _row(run: Run, workdir: pathlib.Path) -> Row:
    """Returns the row of a finished run; accuracies are those of the last step, not of the best one."""
    content, summary = (json.loads((workdir / name).read_text()) for name in ("config.json", "summary.json"))
    curves, calls = _curves(read_rows(workdir)), (workdir / "calls.jsonl").read_text().splitlines()
    return {
        "name": run.name,
        "seed": run.seed,
        "model": summary["model"],
        "dataset": summary["dataset"],
        "split": summary["split"],
        "examples": summary["examples"],
        "parameters": summary["parameters"],
        "steps": summary["step"],
        "epochs": summary["epoch"],
        "accuracy_top1": summary["accuracy_top1"],
        "loss": summary["loss"],
        # The mean over the training batches of the last tenth of the steps.
        "train_accuracy_top1": mean_over_steps(curves["train"], "accuracy_top1", 0.9, 1),
        "images_per_second": summary["images_per_second_median"],
        "seconds": sum(json.loads(line)["seconds"] for line in calls),  # of the whole processes
        "calls": len(calls),
        "command": shlex.join(_words(run)),
        "study_command": shlex.join(["python", *(word for word in sys.argv if not word.startswith("--workdir"))]),
        **{name: content[name] for name in ("hardware", "versions", "git_commit")},
        "curves": curves,
    }


def _curves(metrics: list[Row]) -> dict[str, dict[str, list[float]]]:
    """Returns the metrics of the training batches and of the evaluations as columns, `step` first."""
    curves = {}
    for kind, rows in (
        ("train", [row for row in metrics if not is_evaluation(row)]),
        ("evaluation", [row for row in metrics if is_evaluation(row)]),
    ):
        left_out = ("epoch", "split", "seconds", "images_per_second", "input_wait_fraction", "examples")
        names = [name for name in (rows[0] if rows else ()) if name not in left_out]
        curves[kind] = {
            name: [row[name] if name == "step" else float(f"{row[name]:.5g}") for row in rows] for name in names
        }
    return curves


def _put_into(path: pathlib.Path, label: str, text: str) -> None:
    """Replaces the text between the two comments with this label in a page."""
    begin, end = f"<!-- {label}: begin -->\n", f"<!-- {label}: end -->"
    before, found, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"{path} lacks the lines {begin.strip()} and {end}; put them where the table belongs")
    write_atomically(path, f"{before}{begin}{text}\n{end}{after}")
