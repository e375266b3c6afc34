"""The lineage on one small task: python benchmarks/studies/lineage.py [--size=full|cpu|reduced] [--minutes=9].

The smallest sensible network of each family learns Imagenette's ten classes from random weights: accuracy over cost, as
in Fig. 2 of Canziani, Paszke, Culurciello 2017, An analysis of deep neural network models for practical applications.
They compare published accuracies on ImageNet, of networks that were trained for as long as their authors liked. Here
all networks have one of two budgets, and the study trains each of them in two ways. The setting, written before the
runs:

Budgets. `epochs`: each network sees every image equally often. `seconds`: each network trains for the same time of one
machine. Its number of steps is fixed before the run, from its rate, which benchmark.py measures with the dataset's
images: --rates measures the networks that have no rate yet, and must run while nothing else does. So the schedule of
the learning rate fits the budget, and a busy machine changes no result.

Recipes. `common`: the crops of configs/imagenette_resnet18.py, and AdamW at 3e-4 with a warm-up of a tenth of the run,
a cosine, and gradients of at most norm 1. AdamW is the one optimizer of these recipes that trains transformers and
plain networks without batch normalisation alike. `own`: the recipe of configs/ for ImageNet. It keeps its optimizer,
loss, regularisation and augmentation. Its schedule shrinks to the length of the run. Batches have 64 images, for which
the learning rate is changed in proportion to the batch, with AdamW in proportion to its root. Moving averages of the
weights are off, because they reach further back than these runs.

--size=cpu: 64 pixels (AlexNet needs 67, Inception-v3 75), 2 epochs or 60 s on two cores. By an estimate, 2 epochs take
ResNet-18 three and a half minutes, VGG-11 a quarter of an hour, most of it for its 129 million parameters, and all 17
networks about an hour and a half for each recipe and seed; so 3 epochs are too many. One seed of all networks comes
first, and the fastest network first.
--size=full: the same pixels, 10 epochs or 60 s on a GPU.
"""

import functools
import importlib
import json
import math
import pathlib
import shlex
import subprocess
import sys
from typing import Any, NamedTuple

import study
from absl import flags

import models
from analysis import rows as row_files
from analysis.summary import summarize
from benchmarks.commands import portable
from training import command_line

RECIPE = "imagenette_resnet18"
COMMON = {"optimizer": "adamw", "learning_rate": 3e-4, "weight_decay": 0.05, "gradient_clip_norm": 1.0}
WARMUP = 0.1  # of the run
BATCH = 64
PIXELS = {"full": 64, "cpu": 64, "reduced": 32}
LEAST_PIXELS = {"alexnet": 67, "inception_v3": 75}
SECONDS, EPOCHS = {"full": 60, "cpu": 60, "reduced": 0.1}, {"full": 10, "cpu": 2, "reduced": 2}
IMAGES = {"full": 9469, "cpu": 9469, "reduced": 128}  # of Imagenette, to train on
IMAGENET = 1_281_167  # images to train on
CHANCE = 10  # % top-1 of a network that guesses one of ten classes
SEEDS = {"full": 3, "cpu": 3, "reduced": 1}
COLUMNS = [("epochs", "common"), ("seconds", "common"), ("epochs", "own"), ("seconds", "own")]

_RATES = flags.DEFINE_bool("rates", False, "Measure the networks' rates first, on a machine with nothing else to do.")


class Member(NamedTuple):
    """A network of the lineage.

    Attributes:
      model: of the registry.
      recipe: its own, of configs/.
      options: that differ from both recipes, the own and the common one.
    """

    model: str
    recipe: str
    options: dict[str, Any] = {}


