"""The papers' claims on the handwritten digits: python benchmarks/studies/digits.py [--minutes=9].

Each setting of SETTINGS differs from another one in one option or in the network, and COMPARISONS says which two are
compared, by which measure. Both were written before the runs, most of which take seconds on two cores, with five seeds;
after them the gradients' means became medians, and the claim that dropout raises the accuracy was left out, because
with a training accuracy of 100 % it says the same as the gap. The ensembles of ResNet-20 came later, and ten more
seeds with dropout.
The digits are part of scikit-learn: 1,797 images of 8x8 pixels, a fifth of them for validation where nothing else is
said.
"""

import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import study
from absl import flags

from benchmarks.commands import own_command, portable
from training import command_line

LOSS, ACCURACY = 2.0, 0.75  # nats; share of the training batches: Krizhevsky 2012, Fig. 1, has 25 % training error

BRIEF = {"log_every_steps": 5, "evaluate_every_epochs": 0, "keep_best": False}
LENET = BRIEF | {"num_epochs": 12, "log_gradient_norms": True}
AUX = LENET | {"aux_heads": ("conv3",)}
FEW_IMAGES = {"validation_share": 0.9, "eval_batch_size": 816}  # 179 images to train on, 1,618 to validate
FEW = BRIEF | FEW_IMAGES | {"model": "lenet5_relu", "train_crop": "none", "num_steps": 800, "batch_size": 32}
DIGITS = {"dataset": "digits", "mean": (0.5,), "std": (0.5,), "random_flip": False, "cache": "", "keep_best": False}
DIGITS |= {"schedule": "cosine", "evaluate_every_epochs": 0, "log_every_steps": 10}
# The digits' own 8 pixels. The networks' paper starts at a rate of 0.1, too high for so few iterations without warm-up.
TINY = DIGITS | {"channels": 1, "image_size": 8, "crop_padding": 1, "num_steps": 300, "batch_size": 64}
TINY |= {"learning_rate": 0.02}
# ResNet-34 has all three shortcuts in the registry; ResNet-20 has only the paper's.
SHORTCUTS = DIGITS | {"image_size": 16, "train_crop": "pad", "crop_padding": 2, "eval_resize": 0, "num_steps": 150}
SHORTCUTS |= {"batch_size": 64, "learning_rate": 0.02}
SMALL_NETWORKS = "benchmarks/studies/small_networks.py"  # it has the networks that models/ has no use for
SMALL = FEW | {"image_size": 16, "num_steps": 400, "learning_rate": 0.02}
PIXELS_255 = {"std": (1 / 255,), "learning_rate": 0.01}  # AlexNet's rate


class Setting(NamedTuple):
    """What is trained with several seeds.

    Attributes:
      recipe: of configs/.
      overrides: of its options.
      seeds: how many.
      program: what trains it.
    """

    recipe: str
    overrides: dict
    seeds: int = 5
    program: str = "train.py"


