"""Fine-tuning with few images: python benchmarks/studies/fine_tuning.py --weights=FILE --images=FOLDER.

ResNet-20 learns Imagenette's ten classes at 32 pixels from 20 images of each class, by the recipe configs/finetune.py,
from weights of CIFAR-10, whose classes are others, and from random ones. Yosinski, Clune, Bengio, Lipson 2014, How
transferable are features in deep neural networks?, section 4: weights of another task make a network generalise better,
even after it was fine-tuned.

The weights are those of github.com/akamaster/pytorch_resnet_cifar10, resnet20-12fca82f.th. The images are a folder
with train/CLASS and val/CLASS, such as Imagenette's. The first 20 files of each training class by name are used, and
all of val. From random weights all layers have one rate, the better of two; from published ones the head's is ten times
that of the other layers.
"""

import json
import pathlib
import shutil

import study
from absl import flags

from training import command_line
from training.workdir import write_atomically

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

_WEIGHTS = flags.DEFINE(command_line.PATH, "weights", None, "The file resnet20-12fca82f.th.")
_IMAGES = flags.DEFINE(command_line.PATH, "images", None, "A folder with train/CLASS and val/CLASS.")


def main() -> int:
    """Converts the weights, chooses the images, and runs the study; returns the exit code."""
    files, reduced = study.files_of(f"fine_tuning_{study.SIZE.value}"), study.SIZE.value == "reduced"
    if not study.REPORT.value:
        with command_line.refusing_bad_input():
            if not reduced:
                check_flags()
                remember_sources(files.folder)
                choose_images(files.folder)
            weights = study.untrained_weights(files.folder) if reduced else pathlib.Path(_WEIGHTS.value)
        if exit_code := study.convert_weights(weights, files.folder / "cifar10", {}):
            return exit_code
    return study.main("fine_tuning", list_runs, make_table, judge=judge)


def check_flags() -> None:
    """Raises ValueError or OSError if a flag does not fit the study."""
    if study.SIZE.value == "full":
        raise ValueError("this study has no full size: it needs no GPU; give --size=cpu, or leave it out")
    if study.DATASET.value:
        raise ValueError(f"--dataset={study.DATASET.value} has no effect: the study makes its dataset of --images")
    if not _WEIGHTS.value or not pathlib.Path(_WEIGHTS.value).is_file():
        raise FileNotFoundError(f"--weights={_WEIGHTS.value or ''} is no file; give resnet20-12fca82f.th")
    for name in ("train", "val"):
        if not _IMAGES.value or not (pathlib.Path(_IMAGES.value) / name).is_dir():
            raise FileNotFoundError(
                f"--images={_IMAGES.value or ''} has no folder {name}; give one with train/CLASS and val/CLASS"
            )


def remember_sources(folder: pathlib.Path) -> None:
    """Stores where the weights and the images come from, beside the runs.

    Raises:
      ValueError: if the folder's runs are of others.
    """
    file = folder / "sources.json"
    flags_given = {"weights": _WEIGHTS, "images": _IMAGES}
    sources = {name: str(pathlib.Path(flag.value).resolve()) for name, flag in flags_given.items()}
    before = json.loads(file.read_text()) if file.exists() else sources
    for name, path in sources.items():
        if path != before[name]:
            raise ValueError(f"the runs in {folder} are of --{name}={before[name]}; give that, or another --workdir")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(sources) + "\n")


def choose_images(folder: pathlib.Path) -> None:
    """Copies the first images of each class into few/train, and all of val into few/val, if that was not done yet."""
    source, target, temporary = pathlib.Path(_IMAGES.value), folder / "few", folder / "few.part"
    if target.exists():
        return
    shutil.rmtree(temporary, ignore_errors=True)
    for kind in sorted(path for path in (source / "train").iterdir() if path.is_dir()):
        (temporary / "train" / kind.name).mkdir(parents=True)
        for image in sorted(kind.iterdir())[:IMAGES_PER_CLASS]:
            shutil.copy(image, temporary / "train" / kind.name)
    shutil.copytree(source / "val", temporary / "val")
    temporary.rename(target)


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
    headings = ["run", "trained", "start", "learning rate", "of the head", "seeds"]
    headings += ["top-1, %", "training top-1, %", "seconds a run"]
    lines = []
    for name, group in study.by_name(rows).items():
        config = group[0]["config"]
        lines.append(
            [
                name,
                "the head" if config["freeze"] else "the whole network",
                "CIFAR-10's weights" if config["init_from"] else "random weights",
                "" if config["freeze"] else f"{config['learning_rate']:g}",
                f"{config['learning_rate'] * config['head_rate_factor']:g}",
                len(group),
                study.spread((100 * row["accuracy_top1"] for row in group), 1),
                study.spread((100 * row["train_accuracy_top1"] for row in group), 1),
                study.spread((row["seconds"] for row in group), 0),
            ]
        )
    return study.table(headings, lines)


def judge(rows: list[study.Row]) -> list[study.Claim]:
    """Returns whether the published weights help, against the better of the two rates from random weights."""
    pairs = [study.comparable(rows, ["whole_network", name]) for name in RUNS if RUNS[name].get("init_from") == ""]
    if not all(pairs):
        return []
    best = max(pairs, key=lambda pair: study.top1(pair[1]))
    steps = best[0][0]["steps"]
    run = f"ResNet-20 on {10 * IMAGES_PER_CLASS} images of Imagenette at 32 pixels, {steps} iterations, from"
    return [
        study.compare(
            "Yosinski 2014, section 4",
            "Weights of another task make a network generalise better, even after it was fine-tuned.",
            f"{run} CIFAR-10's weights and from random ones, the better of two rates",
            *([100 * row["accuracy_top1"] for row in group] for group in best),
            "% top-1",
        )
    ]


if __name__ == "__main__":
    flags.set_default(study.SIZE, "cpu")
    command_line.run(main)