NETWORKS = {
    "lenet5": Member("lenet5", "lenet5_digits", {"channels": 3}),
    "alexnet": Member("alexnet", "alexnet"),
    "zfnet": Member("zfnet", "zfnet"),
    "nin": Member("nin", "nin"),
    "vgg11": Member("vgg11", "vgg11"),
    "vgg11_bn": Member("vgg11_bn", "vgg11_bn"),
    "googlenet": Member("googlenet", "googlenet", {"aux_weight": (0.0,)}),
    "googlenet_aux": Member("googlenet", "googlenet", {"aux_weight": (0.3,)}),
    "inception_v3": Member("inception_v3", "inception_v3"),
    "plain18": Member("plain18", "plain18"),
    "resnet18": Member("resnet18", "resnet18"),
    "densenet121": Member("densenet121", "densenet121"),
    "squeezenet1_1": Member("squeezenet1_1", "squeezenet1_1"),
    "mobilenet_v1": Member("mobilenet_v1", "mobilenet_v1"),
    "xception": Member("xception", "xception"),
    "vit_tiny": Member("vit_tiny_patch16_224", "vit_s16"),
    "convnext_tiny": Member("convnext_tiny", "convnext_tiny"),
}
REDUCED = ("lenet5", "vit_tiny")  # the two that compile the fastest


class Comparison(NamedTuple):
    """A claim: the first of two networks is more accurate than the second, under the common recipe."""

    paper: str
    claim: str
    ours: str
    theirs: str


COMPARISONS = [
    Comparison("Szegedy 2014, section 5", "Auxiliary classifiers raise the accuracy.", "googlenet_aux", "googlenet"),
    Comparison("Ioffe 2015, section 4.2", "A network learns faster with batch normalisation.", "vgg11_bn", "vgg11"),
    Comparison("He 2015, section 4.1", "18 layers learn faster with shortcuts.", "resnet18", "plain18"),
    Comparison(
        "Iandola 2016, section 4",
        "SqueezeNet is no less accurate than AlexNet, with a fiftieth of its parameters.",
        "squeezenet1_1",
        "alexnet",
    ),
    Comparison(
        "Howard 2017, Table 8",
        "MobileNet is more accurate than GoogLeNet, with less computation.",
        "mobilenet_v1",
        "googlenet_aux",
    ),
    Comparison(
        "Dosovitskiy 2020, section 1",
        "With few images a transformer is less accurate than a residual network.",
        "resnet18",
        "vit_tiny",
    ),
]


def main() -> int:
    """Runs the program; returns its exit code."""
    files = study.files_of(f"lineage_{study.SIZE.value}")
    if _RATES.value:
        measure_rates(study.SIZE.value, files)
    exit_code = study.main("lineage", list_runs, make_table, draw, judge)
    # The headers keep the figure of a GPU, if there is one: it has more epochs and seeds.
    gpu_rows = study.SIZE.value != "full" and study.read(study.files_of("lineage_full"))
    if files.comment and (rows := study.read(files)) and not gpu_rows:
        put_into_recipes(rows)
    return exit_code


def list_runs(size: str) -> list[study.Run]:
    """Returns one seed of all networks, budgets and recipes, then the other seeds; fast networks come first.

    A network without a measured rate comes last, and has no runs of so many seconds.
    """
    rates = {name: row["images_per_second"] for name, row in read_rates().items()}
    columns = COLUMNS if size != "reduced" else [("epochs", "own"), ("seconds", "common")]
    names = sorted(REDUCED if size == "reduced" else NETWORKS, key=lambda name: -rates.get(name, 0))
    return [
        study.Run(
            f"{name}_{recipe}_{budget}", *recipe_of(name, recipe, size, steps_of(budget, size, rates.get(name))), seed
        )
        for seed in range(SEEDS[size])
        for budget, recipe in columns
        for name in names
        if budget == "epochs" or name in rates
    ]


def steps_of(budget: str, size: str, rate: float | None) -> int:
    """Returns the steps of a budget; that of seconds needs the images that the network trains on in a second."""
    images = rate * SECONDS[size] if budget == "seconds" else EPOCHS[size] * IMAGES[size]
    return max(round(images / BATCH), 1)


