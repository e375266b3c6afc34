"""What each ingredient of today's recipes is worth in a short run: python benchmarks/studies/ingredients.py.

ResNet-18 on Imagenette from random weights, 5 and 20 epochs. Each run is the plain recipe below with one ingredient
more. The last two runs have AdamW and a cosine, one with ResNet-18 and one with ViT-Ti in its place.
The images have 64 pixels. --size=cpu: two cores, about two hours for all runs of 5 epochs and seven hours for those
of 20, for each of three seeds; --runs and --seeds choose some. --size=full: a GPU, bfloat16, images kept on the GPU;
nine runs at a time on one H200 took twelve minutes for all.
"""

import functools
import math
import pathlib

import study

from training import command_line

RECIPE = "imagenette_resnet18"
# The plain recipe: SGD with Nesterov's momentum, an epoch of warm-up and a rate in three steps, the L2 penalty on all
# parameters, random crops and flips, and nothing else.
PLAIN = {"schedule": "step", "label_smoothing": 0.0, "decay_norm_and_bias": True, "keep_best": False}
ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
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
    "adamw": ADAMW,
    "lamb": {"optimizer": "lamb", "learning_rate": 5e-3, "weight_decay": 0.02},
    # What the inductive bias of convolutions is worth: two networks with the same recipe.
    "adamw_cosine": ADAMW | {"schedule": "cosine"},
    "vit_tiny": ADAMW | {"schedule": "cosine", "model": "vit_tiny_patch16_224"},
}
EPOCHS, SEEDS, STEPS, PIXELS = (5, 20), range(3), (0.6, 0.85), 64


def list_runs(size: str) -> list[study.Run]:
    """Returns all ingredients with one seed and few epochs first, then the other seeds, then the longer runs."""
    if size == "reduced":
        options = {"model": "resnet20", "num_classes": 10, "dataset": "synthetic", "synthetic_examples": 32}
        options |= {"log_every_steps": 2, "batch_size": 8, "warmup_epochs": 1, "eval_resize": 0}
        names = ("plain", "size_by_epoch", "repeated_augmentation")
        return [study.Run(name, RECIPE, overrides(name, 2, 16) | options, 0) for name in names]
    return [
        study.Run(f"{name}_{epochs}", RECIPE, overrides(name, epochs, PIXELS) | options_of_size(name, size), seed)
        for epochs in EPOCHS
        for seed in SEEDS
        for name in INGREDIENTS
    ]


def options_of_size(name: str, size: str) -> dict:
    """Returns what a run on two cores or on a GPU changes; only images of one size can be kept on the GPU."""
    if size == "cpu":
        return {"eval_batch_size": 157}
    options = {"dtype": "bfloat16", "eval_batch_size": 512}
    return options if "train_sizes" in INGREDIENTS[name] else options | {"cache": "device"}


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
    """Returns accuracies and their difference from the plain recipe's with the same seeds, with 95 % intervals."""
    headings = ["ingredient", "epochs", "seeds", "top-1, %", "more than plain", "training top-1, %", "seconds a run"]
    lines = []
    for name, group in study.by_name(rows).items():
        epochs = round(group[0]["epochs"])
        plain = plain_of(group, rows)
        more = f"{study.top1(group) - study.top1(plain):+.1f} ± {half_of_difference(group, plain):.1f}" if plain else ""
        lines.append(
            [
                name.replace(f"_{epochs}", "", 1),
                epochs,
                len(group),
                f"{study.top1(group):.1f} ± {study.half_interval(group):.1f}",
                more,
                study.spread((100 * row["train_accuracy_top1"] for row in group), 1),
                study.spread((row["seconds"] for row in group), 0),
            ]
        )
    return study.table(headings, lines)


def plain_of(group: list[study.Row], rows: list[study.Row]) -> list[study.Row]:
    """Returns the plain recipe's rows for the same epochs, dataset, machine and seeds.

    The list is empty if one of the seeds is missing, and for the plain recipe itself.
    """
    first, seeds = group[0], {row["seed"] for row in group}
    plain = [
        row
        for row in rows
        if row["name"] in (f"plain_{round(first['epochs'])}", "plain")
        and row["seed"] in seeds
        and all(row[key] == first[key] for key in ("hardware", "dataset"))
    ]
    return plain if len(plain) == len(seeds) and first not in plain else []


