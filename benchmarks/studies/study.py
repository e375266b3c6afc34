"""What the studies share: runs of train.py one after the other, their results as JSON, and tables and figures of them.

A study lists its runs and says what to show of their rows; `main` does the rest. The same command goes on where it was
stopped: a run whose workdir holds a summary.json is finished, the others are trained on.
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

import jax  # noqa: E402
from absl import flags  # noqa: E402

from analysis import rows as row_files  # noqa: E402
from training import command_line  # noqa: E402
from training.metrics import is_evaluation, read_rows  # noqa: E402
from training.workdir import write_atomically  # noqa: E402

jax.config.update("jax_platforms", "cpu")  # of this process: the devices are for the runs

Row = dict[str, Any]
SIZES = ("full", "cpu", "reduced")

SIZE = flags.DEFINE_enum("size", "full", SIZES, "full: for a GPU; cpu: two cores, half an hour; reduced: seconds.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs live; default: runs/ + study + size.")
DATASET = flags.DEFINE_string("dataset", None, "As --config.dataset; default: the recipe's.")
_MINUTES = flags.DEFINE_float("minutes", None, "Stop with a checkpoint before so many are over.", lower_bound=0.1)
_RUNS = flags.DEFINE_list("runs", None, "Names of the runs to make; default: all.")
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds of the runs to make; default: all.")
_JSON = flags.DEFINE_string("json", None, "A file for the rows, instead of the docs; default: benchmarks/results/.")
REPORT = flags.DEFINE_bool("report", False, "Train nothing: make tables and figures from the rows.")


class Run(NamedTuple):
    """A run of train.py.

    Attributes:
      name: what the table calls it; runs of one name differ in their seed alone.
      recipe: of configs/, without its ending.
      overrides: of the recipe's options.
      seed: config.seed.
    """

    name: str
    recipe: str
    overrides: dict[str, Any]
    seed: int


class Files(NamedTuple):
    """Where a study of one size keeps what.

    Attributes:
      folder: of the workdirs.
      rows: the JSON.
      figure: a PNG.
      comment: between whose two the table stands in docs/results.md, or None.
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
    """Makes the runs that are not finished, and shows what there is; returns the exit code.

    Rows go to benchmarks/results/NAME_SIZE.json, the table into docs/results.md between its two comments and the figure
    to docs/NAME_SIZE.png; of the reduced size, and with --json, nothing but the rows and a figure beside them is
    written.

    Args:
      name: the study's, that of its program.
      list_runs: from the size, one of SIZES, to the runs in their order.
      make_table: from the rows of all finished runs to Markdown.
      draw: from these rows to a figure in a file.
    """
    files = files_of(f"{name}_{SIZE.value}")
    exit_code = 0
    if not REPORT.value:
        with command_line.refusing_bad_input():
            runs = _choose(list_runs(SIZE.value))
        exit_code = _make(runs, files)
        if exit_code == 2:  # its one line is the last
            return exit_code
    show(files, make_table, draw)
    return exit_code


def files_of(label: str) -> Files:
    """Returns where a study keeps what, by its name and size."""
    folder = pathlib.Path(_WORKDIR.value or f"runs/{label}")
    if _JSON.value is None and SIZE.value != "reduced":
        rows, figure = ROOT / "benchmarks" / "results" / f"{label}.json", ROOT / "docs" / f"{label}.png"
        return Files(folder, rows, figure, label)
    rows = pathlib.Path(_JSON.value or folder / f"{label}.json")
    return Files(folder, rows, rows.with_suffix(".png"), None)


def read(files: Files) -> list[Row]:
    """Returns the rows that there are."""
    return json.loads(files.rows.read_text()) if files.rows.exists() else []


def record(files: Files, row: Row) -> None:
    """Adds a row to those that there are, in the place of the one of the same name and seed."""
    row_files.record(files.rows, row, ("name", "seed"))


def show(
    files: Files,
    make_table: Callable[[list[Row]], str],
    draw: Callable[[list[Row], pathlib.Path], None] | None = None,
) -> None:
    """Prints the table of the rows and draws their figure; puts both into the docs, where they are to go there."""
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
        command_line.say("note: no figure, as matplotlib is not installed; --report draws it where it is")
    if files.comment:
        _put_into(ROOT / "docs" / "results.md", files.comment, text)


