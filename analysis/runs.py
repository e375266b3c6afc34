"""Runs beside each other: their options, metrics and accuracies, grouped by dataset and averaged over seeds."""

import dataclasses
import fcntl
import fnmatch
import functools
import glob
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import models
from configs import base
from configs._option import nearest_name, text_of
from training.metrics import Row, best_evaluation, is_evaluation, read_rows
from training.workdir import read_config

CONFIDENCE = 0.95
# Runs that differ in one of these options were measured on different images, so their accuracies are never averaged.
DATASET_OPTIONS = ("dataset", "train_split", "eval_split", "validation_share", "split_seed", "synthetic_examples")
NATURAL = ("image_size", "channels", "dropout_rate")  # options whose default is the network's own value


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of train.py, finished or not.

    Attributes:
      folder: its workdir.
      config: all options, resolved.
      rows: its metrics, in the order of the steps.
      is_finished: whether it reached its last step.
      is_running: whether a process trains it now.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    rows: list[Row]
    is_finished: bool
    is_running: bool

    @functools.cached_property
    def evaluations(self) -> list[Row]:
        """The rows of its evaluations."""
        return [row for row in self.rows if is_evaluation(row)]

    @property
    def state(self) -> str:
        """In words: finished, or how far it is."""
        if self.is_finished:
            return "finished"
        share = self.rows[-1]["step"] / self.config["num_steps"] if self.rows and self.config["num_steps"] else 0
        return f"{'running' if self.is_running else 'stopped'}, {100 * share:.0f} %"

    def reach(self, accuracy: float) -> Row | None:
        """Returns the first evaluation with at least this top-1 accuracy, a share; None if there is none."""
        return next((row for row in self.evaluations if row["accuracy_top1"] >= accuracy), None)


class Spread(NamedTuple):
    """A figure of several runs.

    Attributes:
      mean: over the runs.
      deviation: their sample standard deviation; None for a single run.
      number: of the runs.
    """

    mean: float
    deviation: float | None
    number: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Returns the spread of some values; None if there are none."""
        values = list(values)
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ only in their seed.

    Attributes:
      runs: in the order of their seeds.
      options: the options in which this setting differs from the other settings of its group, as text.
    """

    runs: list[Run]
    options: dict[str, str]

    @property
    def label(self) -> str:
        """Its name: the options, or the folder where no option differs."""
        return ", ".join(f"{name}={text}" for name, text in self.options.items()) or str(self.runs[0].folder)

    @property
    def counted(self) -> list[Run]:
        """The runs whose figures count: the finished ones; if none is finished, those with an evaluation."""
        return [run for run in self.runs if run.is_finished] or [run for run in self.runs if run.evaluations]

    @property
    def state(self) -> str:
        """In words: how many runs it has, and how far they are."""
        done, count = sum(run.is_finished for run in self.runs), len(self.runs)
        return self.runs[0].state if count == 1 else f"{done} of {count} finished"

    def last(self, name: str) -> Spread | None:
        """Returns a metric of the last evaluations."""
        return Spread.of(run.evaluations[-1][name] for run in self.counted if run.evaluations)

    @property
    def best(self) -> Spread | None:
        """The top-1 accuracy of the best evaluations."""
        best = [best_evaluation(run.rows) for run in self.counted]
        return Spread.of(row["accuracy_top1"] for row in best if row)

    @property
    def seconds(self) -> Spread | None:
        """The time of the whole runs."""
        return Spread.of(run.rows[-1]["seconds"] for run in self.counted if run.rows)

    def reach(self, accuracy: float, name: str) -> tuple[Spread | None, int]:
        """Returns the step or the seconds (name) at which runs first reached an accuracy, and how many never did."""
        rows = [run.reach(accuracy) for run in self.counted]
        return Spread.of(row[name] for row in rows if row), rows.count(None)


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings that were evaluated on the same images.

    Attributes:
      title: the dataset and the split, in words.
      options: the names of the options in which the settings differ.
      settings: of the runs.
    """

    title: str
    options: list[str]
    settings: list[Setting]


def find_runs(patterns: Iterable[str]) -> list[Run]:
    """Returns the runs in folders, in the folders below them, and in those that a glob matches.

    Raises:
      FileNotFoundError: if a pattern names no run.
      ValueError: if the config.json of a run is damaged.
    """
    folders: dict[pathlib.Path, None] = {}
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True)) or [pattern]
        found = [path.parent for match in matches for path in sorted(pathlib.Path(match).rglob("config.json"))]
        if not found:
            raise FileNotFoundError(f"{pattern} names no run; give folders that train.py made, or folders of these")
        folders |= dict.fromkeys(found)
    return [read_run(folder) for folder in folders]


def read_run(folder: pathlib.Path) -> Run:
    """Returns the run of a workdir; it may be running now."""
    config = read_config(folder).to_dict()
    return Run(folder, config, read_rows(folder), (folder / "summary.json").exists(), _is_locked(folder))


def filter_runs(runs: list[Run], filters: Iterable[str]) -> list[Run]:
    """Returns the runs that match all filters, each OPTION=VALUE with wildcards in the value.

    Raises:
      ValueError: if an option does not exist, or no run matches.
    """
    chosen = runs
    for text in filters:
        name, _, pattern = text.partition("=")
        if name not in base.OPTIONS or not pattern:
            raise ValueError(f"--filter={text} is invalid{nearest_name(name, base.OPTIONS)}; give OPTION=VALUE")
        chosen = [run for run in chosen if fnmatch.fnmatchcase(show_value(name, run.config[name]), pattern)]
        if not chosen:
            there = sorted({show_value(name, run.config[name]) for run in runs})
            raise ValueError(f"--filter={text} matches no run; {name} is {', '.join(there)}")
    return chosen


def group_runs(runs: list[Run]) -> list[Group]:
    """Returns the runs grouped by dataset and split, and within a group by all options but the seed."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.config[name] for name in DATASET_OPTIONS), []).append(run)
    return [_make_group(members) for members in groups.values()]


