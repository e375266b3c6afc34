"""Times evaluate.py and predict.py beside timm's validate.py and inference.py on the same images and weights.

python benchmarks/against_timm.py --folder=imagenette2-160 --torch_python=PATH --timm=FOLDER, where PATH is a Python
with torch and timm, and FOLDER has validate.py and inference.py from timm's repository. The time is that of the whole
command, from its start to its end. Our compiled program is in the cache, from an earlier run that does not count. The
two sides run alternately, so that a drift of the machine's speed does not change the ratios. A ratio above 1 means that
ours is faster. On a machine that other programs use too, the ratio of the time on the cores says more.
"""

import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from absl import flags

import input_pipeline
import models
from analysis import tables
from benchmarks.commands import own_command
from configs import base
from training import command_line
from training.configuration import resolve_network, resolve_run
from training.environment import describe_environment
from training.export import export_workdir
from training.state import make_model
from training.transfer import save_weights
from training.workdir import write_atomically

_FOLDER = flags.DEFINE(command_line.PATH, "folder", None, "A folder with train/ and val/.", required=True)
_TORCH_PYTHON = flags.DEFINE_string("torch_python", None, "A Python that has torch and timm.", required=True)
_TIMM = flags.DEFINE(command_line.PATH, "timm", None, "A folder with timm's scripts.", required=True)
_MODEL = flags.DEFINE_string("model", "resnet18", "A network that has the same name in timm.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Pixels.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a batch, for both sides.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of each command.")
_JSON = flags.DEFINE(command_line.PATH, "json", None, "A file for the figures.")


def make_workdir(workdir: pathlib.Path) -> int:
    """Makes a workdir with random weights for the dataset of the folder; returns the number of its test images."""
    config = base.get_imagenet_config()
    config.model, config.dataset = _MODEL.value, f"image_folder:{_FOLDER.value}"
    config.image_size, config.eval_resize = _IMAGE_SIZE.value, int(_IMAGE_SIZE.value / 0.875)  # timm's crop-pct
    config.eval_batch_size, config.num_steps, config.train_crop = _BATCH_SIZE.value, 1, "random_resized"
    dataset = input_pipeline.load_dataset(config, "eval")
    config = resolve_run(resolve_network(config), dataset.num_classes, len(dataset))
    save_weights(workdir, config, dataset.class_names, models.initial_values(make_model(config, training=True), seed=0))
    return len(dataset)


class Cost(NamedTuple):
    """What a command took: seconds, seconds of the cores, and its first process's peak memory in gigabytes."""

    seconds: float
    core_seconds: float
    memory: float


def cost(command: list[str]) -> Cost:
    """Runs a command and returns what it took, from its start to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)} failed: {errors[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)


def accuracy_of_timm(results: pathlib.Path) -> float:
    """Returns the top-1 accuracy, in percent, that validate.py wrote."""
    with open(results, newline="") as file:
        return float(next(csv.DictReader(file))["top1"])


def main() -> None:
    """Measures, prints a table, writes JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, workdir = pathlib.Path(temporary), pathlib.Path(temporary) / "run"
        images = make_workdir(workdir)
        weights = export_workdir(workdir, "safetensors").path
        theirs = [f"--data-dir={_FOLDER.value}", "--split=val", f"--model={_MODEL.value}", f"--checkpoint={weights}"]
        theirs += [f"--img-size={_IMAGE_SIZE.value}", "--crop-pct=0.875", "--interpolation=bilinear", "--device=cpu"]
        theirs += [f"--batch-size={_BATCH_SIZE.value}", "--num-classes=10", "--workers=2"]
        some = sorted(map(str, pathlib.Path(_FOLDER.value, "val").rglob("*.JPEG")))[: images // 8]
        (folder / "some").mkdir()
        for number, file in enumerate(some):
            (folder / "some" / f"{number}.jpg").symlink_to(pathlib.Path(file).absolute())
        python, val = sys.executable, pathlib.Path(_FOLDER.value) / "val"
        ours = [f"--workdir={workdir}"]
        commands = {
            "evaluate.py": [python, "evaluate.py", *ours, f"--json={folder / 'ours.json'}"],
            "validate.py": [_TORCH_PYTHON.value, f"{_TIMM.value}/validate.py", *theirs],
            "predict.py": [python, "predict.py", *ours, f"--images={val}", f"--csv={folder / 'ours.csv'}"],
            "inference.py": [_TORCH_PYTHON.value, f"{_TIMM.value}/inference.py", *theirs, "--topk=5"],
            "predict.py, an eighth": [
                python,
                "predict.py",
                *ours,
                f"--images={folder / 'some'}",
                f"--csv={folder / 'some.csv'}",
            ],
        }
        commands["validate.py"].append(f"--results-file={folder / 'theirs.csv'}")
        commands["inference.py"].append(f"--results-dir={folder}")
        for name in ("evaluate.py", "predict.py"):
            cost(commands[name])  # compiles
        loads, costs = [], {name: list[Cost]() for name in commands}
        for _ in range(_ROUNDS.value):
            for name, command in commands.items():
                costs[name].append(cost(command))
                loads.append(os.getloadavg()[0])
        accuracy = 100 * json.loads((folder / "ours.json").read_text())["accuracy_top1"]
        accuracies = accuracy, accuracy_of_timm(folder / "theirs.csv")

    rows = []
    for our, their in (("evaluate.py", "validate.py"), ("predict.py", "inference.py")):
        rates = [images / statistics.median(each.seconds for each in costs[name]) for name in (our, their)]
        ratios = sorted(b.seconds / a.seconds for a, b in zip(costs[our], costs[their], strict=True))
        on_cores = [b.core_seconds / a.core_seconds for a, b in zip(costs[our], costs[their], strict=True)]
        ratio = f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        rows.append(
            [f"{our}, {their}", *(f"{rate:.0f}" for rate in rates), *ratio, f"{statistics.median(on_cores):.2f}"]
        )
    headings = ["programs", "ours, images/s", "timm's, images/s", "ratio", "range", "ratio of core time"]
    command_line.say(tables.markdown(headings, rows))
    command_line.say(f"{images} images; load average {min(loads):.1f} to {max(loads):.1f}")
    command_line.say(f"top-1: ours {accuracies[0]:.2f} %, timm's {accuracies[1]:.2f} %")
    peaks = [max(each.memory for each in costs[name]) for name in ("predict.py", "predict.py, an eighth")]
    command_line.say(f"peak memory of predict.py: {peaks[0]:.2f} GB; with an eighth of the images {peaks[1]:.2f} GB")
    if _JSON.value:
        content = {"command": own_command(), **describe_environment(), "images": images}
        content["costs"] = {name: [each._asdict() for each in found] for name, found in costs.items()}
        content |= {"accuracies_top1": accuracies, "load_average": loads}
        write_atomically(pathlib.Path(_JSON.value), json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    command_line.run(main)
