"""Measures what smaller images gain in speed and lose in detail: python benchmarks/max_side.py --folder=DIR.

The folder, with images in class folders, is prepared without and with several values of --max_side. Our loader makes
random-resized crops of each dataset, alternately. Its CPU time is measured, because other programs hardly change it.
The loss of detail is given by the share of crops that are enlarged, and by their mean enlargement. --json=FILE writes
the rows.
"""

import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

import input_pipeline
from analysis import tables
from benchmarks.commands import own_command
from configs import base
from input_pipeline import crops
from input_pipeline.preparation import prepare

_FOLDER = flags.DEFINE_string("folder", None, "Images in class folders.", required=True)
_SIDES = flags.DEFINE_list("sides", ["0", "400", "344", "256", "192"], "Values of --max_side, pixels; 0: unchanged.")
_IMAGE_SIZES = flags.DEFINE_list("image_sizes", ["224", "128"], "Sides of the crops after resizing, pixels.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each dataset.")
_BATCHES = flags.DEFINE_integer("batches", 15, "Batches of 64 images in a turn.")
_JSON = flags.DEFINE_string("json", None, "A file for the figures.")


def make_config(data_dir: str, side: int, image_size: int) -> ConfigDict:
    """Returns ImageNet's options, with random-resized crops from one of the datasets."""
    config = base.get_imagenet_config()
    name = pathlib.Path(_FOLDER.value).resolve().name.lower()
    config.update({"dataset": f"{name}_max_side_{side}" if side else name, "data_dir": data_dir})
    config.update({"train_crop": "random_resized", "image_size": image_size, "channels": 3, "batch_size": 64})
    return config


def turn(config: ConfigDict) -> float:
    """Returns the images per second of CPU time."""
    dataset = input_pipeline.load_dataset(config, "train")
    with input_pipeline.train_batches(dataset, config) as batches:
        for _ in range(config.prefetch_batches + 1):
            next(batches)
        start = time.process_time()
        for _ in range(_BATCHES.value):
            next(batches)
        return _BATCHES.value * config.batch_size / (time.process_time() - start)


def describe(config: ConfigDict) -> dict[str, float]:
    """Returns the mean kilobytes of an image, and the statistics of its random-resized crops."""
    dataset = input_pipeline.load_dataset(config, "train")
    encoded = [dataset[record][0] for record in range(len(dataset))]
    sizes = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE).shape for data in encoded]
    random, enlargements = np.random.default_rng(0), []
    for height, width in sizes:
        for uniforms in random.random((20, crops.UNIFORMS)):
            box = crops.random_resized_box(height, width, config.crop_area, config.crop_aspect, uniforms)
            enlargements.append(config.image_size / (box[2] * box[3]) ** 0.5)
    return {
        "kilobytes": round(statistics.mean(map(len, encoded)) / 1000, 1),
        "enlarged_share": round(float(np.mean(np.array(enlargements) > 1)), 3),
        "mean_enlargement": round(float(np.exp(np.mean(np.log(enlargements)))), 3),
    }


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    logging.set_verbosity(logging.ERROR)  # TFDS logs each dataset that it opens
    with tempfile.TemporaryDirectory() as data_dir:
        for side in map(int, _SIDES.value):
            prepare(_FOLDER.value, data_dir=data_dir, max_side=side)
        keys = [(int(side), int(size)) for size in _IMAGE_SIZES.value for side in _SIDES.value]
        configs = {key: make_config(data_dir, *key) for key in keys}
        runs = {key: [] for key in keys}
        for _ in range(_ROUNDS.value):
            for key, config in configs.items():
                runs[key].append(turn(config))
        rows = [
            {"max_side": key[0], "image_size": key[1], "images_per_core_second": round(statistics.median(runs[key]))}
            | {"runs": [round(value) for value in runs[key]]}
            | describe(configs[key])
            for key in keys
        ]
    columns = [column for column in rows[0] if column != "runs"]
    tables.print_boxed(columns, [[str(row[column]) for column in columns] for row in rows])
    if _JSON.value:
        hardware = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "opencv": cv2.__version__}
        content = {"command": own_command(), "hardware": hardware, "rows": rows}
        pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
