"""Degradation and its cure: python benchmarks/studies/degradation.py [--size=full|cpu|reduced] [--minutes=9].

The study trains plain networks of 20 and 56 layers on CIFAR-10, the same with shortcuts, and then deeper ones. He,
Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 4.2, Table 6 and Fig. 6: the deeper plain
network has a higher training and test error, the deeper residual network a lower one.

The full size follows the paper's schedule of 64,000 iterations on a GPU; with --short it has 12,000, a warm-up and a
cosine.

With --torch_python=PATH --binaries=FOLDER, ResNet-20's seconds are compared with those of plain_pytorch_resnet20.py.
"""

import bisect
import json
import math
import pathlib
import re
import shutil
import statistics
import subprocess

import study
from absl import flags

from benchmarks.commands import own_command
from training import command_line
from training.environment import describe_environment

# Test error in %, Table 6; of ResNet-110 the mean of five runs. The plain networks are only in Fig. 6.
PUBLISHED = {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97, "resnet110": 6.61}
NEAR = 0.3  # points of test error: a mean that is no further from the published error agrees with it
FIRST, THEN = ("plain20", "plain56", "resnet20", "resnet56"), ("resnet32", "resnet44", "resnet110")
SEEDS = {"full": 3, "short": 2, "cpu": 2, "reduced": 1}

_SHORT = flags.DEFINE_bool("short", False, "At full size: 12,000 iterations, with a warm-up and a cosine.")
_TORCH_PYTHON = flags.DEFINE_string("torch_python", None, "A Python that has torch and torchvision, to run the script.")
_BINARIES = flags.DEFINE_string("binaries", None, "For the script: the folder of CIFAR-10's official binary files.")
_TORCH_STEPS = flags.DEFINE_integer("torch_steps", 64_000, "For the script: less is extrapolated.", lower_bound=1)


def main() -> int:
    """Runs the program; returns its exit code."""
    if _SHORT.value and study.SIZE.value != "full":
        with command_line.refusing_bad_input():
            raise ValueError(f"--short has the full size, but --size is {study.SIZE.value}; leave one of the two out")
    if _TORCH_PYTHON.value:
        return run_pytorch()
    return study.main("degradation_short" if _SHORT.value else "degradation", list_runs, make_table, draw, judge)


def list_runs(size: str) -> list[study.Run]:
    """Returns one seed of each of the first four networks, their other seeds, then the other networks."""
    size = "short" if _SHORT.value else size
    names = {"full": (FIRST, THEN), "short": (FIRST,), "cpu": (FIRST,), "reduced": (("plain20", "resnet20"),)}[size]
    return [
        study.Run(name, recipe(name), overrides(name, size), seed)
        for group in names
        for seed in range(SEEDS[size])
        for name in group
    ]


def recipe(name: str) -> str:
    """Returns the recipe of a network: ResNet-110 has a warm-up."""
    return "cifar10_resnet110" if name == "resnet110" else "cifar10_resnet20"


def overrides(name: str, size: str) -> dict:
    """Returns what a size changes."""
    if size == "full":
        # As in the paper. The figure needs many evaluations, but no checkpoint for each.
        options = {"log_every_steps": 400, "steps_per_dispatch": 400, "evaluate_every_epochs": 2.048}
        options |= {"keep_best": False}
    elif size == "short":
        # The schedule of the size for a CPU, over more iterations and with the images in their own size.
        options = {"num_steps": 12_000, "learning_rate": 0.05, "schedule": "cosine", "warmup_epochs": 3.072}
        options |= {"log_every_steps": 100, "steps_per_dispatch": 100, "evaluate_every_epochs": 3.072}
        options |= {"keep_best": False}
    elif size == "cpu":
        # The claim is about depth, so the images may be small: 16 pixels need a quarter of the time. An eighth of the
        # iterations must do. In the run of full size, at the paper's constant rate of 0.1, ResNet-56 has the higher
        # training error until iteration 16,000 or so, and the lower one from then on. So all four networks begin at
        # half that rate, after a warm-up of a tenth of the run, and the rate falls from then on.
        options = {"image_size": 16, "crop_padding": 2, "num_steps": 8000, "learning_rate": 0.05}
        options |= {"schedule": "cosine", "warmup_epochs": 2.048}
        options |= {"log_every_steps": 50, "evaluate_every_epochs": 1.28, "keep_best": False}
    else:
        options = {"num_steps": 8, "step_steps": (4, 6), "log_every_steps": 2, "evaluate_every_epochs": 1}
        options |= {"dataset": "synthetic", "num_classes": 10, "synthetic_examples": 32, "image_size": 8}
        options |= {"batch_size": 8, "eval_batch_size": 16}
    return {"model": name} | options