SETTINGS = {
    "lenet5_80_epochs": Setting("lenet5_digits", {"keep_best": False}, seeds=3),  # the recipe as it is
    "lenet5": Setting("lenet5_digits", LENET),
    "lenet5_aux_0.1": Setting("lenet5_digits", AUX | {"aux_weight": 0.1}),
    "lenet5_aux_0.3": Setting("lenet5_digits", AUX | {"aux_weight": 0.3}),
    "lenet5_aux_1": Setting("lenet5_digits", AUX | {"aux_weight": 1.0}),
    "lenet5_tanh": Setting("lenet5_digits", LENET | {"model": "lenet5_tanh"}),
    "lenet5_relu": Setting("lenet5_digits", LENET | {"model": "lenet5_relu"}),
    "momentum_0": Setting("lenet5_digits", LENET | {"model": "lenet5_relu", "momentum": 0.0}),
    "momentum_0_rate_0.5": Setting(
        "lenet5_digits", LENET | {"model": "lenet5_relu", "momentum": 0.0, "learning_rate": 0.5}
    ),
    "few_images": Setting("lenet5_digits", FEW, seeds=15),  # three ensembles of five
    "few_images_dropout": Setting("lenet5_digits", FEW | {"dropout_rate": 0.5}, seeds=15),
    **{
        name: Setting("lenet5_digits", SMALL | {"model": name} | options, program=SMALL_NETWORKS)
        for names, options in (
            (("filters_7x7", "filters_3x3", "bottlenecks", "no_bottlenecks", "lrn", "no_lrn"), {}),
            (("lrn_255", "no_lrn_255"), PIXELS_255),
        )
        for name in names
    },
    **{
        name: Setting("cifar10_resnet20", TINY | {"model": name}, program=SMALL_NETWORKS)
        for name in ("plain30_he", "plain30_glorot")
    },
    "plain20": Setting("cifar10_resnet20", TINY | {"model": "plain20"}, seeds=3),
    "plain56": Setting("cifar10_resnet20", TINY | {"model": "plain56"}, seeds=3),
    "resnet20": Setting("cifar10_resnet20", TINY | {"model": "resnet20"}, seeds=3),
    "resnet56": Setting("cifar10_resnet20", TINY | {"model": "resnet56"}, seeds=3),
    "few_images_resnet20": Setting("cifar10_resnet20", TINY | FEW_IMAGES | {"model": "resnet20"}, seeds=15),
    "resnet34_a": Setting("resnet34", SHORTCUTS | {"model": "resnet34_a"}, seeds=3),
    "resnet34_b": Setting("resnet34", SHORTCUTS, seeds=3),
    "resnet34_c": Setting("resnet34", SHORTCUTS | {"model": "resnet34_c"}, seeds=3),
}
MEMBERS = 5  # of an ensemble
RESIZE = 36  # pixels, for crops of 32 in the corners
# The evaluations of a setting's networks: the flags of evaluate.py. An ensemble has one row, the others one a network.
EVALUATIONS = {
    "few_images": {
        "ensemble": [],
        "1_view": [f"--resize={RESIZE}"],
        "5_views": [f"--resize={RESIZE}", "--views=5"],
        "10_views": [f"--resize={RESIZE}", "--views=10"],
    },
    "few_images_resnet20": {"ensemble": []},
}
ABOUT = "steps", "hardware", "versions", "git_commit"  # of the networks that an evaluation is of


class Measure(NamedTuple):
    """What is compared.

    Attributes:
      unit: in words.
      of: returns it from a row.
      sign: 1 if more is better, otherwise -1.
      digits: after the decimal point.
    """

    unit: str
    of: Callable[[study.Row], float]
    sign: int = 1
    digits: int = 2


def first_step(row: study.Row, name: str, is_reached: Callable[[float], bool]) -> int:
    """Returns the first logged iteration at which a metric of the training is reached; the last one if never."""
    curve = row["curves"]["train"]
    return next(
        (step for step, value in zip(curve["step"], curve[name], strict=True) if is_reached(value)), row["steps"]
    )


TOP1 = Measure("% top-1", lambda row: 100 * row["accuracy_top1"])
VALIDATION_LOSS = Measure("nats of validation loss", lambda row: row["loss"], sign=-1, digits=3)
TRAINING_ERROR = Measure("% training error", lambda row: 100 * (1 - row["train_accuracy_top1"]), sign=-1)
GAP = Measure(
    "points of training above validation top-1",
    lambda row: 100 * (row["train_accuracy_top1"] - row["accuracy_top1"]),
    sign=-1,
)
PLATEAU = Measure(f"iterations to a loss of {LOSS:g}", lambda row: first_step(row, "loss", LOSS.__gt__), -1, 0)
SPEED = Measure(
    f"iterations to {100 * ACCURACY:g} % training top-1",
    lambda row: first_step(row, "accuracy_top1", ACCURACY.__le__),
    -1,
    0,
)
FIRST_GRADIENT = Measure(
    "median gradient norm of conv1, first quarter",
    lambda row: study.median_over_steps(row["curves"]["train"], "gradient_norm/conv1", 0, 0.25),
    digits=4,
)


class Comparison(NamedTuple):
    """A claim: the measure is better in the first of two settings than in the second.

    Attributes:
      paper: who claims it.
      claim: in a sentence.
      run: what was run, in words.
      ours: the setting that is better, if the claim holds.
      theirs: the other one.
      measure: by which they are compared.
    """

    paper: str
    claim: str
    run: str
    ours: str
    theirs: str
    measure: Measure


