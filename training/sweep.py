"""Trains a recipe with every combination of some options' values, each run in a process of its own."""

import itertools
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from configs import base
from configs._option import nearest_name, words_of
from training import command_line
from training.configuration import apply_typed, resolve_network
from training.metrics import format_seconds, read_rows
from training.workdir import check_options, default_workdir

ROOT = pathlib.Path(__file__).parent.parent
MOST_RUNS = 10_000
SECONDS_BETWEEN_LOOKS = 0.5


class Trial(NamedTuple):
    """A run of a sweep.

    Attributes:
      words: its command line, after the name of the interpreter.
      workdir: its folder.
      name: the options that differ, as in aux_weight=0.3,seed=1.
    """

    words: tuple[str, ...]
    workdir: pathlib.Path
    name: str

    @property
    def command(self) -> str:
        """The command, as a user types it."""
        return shlex.join(["python", *self.words])

    @property
    def log(self) -> pathlib.Path:
        """The file for the output of its process, beside its folder."""
        return self.workdir.with_name(f"{self.workdir.name}.log")

    @property
    def is_finished(self) -> bool:
        """Whether it needs no more training."""
        return (self.workdir / "summary.json").exists()


def list_trials(
    recipe: str,
    common: Mapping[str, Any],
    varied: Iterable[str],
    config: ConfigDict,
    folder: pathlib.Path | None = None,
) -> list[Trial]:
    """Returns the runs of a sweep, the last option varied fastest.

    An option that was typed for all runs is left out of each run in which it has no effect, if it has an effect in
    another run. For example, the run with aux_weight=0 has no auxiliary heads, so it does not get aux_heads.

    Args:
      recipe: path of the config file.
      common: the options typed for all runs, and their values.
      varied: texts OPTION=VALUES.
      config: the recipe with the common options in it, to check the values.
      folder: of the runs' folders; None: the one that train.py would choose.

    Raises:
      ValueError: if an option or a value is invalid, if two runs would have the same folder, or if a finished run in
        one of the folders had other options.
    """
    choices: dict[str, list[str]] = {}
    for text in varied:
        name, found, values = text.partition("=")
        if name not in base.OPTIONS:
            raise ValueError(f"--vary={text}: there is no option {name}{nearest_name(name, base.OPTIONS)}")
        if not found or name in choices or name in common:
            raise ValueError(f"--vary={text} is invalid; give each option once, as --vary={name}=VALUE,VALUE")
        if not base.OPTIONS[name].affects_result:
            raise ValueError(f"--vary={text}: {name} does not change the result, so all runs would be the same")
        choices[name] = split_values(name, values)
    if not choices:
        raise ValueError("--vary is missing; give options to vary, as in --vary=seed=0:3")
    trials = []
    if len(combinations := list(itertools.islice(itertools.product(*choices.values()), MOST_RUNS + 1))) > MOST_RUNS:
        raise ValueError(f"--vary gives more than {MOST_RUNS:,} runs; give fewer values")
    options, configs = [], []
    for texts in combinations:
        options.append({name: command_line.parse_option(name, text) for name, text in zip(choices, texts, strict=True)})
        configs.append(config.copy_and_resolve_references())
        configs[-1].update(options[-1])
    useless = {name for name in common if all(base.OPTIONS[name].unmet_need(each) for each in configs)}
    for texts, own, checked in zip(combinations, options, configs, strict=True):
        kept = {
            name: value
            for name, value in common.items()
            if name in useless or not base.OPTIONS[name].unmet_need(checked)
        }
        apply_typed(checked, {**kept, **own})  # refuses useless options
        typed = {name: words_of(value) for name, value in kept.items()} | dict(zip(choices, texts, strict=True))
        program = "train.py" if pathlib.Path.cwd() == ROOT else str(ROOT / "train.py")
        words = (program, f"--config={recipe}", *(f"--config.{name}={text}" for name, text in typed.items()))
        name = ",".join(f"{option}={text}" for option, text in zip(choices, texts, strict=True))
        workdir = default_workdir(recipe, {**kept, **own})
        if folder:
            workdir = folder / workdir.name
            words += (f"--workdir={workdir}",)
        trials.append(Trial(words, workdir, name))
        if trials[-1].is_finished:
            # The dataset would say how many classes it has, and how many steps the epochs have.
            unknown = [option for option in ("num_classes", "num_steps") if checked[option] is None]
            unknown += ["num_epochs"] if checked.num_steps is not None else []
            unknown += common.keys() - kept.keys()
            check_options(workdir, resolve_network(checked, {**kept, **own}), unknown)
    twice = {trial.name for trial in trials if sum(other.workdir == trial.workdir for other in trials) > 1}
    if twice:
        raise ValueError(f"--vary gives {min(twice)} more than once; give each value once")
    return trials