def make_table(rows: list[study.Row]) -> str:
    """Returns training and test errors, with their spread over the seeds.

    If some runs were stopped early, further columns compare all of them after the same number of iterations.
    """
    headings = ["network", "seeds", "iterations", "training error, %", "test error, %", "published, %", "seconds a run"]
    common = min(row["steps"] for row in rows)
    shortened = any(row["steps"] > common for row in rows)
    headings += [f"{split} error after {common:,}, %" for split in ("training", "test") if shortened]
    lines = []
    for name, group in by_depth(rows).items():
        steps = group[0]["steps"]
        model = group[0]["model"]
        published = f"{PUBLISHED[model]:.2f}" if model in PUBLISHED and steps == 64_000 else ""
        seconds = study.spread((row["seconds"] for row in group), 0)
        errors, early = ([study.spread(error) for error in errors_after(group, at)] for at in (steps, common))
        lines.append([name, len(group), f"{steps:,}", *errors, published, seconds, *(early if shortened else [])])
    return study.table(headings, lines)


def errors_after(rows: list[study.Row], steps: int) -> tuple[list[float], list[float]]:
    """Returns the rows' training errors and test errors in %, after so many iterations of each run.

    The training error is the mean over the batches of the last tenth of these iterations; the test error is that of the
    last evaluation among them.
    """
    errors: tuple[list[float], list[float]] = ([], [])
    for row in rows:
        train, test = (
            {name: values[: bisect.bisect_right(curve["step"], steps)] for name, values in curve.items()}
            for curve in (row["curves"]["train"], row["curves"]["evaluation"])
        )
        errors[0].append(100 * (1 - study.mean_over_steps(train, "accuracy_top1", 0.9, 1)))
        errors[1].append(100 * (1 - test["accuracy_top1"][-1]))
    return errors


def by_depth(rows: list[study.Row], kind: str = "") -> dict[str, list[study.Row]]:
    """Returns the groups of study.by_name, plain networks first, by their depth; of one kind of network or of all."""

    def kind_and_depth(group: list[study.Row]) -> tuple[str, int]:
        found = re.fullmatch(r"([a-z]+)(\d+)", group[0]["model"])
        return found[1], int(found[2])

    groups = study.by_name([row for row in rows if row["model"].startswith(kind)])
    return dict(sorted(groups.items(), key=lambda item: kind_and_depth(item[1])))