def show_value(name: str, value: Any) -> str:
    """Returns the value of an option as text; equal weights of several heads are shown once."""
    if name == "aux_weight":
        return text_of(value[:1] if len(set(value)) == 1 else value or (0,))
    return text_of(value)


def difference(setting: Setting, baseline: Setting) -> tuple[float, float, str] | None:
    """Returns a setting's top-1 accuracy minus the baseline's, the half width of its 95 % interval, and of what kind.

    With several seeds in both settings the interval is Welch's, over the seeds. Otherwise it is that of two independent
    samples of evaluation images, which says nothing about other seeds.
    """
    ours, theirs = setting.last("accuracy_top1"), baseline.last("accuracy_top1")
    if ours is None or theirs is None:
        return None
    if ours.deviation is not None and theirs.deviation is not None:
        return *welch_interval(ours, theirs), "seeds"
    images = [int(one.counted[0].evaluations[-1].get("examples", 0)) for one in (setting, baseline)]
    if not all(images):
        return ours.mean - theirs.mean, math.nan, "images"
    variance = sum(one.mean * (1 - one.mean) / count for one, count in zip((ours, theirs), images, strict=True))
    half = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(variance)
    return ours.mean - theirs.mean, half, "images"


def welch_interval(ours: Spread, theirs: Spread) -> tuple[float, float]:
    """Returns the difference of two means and half its 95 % interval, Welch's; NaN where a spread is of one run."""
    if ours.deviation is None or theirs.deviation is None:
        return ours.mean - theirs.mean, math.nan
    from scipy.special import stdtrit  # scipy comes with JAX

    parts = [ours.deviation**2 / ours.number, theirs.deviation**2 / theirs.number]
    if not sum(parts):
        return ours.mean - theirs.mean, 0.0
    counts = [spread.number - 1 for spread in (ours, theirs)]
    freedom = sum(parts) ** 2 / sum(part**2 / count for part, count in zip(parts, counts, strict=True))
    return ours.mean - theirs.mean, float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(sum(parts))


def find_setting(groups: Sequence[Group], folder: str) -> Setting:
    """Returns the setting that has the run of a folder; raises ValueError if there is none."""
    path = pathlib.Path(folder).resolve()
    for group in groups:
        for setting in group.settings:
            if path in (run.folder.resolve() for run in setting.runs):
                return setting
    raise ValueError(f"--baseline={folder} is none of the runs that are compared; give the folder of one of them")


def _make_group(runs: list[Run]) -> Group:
    names = _differing(runs)
    settings: dict[str, list[Run]] = {}
    affecting = [name for name, option in base.OPTIONS.items() if option.affects_result or name in names]
    affecting.remove("seed")
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        settings.setdefault(json.dumps([run.config[name] for name in affecting]), []).append(run)
    made = [
        Setting(members, {name: show_value(name, members[0].config[name]) for name in names})
        for members in settings.values()
    ]
    return Group(_title(runs), names, made)


def _differing(runs: list[Run]) -> list[str]:
    """Returns the options in which runs differ, without the seed and without mere consequences of other options."""
    configs = [run.config for run in runs]

    def differ(name: str) -> bool:
        return len({text_of(config[name]) for config in configs}) > 1

    names = [name for name in base.OPTIONS if name != "seed" and differ(name)]
    derived = set()
    if {"num_steps", "num_epochs"} <= set(names):  # one was typed, the other follows from it
        texts = {name: sum(len(text_of(config[name])) for config in configs) for name in ("num_steps", "num_epochs")}
        derived.add(max(texts, key=lambda name: texts[name]))
    if "batch_size" in names:
        derived.add("num_steps")
        if all(config["eval_batch_size"] == config["batch_size"] for config in configs):
            derived.add("eval_batch_size")
    networks = [(config, models.REGISTRY.get(config["model"])) for config in configs]
    if "model" in names:
        for name in NATURAL:
            if all(entry and config[name] == getattr(entry, name) for config, entry in networks):
                derived.add(name)
    if "aux_weight" in names and len({config["aux_heads"] for config in configs} - {()}) <= 1:
        derived.add("aux_heads")
    return [name for name in names if name not in derived]


def _title(runs: list[Run]) -> str:
    config = runs[0].config
    rows = [row for run in runs for row in run.evaluations]
    images = f"{rows[0]['examples']:,} " if rows and "examples" in rows[0] else ""
    split = rows[0]["split"] if rows else config["eval_split"] or "evaluation"
    defaults = ("train_split", "validation_share", "split_seed")
    others = [f"{name}={config[name]}" for name in defaults if config[name] != base.OPTIONS[name].default]
    return ", ".join([config["dataset"], f"{images}{split} images", *others])


def _is_locked(folder: pathlib.Path) -> bool:
    """Whether a process holds the lock of a workdir."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:  # there is no lock file, or the file system has no locks
        return False
