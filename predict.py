"""Classifies images: python predict.py --workdir=DIR --images=a.jpg,folder/ [--step=N|best].

Prints the five likeliest classes of each image. For arrays that are preprocessed already:
python predict.py --workdir=DIR --inputs=x.npy --logits=y.npz, where x.npy holds (N, H, W, C) float32 and the program
writes the array `logits` to y.npz.
"""

import pathlib
import sys
from collections.abc import Callable

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from analysis import tables
from input_pipeline.files import local_path, most_bytes, printable, read_file, regular_files
from input_pipeline.images import evaluation_transform
from training import command_line
from training.platform import prepare_platform
from training.prediction import likeliest_classes, make_predictor, read_inputs
from training.state import make_mesh
from training.transfer import load_weights
from training.workdir import read_class_names

_WORKDIR = flags.DEFINE(command_line.PATH, "workdir", None, "The folder that train.py made.", required=True)
_STEP = flags.DEFINE_string("step", None, "The checkpoint's step, or best; default: the newest.")
_IMAGES = flags.DEFINE_list("images", [], "Image files and folders of them.")
_INPUTS = flags.DEFINE(command_line.PATH, "inputs", None, "A .npy file of preprocessed float32 images, (N, H, W, C).")
_LOGITS = flags.DEFINE(command_line.PATH, "logits", None, "The .npz file for the logits of --inputs.")

Predictor = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Runs the program."""
    with command_line.refusing_bad_input():
        if bool(_IMAGES.value) == bool(_INPUTS.value) or bool(_INPUTS.value) != bool(_LOGITS.value):
            raise ValueError("give --images=FILES, or --inputs=FILE.npy with --logits=FILE.npz")
        files = [file for name in _IMAGES.value for file in image_files(local_path(name))]
        if _IMAGES.value and not files:
            raise FileNotFoundError(f"there are no files in {', '.join(_IMAGES.value)}; give images")
        mesh, step = make_mesh(), command_line.step(_STEP.value)
        config, params, batch_stats, _ = load_weights(pathlib.Path(_WORKDIR.value), mesh, step)
        prepare_platform(config)
        if _INPUTS.value:
            inputs, target = read_inputs(pathlib.Path(_INPUTS.value), config), pathlib.Path(_LOGITS.value or "")
            if target.suffix != ".npz" or not target.absolute().parent.is_dir():
                raise ValueError(f"--logits={target} is no .npz file in a folder that exists; name one")

    batch_size = min(config.eval_batch_size, len(inputs if _INPUTS.value else files))
    predict = make_predictor(config, params, batch_stats, mesh, batch_size, preprocessed=bool(_INPUTS.value))
    if _INPUTS.value:
        np.savez(target, logits=predict(inputs))
        command_line.say(f"logits of {len(inputs)} images are in {target}")
    else:
        predict_files(files, config, predict, batch_size)


def predict_files(files: list[pathlib.Path], config: ConfigDict, predict: Predictor, batch_size: int) -> None:
    """Prints a table of the five likeliest classes of each image."""
    class_names = read_class_names(pathlib.Path(_WORKDIR.value))
    transform, rows = evaluation_transform(config), []
    for first in range(0, len(files), batch_size):
        pairs = read_images(files[first : first + batch_size], transform, most_bytes(config.max_image_pixels))
        if pairs:
            classes = likeliest_classes(predict(np.stack([pixels for _, pixels in pairs])), class_names)
            for (file, _), likeliest in zip(pairs, classes, strict=True):
                rows.append([str(file), *(f"{name} {100 * share:.1f} %" for name, share in likeliest)])
    if not rows:
        command_line.refuse("none of the images could be read")
    tables.print_boxed(["image", *(f"{rank}." for rank in range(1, len(rows[0])))], rows)


def image_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the path itself if it is a file, or the files in the folder and below, sorted.

    Raises:
      FileNotFoundError: if the path is neither a file nor a folder.
    """
    if not (path.is_file() or path.is_dir()):
        raise FileNotFoundError(f"{path} is no file and no folder; give image files or folders")
    return [path] if path.is_file() else [pathlib.Path(file) for file in regular_files(path, set())[0]]


def read_images(
    files: list[pathlib.Path], transform: Callable[[bytes], np.ndarray], max_bytes: int
) -> list[tuple[pathlib.Path, np.ndarray]]:
    """Returns the readable files with their pixels, uint8 (H, W, C); reports the other files on standard error."""
    pairs = []
    for file in files:
        try:
            pairs.append((file, transform(read_file(file, max_bytes))))
        except (ValueError, OSError) as error:
            print(printable(f"cannot read {file}: {error}"), file=sys.stderr)
    return pairs


if __name__ == "__main__":
    command_line.run(main)
