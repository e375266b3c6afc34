"""Names what is on images: python predict.py --workdir=DIR --images=a.jpg,folder/ [--step=N|best].

Prints the five likeliest classes of each image. Or runs arrays that are preprocessed already:
python predict.py --workdir=DIR --inputs=x.npy --logits=y.npz, x of (N, H, W, C) float32, y with the raw `logits`.
"""

import pathlib
import sys

import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from input_pipeline.images import evaluation_transform
from training import command_line, configuration
from training.platform import prepare_platform
from training.state import make_mesh, make_model
from training.step import make_apply
from training.transfer import load_weights

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder that train.py made.", required=True)
_STEP = flags.DEFINE_string("step", None, "The checkpoint's step, or best; default: the newest.")
_IMAGES = flags.DEFINE_list("images", [], "Image files and folders of them.")
_INPUTS = flags.DEFINE_string("inputs", None, "A .npy file of preprocessed float32 images, (N, H, W, C).")
_LOGITS = flags.DEFINE_string("logits", None, "The .npz file that the logits of --inputs go to.")


def main() -> int:
    """Runs the program; returns its exit code."""
    with command_line.refusing_bad_input():
        if bool(_IMAGES.value) == bool(_INPUTS.value) or bool(_INPUTS.value) != bool(_LOGITS.value):
            raise ValueError("give --images=FILES, or --inputs=FILE.npy with --logits=FILE.npz")
        files = [file for name in _IMAGES.value for file in image_files(pathlib.Path(name))]
        mesh = make_mesh()
        config, params, batch_stats, _ = load_weights(
            pathlib.Path(_WORKDIR.value), mesh, command_line.step(_STEP.value)
        )
        prepare_platform(config)
        inputs = read_inputs(pathlib.Path(_INPUTS.value), config) if _INPUTS.value else None

    apply = jax.jit(make_apply(config, make_model(config, training=False)))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def logits_of(images: np.ndarray) -> np.ndarray:
        """Runs images in pieces of one shape, so that the network is compiled once."""
        size = min(config.eval_batch_size, len(images))
        pieces = []
        for first in range(0, len(images), size):
            piece = images[first : first + size]
            padding = [(0, size - len(piece))] + [(0, 0)] * 3
            pieces.append(
                jax.device_get(apply(params, batch_stats, jax.device_put(np.pad(piece, padding), everywhere)))
            )
        return np.concatenate(pieces)[: len(images)]

    if inputs is not None:
        np.savez(_LOGITS.value, logits=logits_of(inputs))
        print(f"logits of {len(inputs)} images are in {_LOGITS.value}")
        return 0

    transform = evaluation_transform(config)
    readable, pixels = [], []
    for file in files:
        try:
            pixels.append(transform(file.read_bytes()))
            readable.append(file)
        except (ValueError, OSError) as error:
            print(f"cannot read {file}: {error}", file=sys.stderr)
    if not readable:
        command_line.refuse("none of the images could be read")
    show(readable, logits_of(np.stack(pixels)), configuration.read_class_names(_WORKDIR.value))
    return 0


def image_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the path itself, or the files in a folder and below, sorted.

    Raises:
      FileNotFoundError: if there is nothing at the path.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give image files or folders")
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def read_inputs(path: pathlib.Path, config) -> np.ndarray:
    """Returns the array of a .npy file.

    Raises:
      ValueError: if it is not (N, H, W, C) as the network takes it.
    """
    array = np.load(path, allow_pickle=False)
    if array.ndim != 4 or array.shape[-1] != config.channels or array.dtype.kind != "f":
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}; {config.model} takes float32 (N, H, W, {config.channels})"
        )
    return array


def show(files: list[pathlib.Path], logits: np.ndarray, class_names: list[str]) -> None:
    """Prints a table of the five likeliest classes of each image."""
    table = Table(title=None)
    table.add_column("image", overflow="fold")
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    for rank in range(best.shape[1]):
        table.add_column(f"{rank + 1}.")
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    for file, row, shares in zip(files, best, probabilities, strict=True):
        table.add_row(str(file), *(f"{class_names[index]} {100 * shares[index]:.1f} %" for index in row))
    Console().print(table)


if __name__ == "__main__":
    command_line.run(main)
