"""Degradation and its cure: python benchmarks/studies/degradation.py [--size=full|cpu|reduced] [--minutes=9].

Plain networks of 20 and 56 layers on CIFAR-10, and the same with shortcuts; then deeper ones. He, Zhang, Ren, Sun 2015,
Deep residual learning for image recognition, section 4.2, Table 6 and Fig. 6: the deeper plain network is worse in
training and in test error, the deeper residual one better in both.
"""

import functools
import pathlib

import study
from matplotlib.figure import Figure

from training import command_line

# Test error in %, Table 6; of ResNet-110 the mean of five runs. The plain networks are only in Fig. 6.
PUBLISHED = {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97, "resnet110": 6.61}
FIRST, THEN = ("plain20", "plain56", "resnet20", "resnet56"), ("resnet32", "resnet44", "resnet110")
SEEDS = {"full": 3, "cpu": 1, "reduced": 1}


def list_runs(size: str) -> list[study.Run]:
    """Returns one seed of each of the first four networks, their other seeds, then the other networks."""
    names = {"full": (FIRST, THEN), "cpu": (FIRST,), "reduced": (("plain20", "resnet20"),)}[size]
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
        # As the paper has it. The figure needs many evaluations, and no checkpoint of each.
        options = {"log_every_steps": 400, "steps_per_dispatch": 400, "evaluate_every_epochs": 2.048}
        options |= {"keep_best": False}
    elif size == "cpu":
        options = {"num_steps": 200, "step_steps": (100, 150), "log_every_steps": 10, "evaluate_every_epochs": 0.256}
        options |= {"keep_best": False}
    else:
        options = {"num_steps": 8, "step_steps": (4, 6), "log_every_steps": 2, "evaluate_every_epochs": 1}
        options |= {"dataset": "synthetic", "num_classes": 10, "synthetic_examples": 32, "image_size": 8}
        options |= {"batch_size": 8, "eval_batch_size": 16}
    return {"model": name} | options


def make_table(rows: list[study.Row]) -> str:
    """Returns training and test errors, with their spread over the seeds."""
    headings = ["network", "seeds", "iterations", "training error, %", "test error, %", "published, %", "seconds a run"]
    return study.table(
        headings,
        (
            [
                name,
                len(group),
                f"{group[0]['steps']:,}",
                study.spread(100 * (1 - row["train_accuracy_top1"]) for row in group),
                study.spread(100 * (1 - row["accuracy_top1"]) for row in group),
                f"{PUBLISHED[name]:.2f}" if name in PUBLISHED else "",
                study.spread((row["seconds"] for row in group), 0),
            ]
            for name, group in study.by_name(rows).items()
        ),
    )


def draw(rows: list[study.Row], path: pathlib.Path) -> None:
    """Draws Fig. 6: training error (dashed) and test error (bold) over the iterations, of the first seed."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("plain", "resnet"), strict=True):
        names = [name for name in study.by_name(rows) if name.startswith(kind)]
        for color, name in enumerate(sorted(names, key=lambda name: int(name.removeprefix(kind)))):
            curves = study.by_name(rows)[name][0]["curves"]
            for split, style in (("train", {"linestyle": "--", "linewidth": 1}), ("evaluation", {"linewidth": 2})):
                errors = [100 * (1 - accuracy) for accuracy in curves[split]["accuracy_top1"]]
                style |= {"marker": "o"} if len(errors) == 1 else {}
                label = name if split == "evaluation" else None
                axes.plot(curves[split]["step"], errors, color=f"C{color}", label=label, **style)
        axes.set_xlabel("iterations")
        axes.grid(alpha=0.3)
        if names:
            axes.legend(title="bold: test error\ndashed: training error", fontsize="small", title_fontsize="small")
    figure.axes[0].set_ylabel("error (%)")
    study.save_figure(figure, path)


if __name__ == "__main__":
    command_line.run(functools.partial(study.main, "degradation", list_runs, make_table, draw))