def half_of_difference(ours: list[study.Row], theirs: list[study.Row]) -> float:
    """Returns half the 95 % interval of a difference in points: Welch's over the seeds; of one seed, of its images."""
    if len(ours) == 1:
        return math.hypot(study.half_interval(ours), study.half_interval(theirs))
    return study.difference(*([100 * row["accuracy_top1"] for row in group] for group in (ours, theirs)))[1]


def judge(rows: list[study.Row]) -> list[study.Claim]:
    """Returns what ResNet-18 and ViT-Ti, both with AdamW, say about the inductive bias of convolutions."""
    claims = []
    for epochs in EPOCHS:
        pair = study.comparable(rows, [f"{name}_{epochs}" for name in ("adamw_cosine", "vit_tiny")])
        if pair:
            values = ([100 * row["accuracy_top1"] for row in group] for group in pair)
            run = f"ResNet-18 and ViT-Ti on Imagenette, {epochs} epochs, both with AdamW and a cosine"
            claim = "With few images a transformer is less accurate than a residual network."
            claims.append(study.compare("Dosovitskiy 2020, section 1", claim, run, *values, "% top-1"))
    return claims


def draw(rows: list[study.Row], path: pathlib.Path) -> None:
    """Draws, for each number of epochs, the accuracy of each ingredient, and ResNet-18 beside ViT-Ti as they learn."""
    from matplotlib.figure import Figure

    lengths = sorted({round(row["epochs"]) for row in rows})
    figure = Figure(figsize=(12, 5.5 * len(lengths)), layout="constrained")
    for (left, right), epochs in zip(figure.subplots(len(lengths), 2, squeeze=False), lengths, strict=True):
        groups = study.by_name([row for row in rows if round(row["epochs"]) == epochs])
        left.set_title(f"ResNet-18 on Imagenette, {epochs} epochs: one ingredient more")
        ingredients = {name: group for name, group in groups.items() if not name.startswith("vit")}
        for place, (name, group) in enumerate(ingredients.items()):
            left.plot([100 * row["accuracy_top1"] for row in group], [place] * len(group), "o", color="C0", alpha=0.5)
            left.errorbar(study.top1(group), place, xerr=study.half_interval(group), color="C1", fmt="|", capsize=3)
            if name.startswith("plain"):
                left.axvline(study.top1(group), color="C1", linewidth=1, linestyle="--")
        left.set_yticks(
            range(len(ingredients)), [name.replace(f"_{epochs}", "").replace("_", " ") for name in ingredients]
        )
        left.invert_yaxis()
        left.set_xlabel(f"top-1 accuracy after {epochs} epochs (%): seeds, mean and its 95 % interval")
        right.set_title("ResNet-18 and ViT-Ti, both with AdamW and a cosine")
        for network, name in (("ResNet-18", "adamw_cosine"), ("ViT-Ti", "vit_tiny")):
            for group in study.comparable(rows, [f"{name}_{epochs}"]) or ():
                curves = [row["curves"]["train"] for row in group]
                points = [
                    (
                        [epochs * step / row["steps"] for step in curve["step"]],
                        [100 * x for x in curve["accuracy_top1"]],
                    )
                    for row, curve in zip(group, curves, strict=True)
                ]
                study.draw_seeds(right, points, label=f"{network}, training")
                style = {"fmt": "o", "capsize": 3, "color": right.lines[-1].get_color()}
                right.errorbar(
                    epochs, study.top1(group), study.half_interval(group), label=f"{network}, validation", **style
                )
        right.set_xlabel("epochs")
        right.set_ylabel("top-1 accuracy (%)")
        if right.lines:
            right.legend()
        for axes in (left, right):
            axes.grid(alpha=0.3)
    study.save_figure(figure, path)


if __name__ == "__main__":
    command_line.run(functools.partial(study.main, "ingredients", list_runs, make_table, draw, judge))
