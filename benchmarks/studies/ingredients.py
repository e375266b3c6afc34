"""What each ingredient of today's recipes is worth in a short run: python benchmarks/studies/ingredients.py.

ResNet-18 on Imagenette from random weights, 5 and 20 epochs. Each run is the plain recipe below with one ingredient
more. The last run has a ViT-Ti in place of ResNet-18, with AdamW and a cosine.
--size=cpu: 64 pixels on two cores, about an hour for all runs of 5 epochs and four hours for those of 20, for each of
three seeds; --runs and --seeds choose some. --size=full: 128 pixels on a GPU.
"""

import functools
import pathlib

import study

from training import command_line

RECIPE = "imagenette_resnet18"
# The plain recipe: a rate in three steps, the L2 penalty on all parameters, random crops and flips, and nothing else.
PLAIN = {"schedule": "step", "label_smoothing": 0.0, "decay_norm_and_bias": True, "keep_best": False}
INGREDIENTS = {
    "plain": {},
    "cosine": {"schedule": "cosine"},
    "label_smoothing": {"label_smoothing": 0.1},
    "no_decay_on_norms": {"decay_norm_and_bias": False},
    "average_of_weights": {"ema_decay": 0.998},
    "mixup": {"mixup_alpha": 0.2},
    "cutmix": {"cutmix_alpha": 1.0},
    "random_erasing": {"random_erasing": 0.25},
    "trivial_augment": {"auto_augment": "trivial"},
    "stochastic_depth": {"stochastic_depth_rate": 0.1},
    "repeated_augmentation": {"repeated_augmentation": 3},
    "binary_cross_entropy": {"loss": "binary_cross_entropy", "learning_rate": 0.5},  # the mean over ten classes
    "size_by_epoch": {"train_sizes": ((0.0, 0.625), (0.4, 0.8125), (0.8, 1.0))},  # shares of the epochs and the pixels
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05},
    "lamb": {"optimizer": "lamb", "learning_rate": 5e-3, "weight_decay": 0.02},
    "vit_tiny": {  # what the inductive bias of convolutions is worth: another network under the same budget
        "model": "vit_tiny_patch16_224",
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
    },
}
EPOCHS, SEEDS, STEPS = (5, 20), range(3), (0.6, 0.85)


def list_runs(size: str) -> list[study.Run]:
    """Returns all ingredients with one seed and few epochs first, then the other seeds, then the longer runs."""
    if size == "reduced":
        options = {"model": "resnet20", "num_classes": 10, "dataset": "synthetic", "synthetic_examples": 32}
        options |= {"log_every_steps": 2, "batch_size": 8, "warmup_epochs": 1, "eval_resize": 0}
        names = ("plain", "size_by_epoch", "repeated_augmentation")
        return [study.Run(name, RECIPE, overrides(name, 2, 16) | options, 0) for name in names]
    pixels = 128 if size == "full" else 64
    on_device = {"dtype": "bfloat16", "eval_batch_size": 512} if size == "full" else {"eval_batch_size": 157}
    return [
        study.Run(f"{name}_{epochs}", RECIPE, overrides(name, epochs, pixels) | on_device, seed)
        for epochs in EPOCHS
        for seed in SEEDS
        for name in INGREDIENTS
    ]


def overrides(name: str, epochs: int, pixels: int) -> dict:
    """Returns what a run changes in the recipe."""
    options = {"num_epochs": epochs, "image_size": pixels, "eval_resize": round(1.125 * pixels)} | PLAIN
    options |= {"evaluate_every_epochs": epochs} | INGREDIENTS[name]
    if options["schedule"] == "step":
        options["step_epochs"] = tuple(share * epochs for share in STEPS)
    if sizes := options.get("train_sizes"):
        options["train_sizes"] = tuple((begin * epochs, 4 * round(share * pixels / 4)) for begin, share in sizes)
    return options


def make_table(rows: list[study.Row]) -> str:
    """Returns accuracies, their spread over the seeds and their difference from the plain recipe's."""
    groups = study.by_name(rows)
    headings = ["ingredient", "epochs", "seeds", "top-1, %", "more than plain", "training top-1, %", "seconds a run"]
    lines = []
    for name, group in groups.items():
        epochs = round(group[0]["epochs"])
        alike = [row for row in rows if all(row[key] == group[0][key] for key in ("hardware", "dataset"))]
        plain = [row for row in alike if row["name"] in (f"plain_{epochs}", "plain")]
        accuracies, own = [100 * row["accuracy_top1"] for row in group], {row["seed"] for row in group}
        same = [100 * row["accuracy_top1"] for row in plain if row["seed"] in own]
        more = sum(accuracies) / len(accuracies) - sum(same) / len(same) if len(same) == len(group) else None
        lines.append(
            [
                name.replace(f"_{epochs}", "", 1),
                epochs,
                len(group),
                study.spread(accuracies),
                f"{more:+.2f}" if more is not None and group != plain else "",
                study.spread(100 * row["train_accuracy_top1"] for row in group),
                study.spread((row["seconds"] for row in group), 0),
            ]
        )
    return study.table(headings, lines)


def draw(rows: list[study.Row], path: pathlib.Path) -> None:
    """Draws the accuracy of each ingredient, a panel for each number of epochs, with the plain recipe's as a line."""
    from matplotlib.figure import Figure

    lengths = sorted({round(row["epochs"]) for row in rows})
    figure = Figure(figsize=(5.5 * len(lengths), 5), layout="constrained")
    for axes, epochs in zip(figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True):
        groups = study.by_name([row for row in rows if round(row["epochs"]) == epochs])
        axes.set_title(f"ResNet-18 on Imagenette, {epochs} epochs: one ingredient more")
        for place, (name, group) in enumerate(groups.items()):
            values = [100 * row["accuracy_top1"] for row in group]
            axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.5)
            axes.plot([sum(values) / len(values)], [place], "|", color="C1", markersize=18, markeredgewidth=3)
            if name.startswith("plain"):
                axes.axvline(sum(values) / len(values), color="C1", linewidth=1, linestyle="--")
        axes.set_yticks(range(len(groups)), [name.removesuffix(f"_{epochs}").replace("_", " ") for name in groups])
        axes.invert_yaxis()
        axes.set_xlabel(f"top-1 accuracy after {epochs} epochs (%): seeds and their mean")
        axes.grid(alpha=0.3)
    study.save_figure(figure, path)


if __name__ == "__main__":
    command_line.run(functools.partial(study.main, "ingredients", list_runs, make_table, draw))