def recipe_of(name: str, recipe: str, size: str, steps: int) -> tuple[str, dict[str, Any]]:
    """Returns the file of configs/ of a run and what it overrides in it."""
    member, epochs = NETWORKS[name], steps * BATCH / IMAGES[size]
    options = shared_options(name, size) | {"num_steps": steps, "evaluate_every_epochs": 0, "keep_best": False}
    options |= {"eval_batch_size": 160, "log_every_steps": 10}
    if size == "full":
        options |= {"eval_batch_size": 656, "log_every_steps": 148}
    if recipe == "common":
        pixels = options["image_size"]
        return RECIPE, options | COMMON | {"warmup_epochs": WARMUP * epochs, "eval_resize": round(1.125 * pixels)}
    changed = shorten(member, steps, epochs, options["image_size"])
    if "train_sizes" in changed:  # images that change their size cannot be kept on the device
        options.pop("cache", None)
    return member.recipe, changed | options


def shared_options(name: str, size: str) -> dict[str, Any]:
    """Returns what both recipes and the measurement of a network's rate have in common."""
    options = {"model": NETWORKS[name].model, "image_size": max(PIXELS[size], LEAST_PIXELS.get(name, 0))}
    options |= {"dataset": "imagenette/160px-v2", "batch_size": BATCH} | NETWORKS[name].options
    if size == "full":
        options |= {"dtype": "bfloat16", "cache": "device"}
    if size == "reduced":
        options |= {"dataset": "synthetic", "synthetic_examples": IMAGES[size], "num_classes": 10}
    return options


def shorten(member: Member, steps: int, epochs: float, pixels: int) -> dict[str, Any]:
    """Returns what a network's own recipe changes for a run of so many steps, which are so many epochs."""
    config = importlib.import_module(f"configs.{member.recipe}").get_config()
    length = config.num_epochs if config.num_steps is None else config.num_steps * config.batch_size / IMAGENET
    power = 0.5 if config.optimizer == "adamw" else 1
    options = {"learning_rate": config.learning_rate * (BATCH / config.batch_size) ** power}
    if config.schedule == "step":
        drops = [*(epoch / length for epoch in config.step_epochs)]
        drops += [step / config.num_steps for step in config.step_steps]
        options["step_steps"] = tuple(round(drop * steps) for drop in drops)
    if config.schedule == "exponential":
        options["exponential_epochs"] = config.exponential_epochs / length * epochs
    if config.warmup_epochs:
        options["warmup_epochs"] = config.warmup_epochs / length * epochs
    if config.ema_decay:
        options["ema_decay"] = 0.0
    if config.train_split:
        options["train_split"] = None
    scale = pixels / (config.image_size or models.get_entry(config.model).image_size)
    if config.train_sizes:
        options["train_sizes"] = tuple(
            (epoch / length * epochs, round(size * scale)) for epoch, size in config.train_sizes
        )
    if config.train_crop == "scale_jitter":
        options["train_resize"] = tuple(round(size * scale) for size in config.train_resize)
    if config.eval_resize:
        options["eval_resize"] = round(config.eval_resize * scale)
    return options


def rates_file() -> pathlib.Path:
    """Returns the file of the networks' rates, beside that of the study's rows."""
    rows = study.files_of(f"lineage_{study.SIZE.value}").rows
    return rows.with_name(f"{rows.stem}_rates.json")


def read_rates() -> dict[str, study.Row]:
    """Returns benchmark.py's row of each network whose rate was measured."""
    path = rates_file()
    return {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}


def measure_rates(size: str, files: study.Files) -> None:
    """Measures how many images a second each network trains on under the common recipe, if no rate is stored.

    The steps of a minute follow from it. To start anew on another machine, delete the file of the rates.
    """
    for name in REDUCED if size == "reduced" else NETWORKS:
        if name in read_rates():
            continue
        options = (
            shared_options(name, size) | COMMON | ({"dataset": study.DATASET.value} if study.DATASET.value else {})
        )
        files.folder.mkdir(parents=True, exist_ok=True)
        result = files.folder / "rate.json"
        words = ["python", "benchmark.py", f"--config=configs/{RECIPE}.py", "--mode=real"]
        words += [f"--seconds={0.1 if size == 'reduced' else 4}", f"--image_size={options.pop('image_size')}"]
        words += [f"--config.{option}={study.words_of(value)}" for option, value in options.items()]
        command_line.say(f"\nthe rate of {name}")
        command = [sys.executable, *words[1:], f"--json={result.absolute()}"]
        if code := subprocess.run(command, cwd=study.ROOT).returncode:
            sys.exit(code)
        (row,) = json.loads(result.read_text())
        row |= {"name": name, "command": shlex.join(map(portable, words))}
        row_files.record(rates_file(), row | {"dataset": portable(row["dataset"])}, ["name"])


