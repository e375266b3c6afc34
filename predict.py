"""Names what is on images: python predict.py --workdir=DIR --images=a.jpg,folder/ [--step=N|best].

Prints the five likeliest classes of each image. Or runs arrays that are preprocessed already:
python predict.py --workdir=DIR --inputs=x.npy --logits=y.npz, x of (N, H, W, C) float32, y with the raw `logits`.
"""

import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from input_pipeline.images import evaluation_transform
from training import command_line
from training.platform import compiler_options, prepare_platform
from training.state import make_mesh, make_model
from training.step import make_apply
from training.transfer import load_weights
from training.workdir import read_class_names

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder that train.py made.", required=True)
_STEP = flags.DEFINE_string("step", None, "The checkpoint's step, or best; default: the newest.")
_IMAGES = flags.DEFINE_list("images", [], "Image files and folders of them.")
_INPUTS = flags.DEFINE_string("inputs", None, "A .npy file of preprocessed float32 images, (N, H, W, C).")
_LOGITS = flags.DEFINE_string("logits", None, "The .npz file that the logits of --inputs go to.")


def main() -> None:
    """Runs the program."""
    with command_line.refusing_bad_input():
        if bool(_IMAGES.value) == bool(_INPUTS.value) or bool(_INPUTS.value) != bool(_LOGITS.value):
            raise ValueError("give --images=FILES, or --inputs=FILE.npy with --logits=FILE.npz")
        files = [file for name in _IMAGES.value for file in image_files(pathlib.Path(name))]
        if _IMAGES.value and not files:
            raise FileNotFoundError(f"there are no files in {', '.join(_IMAGES.value)}; give images")
        mesh = make_mesh()
        config, params, batch_stats, _ = load_weights(
            pathlib.Path(_WORKDIR.value), mesh, command_line.step(_STEP.value)
        )
        prepare_platform(config)
        apply = jax.jit(
            make_apply(config, make_model(config, training=False)), compiler_options=compiler_options(config)
        )
        if _INPUTS.value:
            inputs, target = read_inputs(pathlib.Path(_INPUTS.value), config), pathlib.Path(_LOGITS.value)
            jax.eval_shape(apply, params, batch_stats, inputs[:1])  # refuses a size that is too small
            if target.suffix != ".npz" or not target.absolute().parent.is_dir():
                raise ValueError(f"--logits={target} is no .npz file in a folder that exists; name one")

    everywhere = NamedSharding(mesh, PartitionSpec())
    batch_size = min(config.eval_batch_size, len(inputs if _INPUTS.value else files))

    def logits_of(images: np.ndarray) -> np.ndarray:
        """Runs up to a batch of images, padded to one shape so that the network is compiled once."""
        padding = [(0, batch_size - len(images))] + [(0, 0)] * (images.ndim - 1)
        padded = jax.device_put(np.pad(images, padding), everywhere)
        return jax.device_get(apply(params, batch_stats, padded))[: len(images)]

    if _INPUTS.value:
        pieces = [logits_of(inputs[first : first + batch_size]) for first in range(0, len(inputs), batch_size)]
        np.savez(target, logits=np.concatenate(pieces))
        return print(f"logits of {len(inputs)} images are in {target}")

    transform, readable, logits = evaluation_transform(config), [], []
    for first in range(0, len(files), batch_size):
        pairs = read_images(files[first : first + batch_size], transform)
        if pairs:
            readable += [file for file, _ in pairs]
            logits.append(logits_of(np.stack([pixels for _, pixels in pairs])))
    if not readable:
        command_line.refuse("none of the images could be read")
    show(readable, np.concatenate(logits), read_class_names(_WORKDIR.value))


def image_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the path itself, or the files in a folder and below, sorted.

    Raises:
      FileNotFoundError: if there is nothing at the path.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give image files or folders")
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def read_images(
    files: list[pathlib.Path], transform: Callable[[bytes], np.ndarray]
) -> list[tuple[pathlib.Path, np.ndarray]]:
    """Returns the files that can be read, each with its pixels, uint8 (H, W, C), and names the others on stderr."""
    pairs = []
    for file in files:
        try:
            pairs.append((file, transform(file.read_bytes())))
        except (ValueError, OSError) as error:
            print(f"cannot read {file}: {error}", file=sys.stderr)
    return pairs


def read_inputs(path: pathlib.Path, config: ConfigDict) -> np.ndarray:
    """Returns the array of a .npy file.

    Raises:
      ValueError: if it is not float32 (N, H, W, C) as the network takes it.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{path} is empty; give a .npy file") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays; give a .npy file of one")
    if array.ndim != 4 or not len(array) or array.shape[-1] != config.channels or array.dtype not in ("f4", "f8"):
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}; {config.model} takes float32 (N, H, W, {config.channels})"
        )
    return array


def show(files: list[pathlib.Path], logits: np.ndarray, class_names: list[str]) -> None:
    """Prints a table of the five likeliest classes of each image."""
    table = Table()
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