def by_name(rows: list[Row]) -> dict[str, list[Row]]:
    """Returns the rows of each name, those of all its seeds, in the order of their first."""
    return {name: [row for row in rows if row["name"] == name] for name in dict.fromkeys(row["name"] for row in rows)}


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Returns mean ± standard deviation (of a sample), or the one value there is."""
    values = list(values)
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def mean_over_steps(curve: dict[str, list[float]], name: str, begin: float, end: float) -> float:
    """Returns the mean of a metric between two shares of a run; an evaluation cuts a log short, which counts less."""
    steps = curve["step"]
    lengths = [step - before for before, step in zip([0, *steps], steps, strict=False)]
    logs = zip(steps, curve[name], lengths, strict=True)
    chosen = [(value, length) for step, value, length in logs if begin < step / steps[-1] <= end]
    return statistics.fmean(*zip(*chosen, strict=True))


def table(headings: list[str], lines: Iterable[list[Any]]) -> str:
    """Returns a table in Markdown."""
    cells = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure of matplotlib so that a reader meets the old one or the new one whole."""
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
    """Trains what is not finished and records each run when it is; returns the exit code."""
    seconds = 60 * _MINUTES.value if _MINUTES.value else math.inf
    end, to_save = time.monotonic() + seconds, min(30, seconds / 10)  # what a run needs to save and to end
    exit_code = 0
    for run in runs:
        workdir = files.folder / f"{run.name},seed={run.seed}"
        if (workdir / "summary.json").exists():
            if (run.name, run.seed) not in [(row["name"], row["seed"]) for row in read(files)]:
                record(files, _row(run, workdir))
            continue
        left = end - time.monotonic() - to_save
        # A run that compiles hears of its end only after its first step: none begins without time for that.
        code = _train(run, workdir, left) if left > 3 * to_save else None
        stopped = code is None or (code == 143 and time.monotonic() > end - to_save)
        if (workdir / "summary.json").exists():
            record(files, _row(run, workdir))
        elif stopped:
            command_line.say("stopped; the same command goes on")
            break
        elif code in (2, 130, 143, -signal.SIGINT, -signal.SIGTERM):
            return code if code > 0 else 128 - code
        else:
            print(f"{run.name}, seed {run.seed}, ended with exit code {code}", file=sys.stderr)
            exit_code = 3
    return exit_code


def _train(run: Run, workdir: pathlib.Path, seconds: float) -> int:
    """Runs train.py for so many seconds at most, then has it save and end; returns its exit code."""
    words = [*_words(run), f"--workdir={workdir.absolute()}"]
    # A cache of the study's own: what a network's first run takes includes the compilation, on every machine.
    words += [f"--config.compilation_cache_dir={workdir.parent.absolute() / 'compiled'}"]
    command_line.say(f"\n{run.name}, seed {run.seed}: {shlex.join(words)}")
    start = time.monotonic()
    # In a group of its own, so that a signal reaches it once: through us, not from the terminal besides. In our session
    # still: what ends everything that we left running must find it.
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
    """Returns the command of a run, without where it lives."""
    overrides = run.overrides | ({"dataset": DATASET.value} if DATASET.value else {}) | {"seed": run.seed}
    texts = {
        option: ",".join(map(str, value)) if isinstance(value, tuple) else value for option, value in overrides.items()
    }
    return [
        "python",
        "train.py",
        f"--config=configs/{run.recipe}.py",
        *(f"--config.{option}={text}" for option, text in texts.items()),
    ]


def _row(run: Run, workdir: pathlib.Path) -> Row:
    """Returns what is recorded of a finished run: accuracies are the last step's, never the best one's."""
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
        # Of the batches of the last tenth of the steps, on the way.
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
    """Puts a text between its two comments in a page, in the place of what was there."""
    begin, end = f"<!-- {label}: begin -->\n", f"<!-- {label}: end -->"
    before, found, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"{path} lacks the lines {begin.strip()} and {end}; put them where the table belongs")
    write_atomically(path, f"{before}{begin}{text}\n{end}{after}")