COMPARISONS = [
    *(
        Comparison(
            "Szegedy 2014, section 5",
            claim,
            f"LeNet-5, 12 epochs, a head on conv3 of weight {weight} and 0",
            f"lenet5_aux_{weight}",
            "lenet5",
            measure,
        )
        for claim, measure in (
            ("Auxiliary classifiers shorten the plateau at the start.", PLATEAU),
            ("Auxiliary classifiers raise the gradient of the first layer.", FIRST_GRADIENT),
            ("Auxiliary classifiers raise the accuracy.", TOP1),
        )
        for weight in ("0.1", "0.3", "1")
    ),
    Comparison(
        "Krizhevsky 2012, section 3.1",
        "ReLUs learn several times faster than tanh.",
        "LeNet-5 with ReLU and with tanh, both with He's initial values",
        "lenet5_relu",
        "lenet5_tanh",
        SPEED,
    ),
    *(
        Comparison(
            "Krizhevsky 2012, section 4.2",
            claim,
            "LeNet-5 with ReLU on 179 images, dropout 0.5 and 0",
            "few_images_dropout",
            "few_images",
            measure,
        )
        for claim, measure in (
            ("Dropout reduces overfitting.", GAP),
            ("Dropout reduces the validation loss.", VALIDATION_LOSS),
        )
    ),
    *(
        Comparison(
            "Krizhevsky 2012, section 4.1",
            f"The mean over {words} is more accurate than the centre alone.",
            f"LeNet-5 with ReLU on 179 images, crops of 32 pixels from {RESIZE}",
            f"few_images_{views}_views",
            "few_images_1_view",
            TOP1,
        )
        for views, words in ((5, "five crops"), (10, "ten crops, half of them mirrored,"))
    ),
    *(
        Comparison(
            "Krizhevsky 2012, section 5",
            "The mean of several networks' probabilities is more accurate than one network.",
            f"three ensembles of {MEMBERS} {words} on 179 images, and their 15 members",
            f"{name}_ensemble",
            name,
            TOP1,
        )
        for name, words in (("few_images", "LeNet-5"), ("few_images_resnet20", "ResNet-20"))
    ),
    *(
        Comparison(
            "Sutskever 2013, section 3", "Momentum 0.9 learns faster than none.", run, "lenet5_relu", name, SPEED
        )
        for run, name in (
            ("LeNet-5 with ReLU, both at a rate of 0.05", "momentum_0"),
            ("LeNet-5 with ReLU, momentum 0.9 at a rate of 0.05, momentum 0 at 0.5", "momentum_0_rate_0.5"),
        )
    ),
    Comparison(
        "Simonyan and Zisserman 2014, section 2.3",
        "Three 3x3 convolutions are more accurate than a 7x7 one, with 27/49 of its weights.",
        "small networks on 179 images, both with two of these, 24 filters",
        "filters_3x3",
        "filters_7x7",
        TOP1,
    ),
    Comparison(
        "Szegedy 2014, section 4",
        "With 1x1 bottlenecks before 3x3 convolutions a network is more accurate at the same cost.",
        "small networks on 179 images: 64 filters behind bottlenecks of 16, and 34 filters without",
        "bottlenecks",
        "no_bottlenecks",
        TOP1,
    ),
    *(
        Comparison(
            "Krizhevsky 2012, section 3.3",
            "Local response normalisation raises the accuracy.",
            f"two 5x5 convolutions on 179 images, {words}",
            ours,
            f"no_{ours}",
            TOP1,
        )
        for ours, words in (
            ("lrn_255", "pixels between -128 and 127 and initial values as AlexNet's"),
            ("lrn", "pixels between -1 and 1, He's initial values"),
        )
    ),
    Comparison(
        "He 2015 (PReLU), section 2.2",
        "30 plain layers learn sooner from He's initial values than from Glorot's.",
        "30 layers without batch normalisation at 8 pixels, 300 iterations",
        "plain30_he",
        "plain30_glorot",
        TRAINING_ERROR,
    ),
    Comparison(
        "He 2015 (PReLU), section 2.2",
        "Initial values of variance 2 / fan in shorten the plateau at the start.",
        "LeNet-5 with tanh, He's initial values and LeCun's of 1998",
        "lenet5_tanh",
        "lenet5",
        PLATEAU,
    ),
    *(
        Comparison("He 2015, section 4.2", claim, f"{words} at 8 pixels, 300 iterations", ours, theirs, measure)
        for measure in (TRAINING_ERROR, TOP1)
        for claim, words, ours, theirs in (
            ("A plain network of 20 layers is better than one of 56.", "plain-20 and plain-56", "plain20", "plain56"),
            ("Shortcuts cure 56 layers.", "ResNet-56 and plain-56", "resnet56", "plain56"),
            ("A residual network of 56 layers is better than one of 20.", "ResNet-56 and -20", "resnet56", "resnet20"),
        )
    ),
    *(
        Comparison("He 2015, section 4.1", claim, "ResNet-34 at 16 pixels, 150 iterations", ours, theirs, TOP1)
        for claim, ours, theirs in (
            ("Shortcuts with projections where the shape changes (B) beat zeros (A).", "resnet34_b", "resnet34_a"),
            ("Projections on all shortcuts (C) beat B.", "resnet34_c", "resnet34_b"),
        )
    ),
]


