"""GoogLeNet's auxiliary classifiers: python benchmarks/studies/auxiliary_classifiers.py [--size=full|cpu|reduced].

Szegedy et al. 2014, Going deeper with convolutions, section 5, attach two classifiers to inner stages so that gradients
reach the first stages. The study trains the network with the paper's weight of their losses, 0.3, and without them,
each as published and with batch normalisation. It compares the accuracy and the 2-norm of the gradient of the first
convolution.
"""

import functools
import pathlib
import statistics
from collections.abc import Iterable

import study

from training import command_line

NETWORKS = "googlenet", "googlenet_bn"  # the paper's network, and the same with batch normalisation
WEIGHTS = 0.0, 0.3
SEEDS = {"full": 3, "cpu": 3, "reduced": 1}
NORM = "gradient_norm/"  # and the name of a part of the network
FIRST = f"{NORM}conv1"
LEFT = 2.0  # nats of the main classifier's loss; ten classes at random are ln 10 = 2.303


def list_runs(size: str) -> list[study.Run]:
    """Returns one seed of each of the four networks, then the other seeds."""
    return [
        study.Run(f"{network}_aux_{weight:g}", "imagenette_googlenet", overrides(network, weight, size), seed)
        for seed in range(SEEDS[size])
        for network in NETWORKS
        for weight in WEIGHTS
    ]


def overrides(network: str, weight: float, size: str) -> dict:
    """Returns what a network, the weight of its auxiliary losses and a size change."""
    options = {"model": network, "aux_weight": weight, "log_gradient_norms": True, "keep_best": False}
    if size == "full":
        options |= {"cache": "device", "dtype": "bfloat16", "eval_batch_size": 512, "evaluate_every_epochs": 2}
    elif size == "cpu":
        options |= {"image_size": 64, "eval_resize": 72, "eval_batch_size": 157, "num_steps": 750}
        options |= {"log_every_steps": 15, "evaluate_every_epochs": 0}
    else:  # LeNet-5 compiles quickly, and has a conv1 too
        options |= {"aux_heads": ("conv1",)} if weight else {}
        options |= {"model": "lenet5", "image_size": 28, "eval_resize": 0, "channels": 1}
        options |= {"mean": (0.5,), "std": (0.5,), "dataset": "synthetic", "num_classes": 10, "synthetic_examples": 32}
        options |= {"num_steps": 8, "log_every_steps": 2, "batch_size": 8}
    return options


def make_table(rows: list[study.Row]) -> str:
    """Returns accuracies and gradient norms, with their spread over the seeds."""
    headings = ["network, weight of the auxiliary losses", "seeds", "iterations", "top-1, %", "training top-1, %"]
    headings += [f"iterations to a loss of {LEFT:g}", "median gradient norm, first quarter", "last quarter", "seconds"]
    return study.table(
        headings,
        (
            [
                name,
                len(group),
                f"{group[0]['steps']:,}",
                study.spread(100 * row["accuracy_top1"] for row in group),
                study.spread(100 * row["train_accuracy_top1"] for row in group),
                ", ".join(iterations_to_leave(row) for row in group),
                *(
                    significant(study.median_over_steps(row["curves"]["train"], FIRST, *part) for row in group)
                    for part in ((0, 0.25), (0.75, 1))
                ),
                study.spread((row["seconds"] for row in group), 0),
            ]
            for name, group in study.by_name(rows).items()
        ),
    )


def judge(rows: list[study.Row]) -> list[study.Claim]:
    """Returns whether the auxiliary losses raise the accuracy and the gradient of the first convolution."""
    claims = []
    for network, words in zip(NETWORKS, ("as published", "with batch normalisation"), strict=True):
        pair = study.comparable(rows, [f"{network}_aux_{weight:g}" for weight in reversed(WEIGHTS)])
        if not pair:
            continue
        run = f"GoogLeNet {words}, weights 0.3 and 0, {pair[0][0]['steps']:,} iterations on Imagenette"
        for claim, unit, digits, value in (
            ("Auxiliary classifiers raise the accuracy.", "% top-1", 2, lambda row: 100 * row["accuracy_top1"]),
            (
                "Auxiliary classifiers raise the gradient of the first layer.",
                "median gradient norm of conv1, first quarter",
                4,
                lambda row: study.median_over_steps(row["curves"]["train"], FIRST, 0, 0.25),
            ),
        ):
            values = (list(map(value, group)) for group in pair)
            claims.append(study.compare("Szegedy 2014, section 5", claim, run, *values, unit, digits))
    return claims


def main_loss(row: study.Row) -> list[float]:
    """Returns the training loss of the main classifier alone, log by log; older rows have it as main_loss."""
    curve = row["curves"]["train"]
    return curve.get("main_loss", curve["loss"])


def iterations_to_leave(row: study.Row) -> str:
    """Returns after how many iterations the main classifier's loss, mean of a log's batches, first was under LEFT."""
    steps = row["curves"]["train"]["step"]
    return next((f"{step:,}" for step, loss in zip(steps, main_loss(row), strict=True) if loss < LEFT), "never")


def significant(values: Iterable[float]) -> str:
    """Returns mean ± standard deviation as study.spread does, in two significant digits."""
    values = list(values)
    parts = [statistics.fmean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{part:.2g}" for part in parts)


def norms_by_depth(row: study.Row) -> dict[str, float]:
    """Returns the median gradient norm of each part in the first quarter of the training, without the classifiers."""
    curves = row["curves"]["train"]
    parts = [name.removeprefix(NORM) for name in curves if name.startswith(NORM) and not name.endswith("head")]
    parts.sort(key=lambda part: (part.removesuffix("_reduce"), not part.endswith("_reduce")))
    return {part: study.median_over_steps(curves, f"{NORM}{part}", 0, 0.25) for part in parts}


def draw(rows: list[study.Row], path: pathlib.Path) -> None:
    """Draws the main classifier's loss and gradient norms, a line a seed.

    The norms are those of the first convolution over the iterations, and those of all parts in the first quarter.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 10.5), layout="constrained")
    panels = figure.subplots(3, 2, sharey="row")
    for row in rows:
        network, _, weight = row["name"].rpartition("_aux_")
        column, color = NETWORKS.index(network), f"C{WEIGHTS.index(float(weight))}"
        label = f"auxiliary losses' weight {weight}" if row["seed"] == 0 else None
        steps, norms = row["curves"]["train"]["step"], row["curves"]["train"][FIRST]
        for axes, values in zip(panels[:2, column], (main_loss(row), norms), strict=True):
            axes.plot(steps, values, color=color, label=label, linewidth=1)
        panels[2, column].plot(*zip(*norms_by_depth(row).items(), strict=True), "o-", color=color, linewidth=1)
    for axes, network in zip(panels[0], ("without batch normalisation", "with batch normalisation"), strict=True):
        axes.set_title(network)
    figure.suptitle("GoogLeNet's auxiliary classifiers on Imagenette: loss and gradients, a line a seed")
    panels[0, 0].set_ylabel("training loss of the main classifier (nats)")
    panels[1, 0].set_ylabel("gradient norm of the first convolution")
    panels[2, 0].set_ylabel("median gradient norm by depth, first quarter")
    for axes in panels[1:, 0]:
        axes.set_yscale("log")
    panels[0, 0].legend(fontsize="small")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    for axes in panels[:2].flat:
        axes.set_xlabel("iterations")
    for axes in panels[2]:
        axes.tick_params("x", rotation=90)
    study.save_figure(figure, path)


if __name__ == "__main__":
    command_line.run(functools.partial(study.main, "auxiliary_classifiers", list_runs, make_table, draw, judge))