@functools.cache
def count_millions(name: str) -> float:
    """Returns the millions of multiply-accumulates of a network for one image, without auxiliary classifiers."""
    config = importlib.import_module(f"configs.{RECIPE}").get_config()
    config.update(shared_options(name, study.SIZE.value))
    return summarize(config).macs / 1e6


def cells(rows: list[study.Row]) -> dict[str, dict[tuple[str, str], list[study.Row]]]:
    """Returns for each network, in the order of history, the rows of each (budget, recipe) that has some."""
    rows = study.of_one_machine(rows)
    found = {
        name: {
            (budget, recipe): group
            for budget, recipe in COLUMNS
            for group in study.comparable(rows, [f"{name}_{recipe}_{budget}"]) or ()
        }
        for name in NETWORKS
    }
    return {name: each for name, each in found.items() if each}


def describe(budget: str) -> str:
    """Returns a budget in words."""
    size = study.SIZE.value
    return f"{SECONDS[size]:g} s" if budget == "seconds" else f"{EPOCHS[size]:g} epochs"


def make_table(rows: list[study.Row]) -> str:
    """Returns a line for each network: its costs, and for each budget and recipe top-1 with its 95 % interval."""
    rates, networks = read_rates(), cells(rows)
    has_seconds = any(budget == "seconds" for each in networks.values() for budget, _ in each)
    columns = [column for column in COLUMNS if any(column in each for each in networks.values())]
    headings = ["network", "pixels", "million MACs an image", "million parameters", *(["images/s"] * bool(rates))]
    headings += [f"{describe(budget)}, {recipe} recipe: top-1, %" for budget, recipe in columns]
    headings += ["seeds", *(["epochs in " + describe("seconds")] * has_seconds)]
    lines = []
    for name, each in networks.items():
        first = next(iter(each.values()))[0]
        epochs = [f"{group[0]['epochs']:.2g}" for (budget, _), group in each.items() if budget == "seconds"]
        lines.append(
            [
                name,
                first["config"]["image_size"],
                f"{count_millions(name):.4g}",
                f"{first['parameters'] / 1e6:.3g}",
                *([in_words(rates[name]["images_per_second"]) if name in rates else ""] * bool(rates)),
                *(
                    f"{study.top1(each[key]):.1f} ± {study.half_interval(each[key]):.1f}" if key in each else ""
                    for key in columns
                ),
                ", ".join(map(str, dict.fromkeys(len(group) for group in each.values()))),
                *([next(iter(epochs), "")] * has_seconds),
            ]
        )
    return study.table(headings, lines)


def in_words(rate: float) -> str:
    """Returns a rate with three digits, such as 40.2 or 1,000."""
    return f"{float(f'{rate:.3g}'):,g}"


def guesses(group: list[study.Row]) -> bool:
    """Returns whether top1 cannot be told from guessing: it exceeds CHANCE by at most 1.96 of its standard errors."""
    return study.top1(group) <= CHANCE + 1.96 * math.sqrt(CHANCE * (100 - CHANCE) / group[0]["examples"])