def draw(rows: list[study.Row], path: pathlib.Path) -> None:
    """Draws Fig. 6: training error (dashed) and test error (bold) over the iterations, with bands over the seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(f"Degradation and its cure on {images_of(rows[0])}{study.about_bands(rows) or '; one seed'}")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("plain", "resnet"), strict=True):
        for color, (name, group) in enumerate(by_depth(rows, kind).items()):
            for split, style in (("train", {"linestyle": "--", "linewidth": 1}), ("evaluation", {"linewidth": 2})):
                curves = [row["curves"][split] for row in group]
                style |= {"marker": "o"} if len(curves[0]["step"]) == 1 else {}
                label = name if split == "evaluation" else None
                points = [
                    (curve["step"], [100 * (1 - accuracy) for accuracy in curve["accuracy_top1"]]) for curve in curves
                ]
                study.draw_seeds(axes, points, color=f"C{color}", label=label, **style)
        axes.set_title({"plain": "plain networks", "resnet": "residual networks"}[kind] + finding(rows, kind))
        axes.set_xlabel("iterations")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(title="bold: test error\ndashed: training error", fontsize="small", title_fontsize="small")
    figure.axes[0].set_ylabel("error (%)")
    figure.axes[0].set_yscale("log")  # the paper's axis, from 0 to 20 %, has no place for plain-56
    figure.axes[0].yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 3, 5, 10, 20, 30, 50, 80]))
    figure.axes[0].yaxis.set_minor_locator(NullLocator())
    figure.axes[0].yaxis.set_major_formatter("{x:g}")
    study.save_figure(figure, path)


def images_of(row: study.Row) -> str:
    """Returns a run's dataset in words, with the size of the images if it is not the dataset's own."""
    dataset = "CIFAR-10" if "cifar" in row["dataset"] else row["dataset"]
    size = study.conditions(row).get("image_size")
    return f"{dataset} at {size} pixels" if size else dataset


def finding(rows: list[study.Row], kind: str) -> str:
    """Returns what 56 layers change after as many iterations as all runs have, or "" if a network is missing."""
    steps, rows = min(row["steps"] for row in rows), study.of_one_machine(rows)
    pair = [[row for row in rows if row["model"] == f"{kind}{depth}"] for depth in (20, 56)]
    if not all(pair):
        return ""
    shallow, deep = (statistics.fmean(errors_after(group, steps)[0]) for group in pair)
    verb = "raise" if deep > shallow else "lower"
    return f": after {steps:,} iterations 56 layers\n{verb} the training error from {shallow:.1f} to {deep:.1f} %"


def judge(rows: list[study.Row]) -> list[study.Claim]:
    """Returns whether depth hurts plain networks and helps residual ones, and whether the errors are as published."""
    claims = []
    for kind, sign, claim in (
        ("plain", 1, "A deeper plain network has a higher training error and a higher test error."),
        ("resnet", -1, "A deeper residual network has a lower training error and a lower test error."),
    ):
        pair = study.comparable(rows, [f"{kind}20", f"{kind}56"])
        if not pair:
            continue
        results, verdicts = [], []
        steps = min(row["steps"] for group in pair for row in group)
        for split, shallow, deep in zip(
            ("training", "test"), *(errors_after(group, steps) for group in pair), strict=True
        ):
            more = statistics.fmean(deep) - statistics.fmean(shallow)
            results.append(f"{split} error {study.spread(shallow)} and {study.spread(deep)} %; difference {more:+.2f}")
            apart = range_of_seeds(shallow, deep)
            verdict = study.verdict(sign * more, apart) + ", beyond the seeds' range" * (abs(more) > apart)
            verdicts.append(f"{verdict} ({split} error)")
        row, names = pair[0][0], {"plain": "plain-20 and plain-56", "resnet": "ResNet-20 and ResNet-56"}[kind]
        run = f"{names}, {steps:,} iterations on {images_of(row)}, {study.hardware_name(row['hardware'])}"
        run += f"; {study.seeds_of(*pair)}"
        claims.append(study.Claim("He 2015, section 4.2", claim, run, "; ".join(results), "; ".join(verdicts)))
    for group in study.by_name(rows).values():
        row, published = group[0], PUBLISHED.get(group[0]["model"])
        if published and row["steps"] == 64_000:
            network = row["model"].replace("resnet", "ResNet-")
            claim = f"{network} has a test error of {published} %."
            run = f"64,000 iterations on CIFAR-10, {study.hardware_name(row['hardware'])}; {study.seeds_of(group)}"
            found = [100 * (1 - row["accuracy_top1"]) for row in group]
            more = statistics.fmean(found) - published
            holds = "yes" if abs(more) <= NEAR else "no, it is lower" if more < 0 else "no, it is higher"
            result = f"test error {study.spread(found)} %; {more:+.2f} points"
            claims.append(study.Claim("He 2015, Table 6", claim, run, result, holds))
    return claims


def range_of_seeds(*groups: list[float]) -> float:
    """Returns how far the seeds of a group lie apart, at most; NaN if a group has one seed.

    `judge` compares a difference with it: with two seeds Welch's interval is wider than most differences.
    """
    return math.nan if min(map(len, groups)) == 1 else max(max(group) - min(group) for group in groups)


def run_pytorch() -> int:
    """Measures the plain PyTorch script and sets it beside our ResNet-20s on a GPU; returns the exit code."""
    files = study.files_of("plain_pytorch_resnet20")
    with command_line.refusing_bad_input():
        if not shutil.which(_TORCH_PYTHON.value):
            raise FileNotFoundError(f"--torch_python={_TORCH_PYTHON.value} is no program; give a Python that has torch")
        if not _BINARIES.value or not (pathlib.Path(_BINARIES.value) / "test_batch.bin").exists():
            raise FileNotFoundError(f"--binaries={_BINARIES.value} has no test_batch.bin; give CIFAR-10's binary files")
    script = pathlib.Path(__file__).parent / "plain_pytorch_resnet20.py"
    words = [_TORCH_PYTHON.value, "-W", "ignore", script, _BINARIES.value, _TORCH_STEPS.value]
    result = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, text=True)
    if result.returncode:
        return result.returncode
    row = {"name": "PyTorch", "seed": None} | json.loads(result.stdout.splitlines()[-1])
    study.record(files, row | {"command": own_command(), "git_commit": describe_environment()["git_commit"]})
    study.show(files, make_pytorch_table)
    return 0


def make_pytorch_table(rows: list[study.Row]) -> str:
    """Returns the seconds of a run of ResNet-20, ours from the rows of the full size."""
    ours = [row for row in study.read(study.files_of("degradation_full")) if row["name"] == "resnet20"]
    lines = [
        [
            f"ours, {study.hardware_name(row['hardware'])}, seed {row['seed']}",
            f"{row['steps']:,}",
            f"{row['seconds']:.0f}",
            f"{row['images_per_second']:,.0f}",
        ]
        for row in ours
    ]
    for row in rows:
        seconds = f"{row['seconds_of_64000_steps']:,.0f}" + (" (extrapolated)" if row["steps"] < 64_000 else "")
        name = f"{row['name']} {row['versions']['torch']}, {row['device']}, {row['workers']} workers"
        lines.append([name, f"{row['steps']:,}", seconds, f"{row['images_per_second']:,.0f}"])
    return study.table(["program", "iterations run", "seconds of 64,000", "images/s while training"], lines)


if __name__ == "__main__":
    command_line.run(main)
