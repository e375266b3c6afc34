"""Imagenette at 128 pixels from random weights: python benchmarks/studies/imagenette.py [--size=full|cpu|reduced].

The study compares 5, 20 and 80 epochs with fastai's leaderboard (github.com/fastai/imagenette), under its rules:
validation at the training size, no tricks at test time, the accuracy of the last epoch.
"""

import functools
import pathlib

import study

from training import command_line

LEADERBOARD = {5: 87.43, 20: 91.57, 80: 93.55}  # top-1 in %, 128 px; the means of five runs, of 80 epochs one run
SEEDS = {5: 3, 20: 3, 80: 1}


def list_runs(size: str) -> list[study.Run]:
    """Returns one seed of each length, then the other seeds."""
    if size == "full":
        options = {"keep_best": False}  # the leaderboard counts the last epoch
        return [
            study.Run(f"resnet18_{epochs}_epochs", f"imagenette_{epochs}", options, seed)
            for seed in range(max(SEEDS.values()))
            for epochs in SEEDS
            if seed < SEEDS[epochs]
        ]
    if size == "cpu":
        options = {"image_size": 64, "eval_resize": 72, "eval_batch_size": 157, "keep_best": False}
        return [study.Run("resnet18_64_pixels", "imagenette_resnet18", options, 0)]
    options = {"model": "resnet20", "image_size": 8, "eval_resize": 0, "num_classes": 10, "dataset": "synthetic"}
    options |= {"synthetic_examples": 32, "num_steps": 8, "warmup_epochs": 1, "log_every_steps": 2, "batch_size": 8}
    return [study.Run("resnet20", "imagenette_resnet18", options, 0)]


def make_table(rows: list[study.Row]) -> str:
    """Returns accuracies, with their spread over the seeds, beside the leaderboard's."""
    headings = ["run", "epochs", "seeds", "top-1, %", "fastai's leaderboard, %", "training top-1, %", "seconds a run"]
    return study.table(
        headings,
        (
            [
                name,
                f"{group[0]['epochs']:.3g}",
                len(group),
                study.spread(100 * row["accuracy_top1"] for row in group),
                LEADERBOARD.get(round(group[0]["epochs"]), "") if group[0]["name"].endswith("epochs") else "",
                study.spread(100 * row["train_accuracy_top1"] for row in group),
                study.spread((row["seconds"] for row in group), 0),
            ]
            for name, group in study.by_name(rows).items()
        ),
    )


def draw(rows: list[study.Row], path: pathlib.Path) -> None:
    """Draws loss and top-1 over the epochs: training batches (dashed), validation (bold), bands over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(f"ResNet-18 learns Imagenette{study.about_bands(rows)}")
    panels = ("loss", "loss (nats)", 1), ("accuracy_top1", "top-1 accuracy (%)", 100)
    for axes, (metric, label, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        for color, (name, group) in enumerate(study.by_name(rows).items()):
            epochs_per_step = group[0]["epochs"] / group[0]["steps"]
            for split, style in (("train", {"linestyle": "--", "linewidth": 1}), ("evaluation", {"linewidth": 2})):
                curves = [row["curves"][split] for row in group]
                points = [
                    ([step * epochs_per_step for step in curve["step"]], [scale * value for value in curve[metric]])
                    for curve in curves
                ]
                style |= {"color": f"C{color}", "label": name if split == "evaluation" else None}
                study.draw_seeds(axes, points, **style)
        axes.set_title(label.partition(" (")[0])
        axes.set_xlabel("epochs")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[1].legend(title="bold: validation\ndashed: training", fontsize="small", title_fontsize="small")
    study.save_figure(figure, path)


if __name__ == "__main__":
    command_line.run(functools.partial(study.main, "imagenette", list_runs, make_table, draw))