def main() -> int:
    """Runs the program; returns its exit code."""
    return study.main("digits", list_runs, make_table, draw, judge, score)


def list_runs(size: str) -> list[study.Run]:
    """Returns the first seed of each setting of a recipe, then the other seeds, then the next recipe."""
    if size == "full":
        raise ValueError("this study has no full size: the digits need no GPU; give --size=cpu, or leave it out")
    if size == "reduced":
        shorter = {"num_steps": 8, "log_every_steps": 2}
        return [study.Run("few_images", "lenet5_digits", FEW | shorter, seed) for seed in range(MEMBERS)]
    return [
        study.Run(name, setting.recipe, setting.overrides, seed, setting.program)
        for recipe in ("lenet5_digits", "cifar10_resnet20", "resnet34")  # from the fastest to the slowest
        for seed in range(max(setting.seeds for setting in SETTINGS.values()))
        for name, setting in SETTINGS.items()
        if setting.recipe == recipe and seed < setting.seeds
    ]


def score(files: study.Files) -> int:
    """Evaluates the networks of EVALUATIONS as ensembles and in several crops; returns a failure's exit code, or 0.

    The rows have the name few_images_ensemble and the number of the ensemble as their seed; or few_images_5_views and
    the like, and the seed of the network.
    """
    for setting, evaluations in EVALUATIONS.items():
        workdirs = study.finished(files, setting)
        for number in range(SETTINGS[setting].seeds // MEMBERS):
            seeds = range(number * MEMBERS, (number + 1) * MEMBERS)
            if not set(seeds) <= workdirs.keys():
                continue
            members = {seed: workdirs[seed] for seed in seeds}
            for evaluation, words in evaluations.items():
                if exit_code := evaluate(files, setting, evaluation, words, members, number):
                    return exit_code
    return 0


def evaluate(
    files: study.Files,
    setting: str,
    evaluation: str,
    words: list[str],
    members: dict[int, pathlib.Path],
    number: int,
) -> int:
    """Records one evaluation of some networks of a setting; returns the exit code of a failure, or 0.

    Args:
      files: of the study.
      setting: of SETTINGS.
      evaluation: its name in EVALUATIONS.
      words: the flags of evaluate.py.
      members: the networks' workdirs by their seeds.
      number: of the ensemble.
    """
    name, rows = f"{setting}_{evaluation}", study.read(files)
    seeds = [number] if evaluation == "ensemble" else list(members)
    hardware = json.loads((next(iter(members.values())) / "config.json").read_text())["hardware"]
    about = next((row for row in rows if row["name"] == setting and row["hardware"] == hardware), None)
    if about is None:  # the folder is of a machine that has no rows here
        return 0
    config = about["config"] if "config" in about else study.config_of(about["command"])
    config = {option: value for option, value in config.items() if option != "seed"}
    known = {(row["name"], row["seed"]) for row in rows if study.conditions(row) == study.conditions(about)}
    if {(name, seed) for seed in seeds} <= known:
        return 0
    result, start = files.folder / f"{name}.json", time.monotonic()
    words = ["evaluate.py", *words, *(f"--workdir={workdir.absolute()}" for workdir in members.values())]
    if code := subprocess.run([sys.executable, *words, f"--json={result.absolute()}"], cwd=study.ROOT).returncode:
        return code
    measured = json.loads(result.read_text())
    scores = [measured] if evaluation == "ensemble" else measured["members"]
    for seed, each in zip(seeds, scores, strict=True):
        row = {"name": name, "seed": seed, "model": measured["model"], "dataset": measured["dataset"]}
        row |= {key: each[key] for key in ("accuracy_top1", "loss", "examples")}
        row |= {"seconds": (time.monotonic() - start) / len(seeds), "members": list(members)}
        row |= {"command": shlex.join(["python", *map(portable, words)]), "study_command": own_command()}
        study.record(files, row | {key: about[key] for key in ABOUT} | {"config": config})
    return 0


def make_table(rows: list[study.Row]) -> str:
    """Returns the figures of each setting, with their spread over the seeds."""
    headings = ["setting", "seeds", "iterations", "top-1, %", "training top-1, %", "validation loss, nats"]
    headings += [PLATEAU.unit, SPEED.unit, "seconds a run"]
    return study.table(
        headings,
        (
            [
                name,
                len(group),
                f"{group[0]['steps']:,}" if "steps" in group[0] else "",
                study.spread(map(TOP1.of, group)),
                study.spread(100 * row["train_accuracy_top1"] for row in group) if "curves" in group[0] else "",
                study.spread((row["loss"] for row in group), 3),
                *(
                    study.spread(map(measure.of, group), 0) if "curves" in group[0] else ""
                    for measure in (PLATEAU, SPEED)
                ),
                study.spread((row["seconds"] for row in group), 0),
            ]
            for name, group in study.by_name(rows).items()
        ),
    )


def networks(row: study.Row) -> set[int]:
    """Returns the seeds of the networks that a row evaluates."""
    return set(row["members"]) if row["name"].endswith("ensemble") else {row["seed"]}


def judge(rows: list[study.Row]) -> list[study.Claim]:
    """Returns for each comparison of finished settings whether its claim holds."""
    claims = []
    for paper, claim, run, ours, theirs, (unit, of, sign, digits) in COMPARISONS:
        groups = study.comparable(rows, (ours, theirs))
        if groups:
            values = ([of(row) for row in group] for group in groups)
            pairs = [
                (of(row), statistics.fmean(of(other) for other in groups[1] if networks(other) <= networks(row)))
                for row in groups[0]
                if "members" in row  # both are evaluations of the same networks
            ]
            claims.append(study.compare(paper, claim, run, *values, unit, digits, sign, pairs))
    return claims


def draw(rows: list[study.Row], path: pathlib.Path) -> None:
    """Draws the training loss of some settings over the iterations, a panel for each subject."""
    from matplotlib.figure import Figure

    groups = study.by_name(study.of_one_machine(rows))
    panels = {
        "auxiliary classifier on conv3 of LeNet-5": ("lenet5", "lenet5_aux_0.1", "lenet5_aux_0.3", "lenet5_aux_1"),
        "activation and initial values of LeNet-5": ("lenet5", "lenet5_tanh", "lenet5_relu"),
        "momentum, LeNet-5 with ReLU": ("lenet5_relu", "momentum_0", "momentum_0_rate_0.5"),
        "degradation and its cure, 8 pixels": ("plain20", "plain56", "resnet20", "resnet56"),
        "initial values of 30 plain layers, 8 pixels": ("plain30_he", "plain30_glorot"),
        "small filters and bottlenecks, 179 images": ("filters_7x7", "filters_3x3", "no_bottlenecks", "bottlenecks"),
    }
    figure = Figure(figsize=(11, 12), layout="constrained")
    drawn = [row for name in set().union(*panels.values()) for row in groups.get(name, ())]
    figure.suptitle(f"The handwritten digits: training loss{study.about_bands(drawn) if drawn else ''}")
    for axes, (title, names) in zip(figure.subplots(3, 2).flat, panels.items(), strict=True):
        for name in names:
            if name in groups:
                curves = [row["curves"]["train"] for row in groups[name]]
                study.draw_seeds(axes, [(curve["step"], curve["loss"]) for curve in curves], label=name)
        axes.set_title(title)
        axes.set_xlabel("iterations")
        axes.set_ylabel("loss of the main classifier (nats)")
        axes.set_ylim(0, 3)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    study.save_figure(figure, path)


if __name__ == "__main__":
    flags.set_default(study.SIZE, "cpu")
    command_line.run(main)
