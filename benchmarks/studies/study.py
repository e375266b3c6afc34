"""The common part of the studies: runs train.py several times, stores the results as JSON, makes tables and figures.

A study lists its runs and says how to show their rows; `main` does the rest. The same command continues a study that
was stopped: runs whose workdir has a summary.json are finished, the other runs are resumed or started.

The rows hold no paths of a machine. Only rows of the same hardware, steps and options are averaged.
"""

import importlib
import json
import math
import pathlib
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import jax
from absl import flags
from ml_collections import ConfigDict

import models
from analysis import rows as row_files
from analysis import tables
from analysis.runs import Spread, welch_interval
from benchmarks.commands import own_command, portable
from benchmarks.page import put_table
from configs import base
from configs._option import text_of, words_of
from models.torch_files import write_safetensors
from models.torch_names import to_torch
from training import command_line, configuration
from training.metrics import is_evaluation, read_rows
from training.workdir import write_atomically

jax.config.update("jax_platforms", "cpu")  # of this process only: the runs need the devices

Row = dict[str, Any]
SIZES = ("full", "cpu", "reduced")
CLAIMS = ROOT / "benchmarks" / "results" / "claims.json"  # of all studies: the table that opens docs/results.md

SIZE = flags.DEFINE_enum(
    "size", "full", SIZES, "full: for a GPU; cpu: for two cores, minutes to hours; reduced: seconds."
)
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
      program: what trains it, with train.py's flags.
    """

    name: str
    recipe: str
    overrides: dict[str, Any]
    seed: int
    program: str = "train.py"


class Claim(NamedTuple):
    """A line of the table that opens docs/results.md.

    Attributes:
      paper: first author, year and section; the table is sorted by the year, then by the author.
      claim: what the paper says, in a sentence.
      run: what was trained here.
      result: of these runs.
      holds: whether the result agrees with the claim, as `verdict` says it.
    """

    paper: str
    claim: str
    run: str
    result: str
    holds: str


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
    draw: Callable[[list[Row], pathlib.Path], None] | None = None,
    judge: Callable[[list[Row]], list[Claim]] | None = None,
    score: Callable[[Files], int] | None = None,
) -> int:
    """Trains the runs that are not finished, and shows all finished ones; returns the exit code.

    Rows go to benchmarks/results/NAME_SIZE.json, the table into docs/results.md between its two comments, and the
    figure to docs/NAME_SIZE.png. With the reduced size or --json only the rows and a figure beside them are written.
    The study's claims go into the table that opens docs/results.md.

    Args:
      name: of the study and its program.
      list_runs: returns the runs of a size, one of SIZES, in order.
      make_table: returns a Markdown table of the rows of all finished runs.
      draw: draws these rows into a file; None for no figure.
      judge: returns what these rows say about the papers' claims.
      score: records more rows, of the finished runs; returns the exit code.
    """
    files = files_of(f"{name}_{SIZE.value}")
    exit_code = 0
    if not REPORT.value:
        with command_line.refusing_bad_input():
            runs = _choose(list_runs(SIZE.value))
        exit_code = _make(runs, files)
        if exit_code == 2:  # the run has printed one line that says why
            return exit_code
        exit_code = (score(files) if score and not exit_code else 0) or exit_code
    show(files, make_table, draw, judge)
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
    """Adds a row to the file; it replaces a row of the same name, seed, dataset and hardware."""
    row_files.record(files.rows, row, [key for key in ("name", "seed", "dataset", "hardware") if key in row])


def show(
    files: Files,
    make_table: Callable[[list[Row]], str],
    draw: Callable[[list[Row], pathlib.Path], None] | None = None,
    judge: Callable[[list[Row]], list[Claim]] | None = None,
) -> None:
    """Prints the table of the rows and draws their figure, and puts both into the docs if the study belongs there.

    The claims that `judge` returns replace those that the study made before.
    """
    rows = read(files)
    if not rows:
        return command_line.say(f"there are no rows in {files.rows} yet")
    text = make_table(rows)
    command_line.say(text)
    text += _measured_on(rows)
    try:
        if draw:
            draw(rows, files.figure)
            text += f"\n\n![{files.figure.stem}]({files.figure.name})"
    except ImportError:
        command_line.say("note: no figure, as matplotlib is not installed; install it and run with --report")
    if files.comment:
        put_table(ROOT / "docs" / "results.md", files.comment, text)
        if judge:
            _put_claims(files.comment, judge(rows))


def finished(files: Files, name: str) -> dict[int, pathlib.Path]:
    """Returns the workdirs of the finished runs of a name by their seeds."""
    seeds = sorted(row["seed"] for row in read(files) if row["name"] == name)
    workdirs = {seed: files.folder / f"{name},seed={seed}" for seed in seeds}
    return {seed: workdir for seed, workdir in workdirs.items() if (workdir / "summary.json").exists()}


def of_one_machine(rows: list[Row]) -> list[Row]:
    """Returns the rows of the hardware that has most of them."""
    machines = [row["hardware"] for row in rows]
    most = max(machines, key=machines.count)
    return [row for row in rows if row["hardware"] == most]


def by_name(rows: list[Row]) -> dict[str, list[Row]]:
    """Returns groups of rows that differ in nothing but the seed, in the order in which their names first appear.

    Rows of one name may come from several machines, or have different options or datasets. They are then different
    groups, and what differs stands behind the name in parentheses.
    """
    names = dict.fromkeys(row["name"] for row in rows)
    groups = [_alike([row for row in rows if row["name"] == name]) for name in names]
    return {_label(group, namesakes): group for namesakes in groups for group in namesakes}


def comparable(rows: list[Row], names: Sequence[str]) -> list[list[Row]] | None:
    """Returns for each name the largest group of rows that differ in the seed only, all of one machine.

    Of the machines that have all names, it is that with most rows; None if there is none.
    """
    rows = [row for row in rows if row["name"] in names]
    machines, found = [], []
    for row in rows:
        if row["hardware"] not in machines:
            machines.append(row["hardware"])
    for machine in machines:
        own = [[row for row in rows if row["name"] == name and row["hardware"] == machine] for name in names]
        if all(own):
            found.append([max(_alike(group), key=len) for group in own])
    return max(found, key=lambda groups: sum(map(len, groups)), default=None)


def conditions(row: Row) -> dict[str, Any]:
    """Returns what must be equal in rows that are averaged: the hardware, the steps and all options but the seed."""
    config = row["config"] if "config" in row else config_of(row["command"])  # older rows have only the command
    about = {"hardware": row.get("hardware"), "steps": row.get("steps")}  # a run can end before its last step
    return about | {name: value for name, value in config.items() if name != "seed"}


def config_of(command: str) -> dict[str, Any]:
    """Returns all options that affect the result of a command of train.py, as JSON has them; {} for other commands.

    The values are those of the recipe and the command; null stands for the network's or the dataset's own value.
    """
    config = _recipe_of(command)
    return _decisive(config) if config else {}


def hardware_name(hardware: dict[str, Any] | None) -> str:
    """Returns the hardware of a row in words, such as 2 CPU cores, AMD EPYC, AVX-512."""
    if not hardware:
        return "unknown hardware"
    kinds = hardware["devices"]
    devices = " and ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    if hardware["platform"] == "cpu":
        devices = f"{hardware['cpu_cores']} CPU cores"
    return ", ".join([devices, *filter(None, [hardware.get("processor")])])  # older rows do not know the processor


def untrained_weights(folder: pathlib.Path) -> pathlib.Path:
    """Writes ResNet-20 before any training as PyTorch's file, for reduced studies, and returns the file."""
    entry, model = models.get_entry("resnet20"), models.create_model("resnet20", abstract=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "resnet20-untrained.safetensors"
    write_safetensors(path, to_torch(entry, model, models.initial_values(model, seed=0)))
    return path


def convert_weights(weights: pathlib.Path, workdir: pathlib.Path, overrides: dict[str, Any]) -> int:
    """Makes a workdir of a CIFAR-10 ResNet's weights with convert.py, if there is none; returns the exit code."""
    if any((workdir / "checkpoints").glob("[0-9]*")):
        return 0
    words = [f"--config.{option}={words_of(value)}" for option, value in overrides.items()]
    words = ["convert.py", "--config=configs/cifar10_resnet20.py", f"--weights={weights.absolute()}", *words]
    return subprocess.run([sys.executable, *words, f"--workdir={workdir.absolute()}"], cwd=ROOT).returncode


def top1(group: list[Row]) -> float:
    """Returns the mean top-1 accuracy in percent."""
    return 100 * statistics.fmean(row["accuracy_top1"] for row in group)


def half_interval(group: list[Row]) -> float:
    """Returns half the 95 % interval of top1: Student's over the seeds; of one seed the binomial one of its images."""
    if len(group) > 1:
        return _student([100 * row["accuracy_top1"] for row in group])[1]
    mean = top1(group) / 100
    return 100 * 1.96 * math.sqrt(mean * (1 - mean) / group[0]["examples"])


def difference(ours: Iterable[float], theirs: Iterable[float]) -> tuple[float, float]:
    """Returns the mean of our seeds minus that of theirs, and half its 95 % interval (Welch's); NaN for one seed."""
    spreads = [Spread.of(values) for values in (ours, theirs)]
    return welch_interval(*spreads)


def paired_difference(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Returns the mean of ours minus theirs over pairs, and half its 95 % interval (Student's t); NaN for one pair."""
    return _student([ours - theirs for ours, theirs in pairs])


def difference_in_words(more: float, half: float, digits: int) -> str:
    """Returns the end of a result's text, such as "; difference +5.9 ± 7.7"; empty for one seed."""
    return "" if math.isnan(half) else f"; difference {more:+.{digits}f} ± {half:.{digits}f}"


def compare(
    paper: str,
    claim: str,
    run: str,
    ours: list[float],
    theirs: list[float],
    unit: str,
    digits: int = 2,
    sign: int = 1,
    pairs: list[tuple[float, float]] | None = None,
) -> Claim:
    """Returns whether one group of runs is better than another by some measure.

    Args:
      paper: of the claim.
      claim: that ours are better, in a sentence.
      run: what was run, in words; the number of seeds is added.
      ours: the measure of each of our seeds.
      theirs: that of the other side's seeds.
      unit: of the measure, in words.
      digits: after the decimal point.
      sign: 1 if more is better, -1 if less is.
      pairs: ours and theirs of the same networks, if the difference is to be taken in pairs.
    """
    more, half = paired_difference(pairs) if pairs else difference(ours, theirs)
    result = f"{spread(ours, digits)} and {spread(theirs, digits)} {unit}{difference_in_words(more, half, digits)}"
    return Claim(paper, claim, f"{run}; {seeds_of(ours, theirs)}", result, verdict(sign * more, half))


def seeds_of(*groups: list[Any]) -> str:
    """Returns in words how many seeds some groups have, such as 5 seeds, or 5 and 15 seeds."""
    counts = list(dict.fromkeys(map(len, groups)))
    return f"{' and '.join(map(str, counts))} seed{'s' * (counts != [1])}"


def verdict(gain: float, half: float) -> str:
    """Returns in words whether a claim holds that a gain is positive, from half the gain's 95 % interval."""
    if gain == 0 or abs(gain) <= half:
        return "not shown"
    if math.isnan(half):
        return f"{'yes' if gain > 0 else 'no'}, too few seeds"
    return "yes" if gain > 0 else "no, the opposite"


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Returns mean ± sample standard deviation, or a single value alone."""
    values = list(values)
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def median_over_steps(curve: dict[str, list[float]], name: str, begin: float, end: float) -> float:
    """Returns the median of a metric's logs between two shares of a run: a few large ones do not decide it."""
    steps = curve["step"]
    return statistics.median(
        value for step, value in zip(steps, curve[name], strict=True) if begin < step / steps[-1] <= end
    )


def mean_over_steps(curve: dict[str, list[float]], name: str, begin: float, end: float) -> float:
    """Returns the mean of a metric between two shares of a run, each log weighted by its number of steps."""
    steps = curve["step"]
    lengths = [step - before for before, step in zip([0, *steps], steps, strict=False)]
    logs = zip(steps, curve[name], lengths, strict=True)
    chosen = [(value, length) for step, value, length in logs if begin < step / steps[-1] <= end]
    return statistics.fmean(*zip(*chosen, strict=True))


def draw_seeds(axes: Any, curves: list[tuple[list[float], list[float]]], **style: Any) -> None:
    """Draws a line of the mean over the seeds, and a band from the lowest to the highest seed.

    Args:
      axes: of matplotlib.
      curves: for each seed the places on the x axis and the values there. A run that was stopped and resumed has a
        further row at the step where it stopped; only places that all seeds have are drawn.
      style: of the line.
    """
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    places = sorted(set.intersection(*map(set, values)))
    columns = [[value[place] for value in values] for place in places]
    (line,) = axes.plot(places, [statistics.fmean(column) for column in columns], **style)
    if len(values) > 1:
        lowest, highest = list(map(min, columns)), list(map(max, columns))
        axes.fill_between(places, lowest, highest, color=line.get_color(), alpha=0.2, linewidth=0)


def about_bands(rows: list[Row]) -> str:
    """Returns the end of a figure's title, which says what its bands are; empty if each group has a single seed."""
    seeds = max(len(group) for group in by_name(rows).values())
    return f"; mean of up to {seeds} seeds, bands from the lowest to the highest" if seeds > 1 else ""


def table(headings: list[str], lines: Iterable[list[Any]]) -> str:
    """Returns a table in Markdown."""
    return tables.markdown(headings, [[str(cell) for cell in line] for line in lines])


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure of matplotlib atomically: the file is always the whole old or the whole new figure."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110)
    temporary.rename(path)


def _student(values: list[float]) -> tuple[float, float]:
    """Returns the mean of some values and half its 95 % interval by Student's t; NaN for a single value."""
    if len(values) == 1:
        return values[0], math.nan
    from scipy.special import stdtrit  # scipy comes with JAX

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


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
            with command_line.refusing_bad_input():
                _check_config(run, workdir)
            row = _row(run, workdir)
            same = [old for old in read(files) if (old["name"], old["seed"]) == (run.name, run.seed)]
            if conditions(row) not in map(conditions, same):
                record(files, row)
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
            call = {"seconds": time.monotonic() - start, "exit_code": code, "config": config_of(shlex.join(words))}
            file.write(json.dumps(call) + "\n")
    return code


def _check_config(run: Run, workdir: pathlib.Path) -> None:
    """Raises ValueError if the finished run of a workdir had other options; train.py itself checks unfinished ones."""
    command, calls = shlex.join(_words(run)), _calls(workdir)
    ours, theirs = config_of(command), calls[-1].get("config") if calls else None
    if theirs is None:  # no study started train.py, or an early version did; train.py stores resolved options
        theirs = json.loads((workdir / "config.json").read_text())["config"]
        resolved = _decisive(configuration.resolve_network(_recipe_of(command), typed=None))
        # The dataset gives what is still null, and of steps and epochs the one that the other decides.
        given = {name for name, value in resolved.items() if value is None}
        given |= {"num_epochs"} if resolved["num_steps"] else {"num_steps"}
        ours = {name: value for name, value in resolved.items() if name not in given}
    differing = [f"{name}={theirs.get(name)!r}, not {ours[name]!r}" for name in ours if theirs.get(name) != ours[name]]
    if differing:
        raise ValueError(f"{workdir} has a run with {'; '.join(differing)}; give another --workdir")


def _recipe_of(command: str) -> ConfigDict | None:
    """Returns the recipe of a command of train.py with the typed options in it; None for other commands."""
    words = shlex.split(command)
    recipe = next((word for word in words if word.startswith("--config=configs/")), None)
    if recipe is None:
        return None
    config = importlib.import_module(f"configs.{pathlib.Path(recipe).stem}").get_config()
    typed = (word.removeprefix("--config.").split("=", 1) for word in words if word.startswith("--config."))
    config.update({name: command_line.parse_option(name, text) for name, text in typed})
    return config


def _decisive(config: ConfigDict) -> dict[str, Any]:
    """Returns the options that affect the result, as JSON has them."""
    options = json.loads(config.to_json())
    return {name: options[name] for name, option in base.OPTIONS.items() if option.affects_result}


def _alike(rows: list[Row]) -> list[list[Row]]:
    """Returns groups of rows of one name with equal conditions."""
    groups: list[list[Row]] = []
    for row in rows:
        same = next((group for group in groups if conditions(group[0]) == conditions(row)), None)
        same.append(row) if same else groups.append([row])
    return groups


def _words(run: Run) -> list[str]:
    """Returns the command of a run without its workdir."""
    overrides = run.overrides | ({"dataset": DATASET.value} if DATASET.value else {}) | {"seed": run.seed}
    return [
        "python",
        run.program,
        f"--config=configs/{run.recipe}.py",
        *(f"--config.{option}={words_of(value)}" for option, value in overrides.items()),
    ]


def _row(run: Run, workdir: pathlib.Path) -> Row:
    """Returns the row of a finished run; accuracies are those of the last step, not of the best one."""
    content, summary = (json.loads((workdir / name).read_text()) for name in ("config.json", "summary.json"))
    curves, calls = _curves(read_rows(workdir)), _calls(workdir)
    return {
        "name": run.name,
        "seed": run.seed,
        "model": summary["model"],
        "dataset": portable(summary["dataset"]),
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
        "seconds": sum(call["seconds"] for call in calls) or summary["seconds"],  # of the whole processes, if known
        "calls": len(calls),
        "command": shlex.join(map(portable, _words(run))),
        "study_command": own_command(),
        "config": config_of(shlex.join(map(portable, _words(run)))),
        **{name: content[name] for name in ("hardware", "versions", "git_commit")},
        "curves": curves,
    }


def _calls(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns seconds, exit code and options of each call of train.py in a workdir."""
    file = workdir / "calls.jsonl"  # missing if the study was killed while train.py went on
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _label(group: list[Row], namesakes: list[list[Row]]) -> str:
    """Returns the name of a group of rows, with what distinguishes it from other groups of the same name."""
    ours, others = conditions(group[0]), [conditions(other[0]) for other in namesakes]
    differing = [name for name in ours if any(other.get(name) != ours[name] for other in others)]
    parts = [hardware_name(ours[name]) if name == "hardware" else f"{name}={text_of(ours[name])}" for name in differing]
    return group[0]["name"] + (f" ({', '.join(parts)})" if parts else "")


def _measured_on(rows: list[Row]) -> str:
    """Returns a paragraph with the hardware and the versions of the rows; empty if they have none."""
    versions = [row["versions"] for row in rows if "hardware" in row]
    machines = [hardware_name(row["hardware"]) for row in rows if "hardware" in row]
    texts = [
        f"{machine}, JAX {each['jax']}, Python {each['python']}"
        for machine, each in zip(machines, versions, strict=True)
    ]
    return f"\n\nMeasured on {'; '.join(dict.fromkeys(texts))}." if texts else ""


def _put_claims(study: str, claims: list[Claim]) -> None:
    """Stores a study's claims instead of its earlier ones, and makes the table of all studies' claims anew."""
    stored = json.loads(CLAIMS.read_text()) if CLAIMS.exists() else []
    stored = [claim for claim in stored if claim["study"] != study]
    stored += [{"study": study} | claim._asdict() for claim in claims]
    stored.sort(key=lambda claim: (re.search(r"\d{4}", claim["paper"])[0], claim["paper"], claim["study"]))
    write_atomically(CLAIMS, "[\n" + ",\n".join(map(json.dumps, stored)) + "\n]\n")
    headings = ["paper", "claim", "what was run", "result", "does it hold?"]
    lines = ([claim[name] for name in Claim._fields] for claim in stored)
    put_table(ROOT / "docs" / "results.md", "claims", table(headings, lines))


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
