"""Fine-tuning with few images: python benchmarks/studies/fine_tuning.py --weights=FILE --images=FOLDER.

ResNet-20 learns Imagenette's ten classes at 32 pixels from 20 images of each class, by the recipe configs/finetune.py,
from weights of CIFAR-10, whose classes are others, and from random ones. Yosinski, Clune, Bengio, Lipson 2014, How
transferable are features in deep neural networks?, section 4: weights of another task make a network generalise better,
even after it was fine-tuned.

The weights are those of github.com/akamaster/pytorch_resnet_cifar10, resnet20-12fca82f.th. The images are a folder
with train/CLASS and val/CLASS, such as Imagenette's. The first 20 files of each training class by name are used, and
all of val. Random weights have two rates of their own, and no factor for the head.
"""

import pathlib
import shutil
import subprocess
import sys

import study
from absl import flags

from training import command_line

IMAGES_PER_CLASS = 20
SEEDS = {"cpu": 3, "reduced": 1}
SHORT = {"eval_resize": 36, "evaluate_every_epochs": 0, "keep_best": False, "decode_threads": 1, "log_every_steps": 25}
RANDOM = {"init_from": "", "head_rate_factor": 1.0}
RUNS = {
    "whole_network": {},
    "head": {"freeze": ("backbone",)},
    "random_weights_0.05": RANDOM | {"learning_rate": 0.05},
    "random_weights_0.2": RANDOM | {"learning_rate": 0.2},
}

_WEIGHTS = flags.DEFINE_string("weights", None, "The file resnet20-12fca82f.th.")
_IMAGES = flags.DEFINE_string("images", None, "A folder with train/CLASS and val/CLASS.")


def main() -> int:
    """Converts the weights, chooses the images, and runs the study; returns the exit code."""
    if not study.REPORT.value:
        files = study.files_of(f"fine_tuning_{study.SIZE.value}")
        with command_line.refusing_bad_input():
            if study.SIZE.value == "full":
                raise ValueError("this study has no full size: it needs no GPU; give --size=cpu, or leave it out")
            if study.SIZE.value == "cpu":
                choose_images(files.folder)
        if exit_code := convert(files.folder):
            return exit_code
    return study.main("fine_tuning", list_runs, make_table, judge=judge)


def choose_images(folder: pathlib.Path) -> None:
    """Copies the first images of each class into few/train, and all of val into few/val.

    Raises:
      FileNotFoundError: if --images has no such folders.
    """
    if not _IMAGES.value or not (pathlib.Path(_IMAGES.value) / "train").is_dir():
        raise FileNotFoundError(f"--images={_IMAGES.value} has no train/CLASS; give a folder with train/ and val/")
    source, target, temporary = pathlib.Path(_IMAGES.value), folder / "few", folder / "few.part"
    if target.exists():
        return
    shutil.rmtree(temporary, ignore_errors=True)
    for kind in sorted((source / "train").iterdir()):
        (temporary / "train" / kind.name).mkdir(parents=True)
        for image in sorted(kind.iterdir())[:IMAGES_PER_CLASS]:
            shutil.copy(image, temporary / "train" / kind.name)
    shutil.copytree(source / "val", temporary / "val")
    temporary.rename(target)


def convert(folder: pathlib.Path) -> int:
    """Makes a workdir of the weights, if there is none yet; returns the exit code."""
    if (folder / "cifar10" / "checkpoints").exists():
        return 0
    weights = study.untrained_weights(folder) if study.SIZE.value == "reduced" else _WEIGHTS.value
    command = ["convert.py", "--config=configs/cifar10_resnet20.py", f"--weights={weights}"]
    command += [f"--workdir={folder.absolute() / 'cifar10'}"]
    return subprocess.run([sys.executable, study.ROOT / command[0], *command[1:]]).returncode


def list_runs(size: str) -> list[study.Run]:
    """Returns one seed of each run, then the other seeds."""
    folder = study.files_of(f"fine_tuning_{size}").folder.absolute()
    options = SHORT | {"model": "resnet20", "dataset": f"image_folder:{folder / 'few'}"}
    options |= {"init_from": str(folder / "cifar10")}
    if size == "reduced":
        options |= {"dataset": "synthetic", "synthetic_examples": 32, "num_classes": 10, "num_steps": 8}
        options |= {"batch_size": 8, "eval_batch_size": 16, "log_every_steps": 2}
    return [
        study.Run(name, "finetune", options | own, seed) for seed in range(SEEDS[size]) for name, own in RUNS.items()
    ]


def make_table(rows: list[study.Row]) -> str:
    """Returns the accuracies, with their spread over the seeds."""
    return study.table(
        ["run", "trained", "start", "learning rate", "seeds", "top-1, %", "training top-1, %", "seconds a run"],
        (
            [
                name,
                "the head" if group[0]["config"]["freeze"] else "the whole network",
                "CIFAR-10's weights" if group[0]["config"]["init_from"] else "random weights",
                f"{group[0]['config']['learning_rate']:g}",
                len(group),
                study.spread((100 * row["accuracy_top1"] for row in group), 1),
                study.spread((100 * row["train_accuracy_top1"] for row in group), 1),
                study.spread((row["seconds"] for row in group), 0),
            ]
            for name, group in study.by_name(rows).items()
        ),
    )


def judge(rows: list[study.Row]) -> list[study.Claim]:
    """Returns whether the published weights help, against the better of the two rates from random weights."""
    pairs = [study.comparable(rows, ["whole_network", name]) for name in RUNS if RUNS[name].get("init_from") == ""]
    if not all(pairs):
        return []
    ours, theirs = max(pairs, key=lambda pair: study.top1(pair[1]))
    values = [[100 * row["accuracy_top1"] for row in group] for group in (ours, theirs)]
    more, half = study.difference(*values)
    result = f"{' and '.join(map(study.spread, values))} % top-1{study.difference_in_words(more, half, 2)}"
    run = "ResNet-20 fine-tuned on 200 images of Imagenette at 32 pixels, from weights of CIFAR-10 and from random ones"
    claim = "Weights of another task make a network generalise better, even after it was fine-tuned."
    run = f"{run}; {study.seeds_of(*values)}"
    return [study.Claim("Yosinski 2014, section 4", claim, run, result, study.verdict(more, half))]


if __name__ == "__main__":
    flags.set_default(study.SIZE, "cpu")
    command_line.run(main)