def judge(rows: list[study.Row]) -> list[study.Claim]:
    """Returns what the runs under the common recipe say about the papers' claims, for each budget."""
    networks, claims = cells(rows), []
    size = f"{PIXELS[study.SIZE.value]} pixels, the common recipe"
    budgets = [budget for budget, recipe in COLUMNS if recipe == "common"]
    for paper, claim, *pair in COMPARISONS:
        results, holds, seeds = [], [], ""
        for budget in budgets:
            groups = [networks.get(name, {}).get((budget, "common")) for name in pair]
            if not all(groups):
                continue
            values = [[100 * row["accuracy_top1"] for row in group] for group in groups]
            results.append(f"{' and '.join(map(study.spread, values))} % top-1 in {describe(budget)}")
            guessing = [name for name, group in zip(pair, groups, strict=True) if guesses(group)]
            verdict = study.verdict(*study.difference(*values))
            verdict = f"not shown, {' and '.join(guessing)} still at chance" if guessing else verdict
            holds.append(f"{verdict} ({describe(budget)})")
            seeds = study.seeds_of(*groups)
        if results:
            run = f"{pair[0]} and {pair[1]} on Imagenette at {size}; {seeds}"
            claims.append(study.Claim(paper, claim, run, "; ".join(results), "; ".join(holds)))
    results, holds = [], []
    for budget in budgets:
        points = [
            (count_millions(name), study.top1(each[budget, "common"]))
            for name, each in networks.items()
            if (budget, "common") in each
        ]
        if len(points) < 8:  # too few networks to say anything
            continue
        correlation, low, high = rank_correlation(points)
        interval = f"{correlation:+.2f} ({low:+.2f} to {high:+.2f})"
        results.append(f"rank correlation {interval} of {len(points)} networks in {describe(budget)}")
        holds.append(f"{study.verdict((high + low) / 2, (high - low) / 2)} ({describe(budget)})")
    if results:
        claim = "Networks with more operations an image are more accurate."
        run = f"all networks on Imagenette at {size}"
        claims.append(study.Claim("Canziani 2017, Fig. 2", claim, run, "; ".join(results), "; ".join(holds)))
    return claims