def split_values(name: str, text: str) -> list[str]:
    """Returns the single values of 0,0.1,(0.3,0.4),((0,128),(30,160)), or of a range of whole numbers such as 0:3."""
    option = base.OPTIONS[name]
    if option.type is int and not isinstance(option.default, tuple) and (ends := re.fullmatch(r"(\d+):(\d+)", text)):
        values = [str(number) for number in range(int(ends[1]), min(int(ends[2]), int(ends[1]) + MOST_RUNS + 1))]
    else:
        values = [value.strip() for value in re.findall(r"(?:\((?:[^()]|\([^()]*\))*\)|[^,(])+", text)]
    if not values:
        raise ValueError(f"--vary={name}={text} has no values; give some, as in --vary=seed=0:3")
    return values


def train_all(trials: list[Trial], jobs: int) -> tuple[list[Trial], int]:
    """Trains the runs that are not finished, and shows a line for each; returns the failed ones and the exit code.

    SIGINT and SIGTERM are passed on to the runs in progress, which save a checkpoint and stop; no other run starts.
    """
    waiting, failed = [trial for trial in trials if not trial.is_finished], []
    running: dict[Trial, subprocess.Popen] = {}
    signals: list[int] = []

    def stop(number: int, _: Any) -> None:
        signals.append(number)
        for process in running.values():
            process.send_signal(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _Display(trials) as display:
            while running or (waiting and not signals):
                while waiting and len(running) < jobs and not signals:
                    trial = waiting.pop(0)
                    running[trial] = _start(trial)
                    display.show(trial, "started")
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for trial, process in list(running.items()):
                    if process.poll() is None:
                        display.update(trial)
                        continue
                    del running[trial]
                    if trial.is_finished and process.returncode == 0:
                        display.show(trial, "finished")
                    elif signals:
                        display.show(trial, "stopped")
                    else:
                        failed.append(trial)
                        display.show(trial, f"failed: {_reason(trial, process.returncode)}")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return failed, 128 + signals[0] if signals else bool(failed)


def _start(trial: Trial) -> subprocess.Popen:
    """Starts a run in a process group of its own, so that a signal from the terminal reaches it once, through us."""
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(ROOT / trial.words[0]), *trial.words[1:]]
    if trial.words[-1] != f"--workdir={trial.workdir}":
        words.append(f"--workdir={trial.workdir}")  # by then the default could be an older run's folder
    with open(trial.log, "a") as log:
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, process_group=0)


def _reason(trial: Trial, code: int) -> str:
    """Returns the last line that a failed run printed."""
    lines = trial.log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else f"exit code {code}"


class _Display:
    """A line for each run: on a terminal with a live bar, otherwise one when it starts and one when it ends."""

    def __init__(self, trials: list[Trial]):
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=16)
        text = TextColumn("{task.fields[text]}", markup=False)
        self._progress = Progress(*columns, text, console=self._console, disable=not self._console.is_terminal)
        self._tasks = {trial: self._progress.add_task(trial.name, total=1, text="waiting") for trial in trials}
        for trial in trials:
            if trial.is_finished:
                self.show(trial, "finished before")

    def __enter__(self) -> "_Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, trial: Trial, text: str) -> None:
        """Shows what happened to a run."""
        done = 1 if text.startswith("finished") else None
        self._progress.update(self._tasks[trial], text=text, completed=done)
        self.update(trial, text)
        if not self._console.is_terminal:
            command_line.say(f"{trial.name}: {text}")

    def update(self, trial: Trial, text: str = "") -> None:
        """Shows how far a run is, read from its files."""
        if not self._console.is_terminal or not (trial.workdir / "config.json").exists():
            return
        rows = read_rows(trial.workdir)
        steps = json.loads((trial.workdir / "config.json").read_text())["config"]["num_steps"]
        if rows and steps:
            row = rows[-1]
            where = f"step {row['step']}/{steps} loss {row['loss']:.4f} top-1 {100 * row['accuracy_top1']:.2f} %"
            words = " ".join(filter(None, (text, where, format_seconds(row["seconds"]))))
            self._progress.update(self._tasks[trial], completed=row["step"] / steps, text=words)
