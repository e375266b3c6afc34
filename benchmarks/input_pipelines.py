"""Compares our input pipeline with tf.data and with Pillow in torch's DataLoader, on the same JPEGs and cores.

python benchmarks/input_pipelines.py --folder=imagenette2-160/train --image_size=224 --mosaics
    --tensorflow_python=TF/bin/python --torch_python=TORCH/bin/python --json=benchmarks/results/input_pipelines.json

TensorFlow and torch have their own environments; a pipeline whose Python is not given is left out. Each pipeline makes
random-resized, flipped crops of --image_size in batches in the host's memory. The pipelines run alternately; each turn
starts the pipeline again and does not count its first batches. An existing JSON file keeps its other rows.
"""

import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from absl import app, flags
from PIL import Image

from analysis import tables
from training.environment import describe_environment
from training.workdir import write_atomically

_FOLDER = flags.DEFINE_string("folder", None, "A folder of JPEGs, in folders or not.", required=True)
_MOSAICS = flags.DEFINE_bool("mosaics", False, "Measure on 500x375 mosaics of four images each: ImageNet's size.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels a side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images of a batch.")
_TENSORFLOW = flags.DEFINE_string("tensorflow_python", None, "A Python with TensorFlow.")
_TORCH = flags.DEFINE_string("torch_python", None, "A Python with torch and torchvision.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each pipeline.")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Seconds of a turn.")
_JSON = flags.DEFINE_string("json", None, "A file for the figures.")

VERSIONS = "import {0}, json; print(json.dumps({{'{0}': {0}.__version__}}))"


def make_mosaics(source: pathlib.Path, folder: pathlib.Path, count: int = 600, quality: int = 95) -> None:
    """Writes images of 500x375 pixels (every fourth 375x500) from four real ones each, enlarged to fill a quarter."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    order = np.random.RandomState(0).permutation(len(files))
    for number in range(count):
        size = (500, 375) if number % 4 else (375, 500)
        mosaic = Image.new("RGB", size)
        for quarter in range(4):
            with Image.open(files[order[(4 * number + quarter) % len(files)]]) as image:
                tile = image.convert("RGB")
            corner = size[0] // 2 * (quarter % 2), size[1] // 2 * (quarter // 2)
            space = -(-size[0] // 2), -(-size[1] // 2)
            scale = max(space[0] / tile.width, space[1] / tile.height)
            tile = tile.resize((-int(-tile.width * scale), -int(-tile.height * scale)), Image.Resampling.BICUBIC)
            mosaic.paste(tile.crop((0, 0, *space)), corner)
        mosaic.save(folder / f"{number:04}.jpg", quality=quality)


def describe_files(folder: pathlib.Path) -> dict:
    """Returns how many JPEGs the folder has, and their mean sides (pixels) and size (kilobytes)."""
    contents = [path.read_bytes() for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")]
    sizes = [Image.open(io.BytesIO(content)).size for content in contents]
    width, height = np.mean(sizes, axis=0)
    kilobytes = np.mean([len(content) for content in contents]) / 1000
    return {"files": len(contents), "mean_width": width, "mean_height": height, "mean_kilobytes": kilobytes}


def measure(folder: pathlib.Path, pythons: dict[str, str]) -> dict[str, list[float]]:
    """Returns the images/s of each pipeline in each of its turns."""
    workers = {}
    for name, python in pythons.items():
        command = [python, str(pathlib.Path(__file__).with_name("input_pipelines_worker.py")), name, str(folder)]
        command += [str(number) for number in (_IMAGE_SIZE.value, _BATCH_SIZE.value, len(os.sched_getaffinity(0)))]
        workers[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
    rates = {name: [] for name in workers}
    for _ in range(_ROUNDS.value):
        for name, worker in workers.items():
            print(_SECONDS.value, file=worker.stdin)
            rates[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return rates


def main(_) -> None:
    """Measures, prints a table, writes JSON."""
    pythons = {"ours": sys.executable}
    pythons |= dict.fromkeys(("tf.data", "tf.data, uint8"), _TENSORFLOW.value) if _TENSORFLOW.value else {}
    pythons |= {"Pillow, DataLoader": _TORCH.value} if _TORCH.value else {}
    environment = describe_environment()
    for python, modules in ((sys.executable, ("cv2", "simplejpeg")), (_TENSORFLOW.value, ("tensorflow",)),
                            (_TORCH.value, ("torch", "torchvision", "PIL"))):  # fmt: skip
        for module in modules if python else ():
            command = [python, "-c", VERSIONS.format(module)]
            environment["versions"] |= json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    with tempfile.TemporaryDirectory() as temporary:
        folder, source = pathlib.Path(_FOLDER.value), pathlib.Path(_FOLDER.value).absolute()
        if _MOSAICS.value:
            folder = pathlib.Path(temporary)
            make_mosaics(source, folder)
        images = f"{'mosaics of ' if _MOSAICS.value else ''}{source.parent.name}/{source.name}"
        setting = {"images": images, **describe_files(folder), "image_size": _IMAGE_SIZE.value}
        setting |= {"batch_size": _BATCH_SIZE.value, "cores": len(os.sched_getaffinity(0))}
        rates = measure(folder, pythons)

    title = "{images} ({files} of {mean_width:.0f}x{mean_height:.0f}, {mean_kilobytes:.0f} kB) to {image_size} pixels"
    rows, lines = [], []
    for name, own in rates.items():
        ratios = sorted(ours / other for ours, other in zip(rates["ours"], own, strict=True))
        median, ratio = statistics.median(own), statistics.median(ratios)
        figures = f"{median:,.0f}", f"{min(own):,.0f} to {max(own):,.0f}", f"{ratio:.2f}"
        lines.append([name, *figures, f"{ratios[0]:.2f} to {ratios[-1]:.2f}"])
        rows.append(
            setting
            | {"pipeline": name, "images_per_second": median, "turns": own, "ours_relative": ratio}
            | {"ours_relative_range": [ratios[0], ratios[-1]]}
        )
    tables.print_boxed(["pipeline", "images/s", "range", "ours, relative", "range"], lines, title.format(**setting))
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(path.read_text())["rows"] if path.exists() else []
        replaced = [(row["images"], row["image_size"], row["pipeline"]) for row in rows]
        kept = [row for row in kept if (row["images"], row["image_size"], row["pipeline"]) not in replaced]
        content = {"command": "python benchmarks/input_pipelines.py", **environment, "rows": kept + rows}
        write_atomically(path, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