def rank_correlation(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Returns Spearman's rank correlation of two figures, and its 95 % interval (Bonett and Wright 2000)."""
    from scipy.stats import spearmanr

    correlation = float(spearmanr(*zip(*points, strict=True)).statistic)
    half = 1.96 * math.sqrt((1 + correlation**2 / 2) / (len(points) - 3))
    middle = math.atanh(min(max(correlation, -0.999), 0.999))
    return correlation, math.tanh(middle - half), math.tanh(middle + half)


def draw(rows: list[study.Row], path: pathlib.Path) -> None:
    """Draws top-1 over multiply-accumulates, a panel for each budget; the area of a disc stands for the parameters."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    networks = cells(rows)
    budgets = [
        budget
        for budget in dict(COLUMNS)
        if any((budget, recipe) in each for each in networks.values() for recipe in ("common", "own"))
    ]
    figure = Figure(figsize=(max(7.5 * len(budgets), 10), 6.5), layout="constrained")
    about = "95 % intervals over the seeds; of a single seed, over the images"
    named = []
    figure.suptitle(f"The lineage on Imagenette: accuracy over cost\n({about})")
    for axes, budget in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
        discs: list[Disc] = []
        for name, each in networks.items():
            color = f"C{list(NETWORKS).index(name) % 10}"
            for recipe, face in (("common", color), ("own", "none")):
                if (budget, recipe) not in each:
                    continue
                group, millions = each[budget, recipe], count_millions(name)
                accuracy, half = study.top1(group), study.half_interval(group)
                axes.errorbar(millions, accuracy, half, color=color, linewidth=1, capsize=2)
                area = 4 * group[0]["parameters"] / 1e6 + 12
                style = {"facecolor": face, "edgecolor": color, "alpha": 0.6}
                axes.scatter(millions, accuracy, area, linewidth=1.5, **style)
                first = recipe == "common" or (budget, "common") not in each
                discs.append(Disc(name if first else "", millions, accuracy, half, math.sqrt(area / math.pi)))
        axes.axhline(CHANCE, color="grey", linewidth=1, linestyle="--", zorder=0)
        axes.set_xscale("log")
        axes.margins(x=0.2)  # room for the names
        axes.set_ylim(0, min(axes.get_ylim()[1], 100))  # the interval of few seeds can be wider than all accuracies
        named.append((axes, discs))
        axes.set_title(f"{describe(budget)} of training for each network")
        axes.set_xlabel("million multiply-accumulates an image")
        axes.set_ylabel("top-1 accuracy (%)")
        axes.grid(alpha=0.3)
    handles = [
        Line2D([], [], marker="o", linestyle="", color="grey", fillstyle=fill, label=f"{recipe} recipe")
        for recipe, fill in (("common", "full"), ("own", "none"))
        if any(key[1] == recipe for each in networks.values() for key in each)
    ]
    handles += [Line2D([], [], color="grey", linewidth=1, linestyle="--", label="chance")]
    figure.axes[0].legend(handles=handles, loc="upper left", title="area of a disc: parameters", fontsize="small")
    figure.draw_without_rendering()  # it places the axes
    for axes, discs in named:
        write_names(axes, discs)
    study.save_figure(figure, path)


class Disc(NamedTuple):
    """A disc of the picture.

    Attributes:
      name: of its network; "" if it has no name.
      x: million multiply-accumulates.
      y: top-1 accuracy, %.
      half: half of the interval of y, %.
      radius: in points.
    """

    name: str
    x: float
    y: float
    half: float
    radius: float


def write_names(axes: Any, discs: list[Disc]) -> None:
    """Writes each name beside its disc, where it covers the fewest discs, intervals, lines and other names.

    Args:
      axes: of matplotlib, already placed in the figure.
      discs: all discs of the axes.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    pixels, to_pixels = axes.figure.dpi / 72, axes.transData.transform
    _, height_of_chance = to_pixels((discs[0].x, CHANCE))
    taken = [Bbox([[axes.bbox.x0, height_of_chance - 1], [axes.bbox.x1, height_of_chance + 1]])]
    for disc in discs:
        centre, space = to_pixels((disc.x, disc.y)), disc.radius * pixels
        taken.append(Bbox([centre - space, centre + space]))
        ends = [to_pixels((disc.x, disc.y + side)) for side in (-disc.half, disc.half)]
        taken.append(Bbox([ends[0] - (3 * pixels, 0), ends[1] + (3 * pixels, 0)]))

    def write(name: str, point: tuple[float, float], place: tuple[float, float]) -> Any:
        side = "left" if place[0] > 0 else "right" if place[0] < 0 else "center"
        style = {"textcoords": "offset points", "fontsize": "small", "horizontalalignment": side}
        outline = [withStroke(linewidth=2, foreground="white")]
        return axes.annotate(name, point, place, path_effects=outline, **style)

    for name, x, y, _, radius in discs:
        if name:
            places = [(side * (radius + 4), height) for height in (-3, 9, -15) for side in (1, -1)]
            places += [(0, radius + 14), (0, -radius - 22)]
            texts = [write(name, (x, y), place) for place in places]
            boxes = [text.get_window_extent() for text in texts]
            best = min(range(len(boxes)), key=lambda at: sum(boxes[at].overlaps(other) for other in taken))
            taken.append(boxes[best])
            for text in texts:
                if text is not texts[best]:
                    text.remove()


def put_into_recipes(rows: list[study.Row]) -> None:
    """Writes what a network's own recipe reached into the recipe's header, if nothing else was measured with it."""
    for name, each in cells(rows).items():
        path = study.ROOT / "configs" / f"{NETWORKS[name].recipe}.py"
        own = {budget: group for (budget, recipe), group in each.items() if recipe == "own"}
        budget = next((budget for budget in ("epochs", "seconds") if budget in own), None)
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        # GoogLeNet's own recipe has the auxiliary classifiers, and ViT-S/16's is not that of ViT-Ti.
        if budget is None or config.model != NETWORKS[name].model or name == "googlenet":
            continue
        result = f"{study.top1(own[budget]):.1f} %{' (chance)' if guesses(own[budget]) else ''} of Imagenette"
        result += f" at {own[budget][0]['config']['image_size']} pixels in {describe(budget)}"
        text = f'nothing on ImageNet; {result}: docs/results.md, "The lineage".'
        begin, _, rest = path.read_text().partition("\nMeasured: nothing")
        if rest:
            study.write_atomically(path, f"{begin}\nMeasured: {text}\n{rest.partition(chr(10))[2]}")


if __name__ == "__main__":
    command_line.run(main)
