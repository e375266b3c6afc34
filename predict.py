"""Classifies images: python predict.py --workdir=DIR --images=a.jpg,folder/,'photos/*.png' [--step=N|best] [--top=5].

Prints the likeliest classes of each image: a table on a terminal; into a pipe or a file one line for each image, with
tabs between the name, the classes and their probabilities. --images=- reads the names from standard input. If an image
cannot be read, the program names it on standard error, goes on, and ends with exit code 1. For arrays that are
preprocessed already: python predict.py --workdir=DIR --inputs=x.npy --logits=y.npz, where x.npy holds (N, H, W, C)
float32 and the program writes the array `logits` to y.npz.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


import contextlib
import csv
import io
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

import jax
import numpy as np
from absl import flags

from analysis.tables import Display
from input_pipeline.batches import num_decode_threads
from input_pipeline.files import most_bytes, printable
from input_pipeline.image_files import decoded_batches, named_images
from input_pipeline.images import evaluation_transform
from training import command_line
from training.inference import one_behind
from training.output import messages, results
from training.platform import prepare_platform
from training.prediction import likeliest_classes, make_predictor, predict_arrays, read_inputs
from training.remote_workdir import local_copy
from training.state import make_mesh
from training.transfer import load_weights
from training.workdir import open_atomically, read_class_names, write_atomically

_WORKDIR = flags.DEFINE(command_line.PATH_OR_URL, "workdir", None, "The folder that train.py made.", required=True)
_STEP = flags.DEFINE_string("step", None, "The checkpoint's step, or best; default: the newest.")
_IMAGES = flags.DEFINE_multi_string(
    "images", [], "Image files, folders and patterns, with commas between them; -: file names on standard input."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time; default: as in training.", lower_bound=1)
_TOP = flags.DEFINE_integer("top", 5, "How many classes to show for each image.", lower_bound=1)
_CSV = flags.DEFINE(command_line.PATH, "csv", None, "A CSV file for the result; - for standard output.")
_JSON = flags.DEFINE(command_line.PATH, "json", None, "A JSON file for the result; - for standard output.")
_INPUTS = flags.DEFINE(command_line.PATH, "inputs", None, "A .npy file of preprocessed float32 images, (N, H, W, C).")
_LOGITS = flags.DEFINE(command_line.PATH, "logits", None, "The .npz file for the logits of --inputs.")

ROWS_IN_A_TABLE = 1000
"""Longer results are printed as several tables, so that they need not fit into memory."""

Likeliest = list[tuple[str, float]]
Show = Callable[[str, Likeliest], None]


def main() -> int:
    """Runs the program; returns its exit code."""
    with command_line.refusing_bad_input():
        check_flags()
        mesh, step = make_mesh(), command_line.step(_STEP.value)
        names = [name for value in _IMAGES.value for name in separate(value)]
        files = named_images(names)
        with local_copy(_WORKDIR.value, step) as workdir:
            config, params, batch_stats, _ = load_weights(workdir, mesh, step)
            class_names = read_class_names(workdir)
        config.eval_batch_size = _BATCH_SIZE.value or config.eval_batch_size
        prepare_platform(config)
        inputs = read_inputs(pathlib.Path(_INPUTS.value), config) if _INPUTS.value else None
    predict = make_predictor(config, params, batch_stats, mesh, preprocessed=inputs is not None)

    def batch_size(images: int) -> int:
        """Returns the largest useful batch size, a multiple of the number of devices."""
        return -(-min(config.eval_batch_size, images) // mesh.size) * mesh.size

    if inputs is not None:
        file = io.BytesIO()
        np.savez(file, logits=predict_arrays(predict, inputs, batch_size(len(inputs))))
        write_atomically(pathlib.Path(str(_LOGITS.value)), file.getvalue())
        command_line.say(f"logits of {len(inputs)} images are in {_LOGITS.value}")
        return 0

    total = 0 if "-" in names else len(files := list(files))
    first = list(itertools.islice(files := iter(files), config.eval_batch_size))
    if not first:
        command_line.refuse("standard input names no files; give the name of an image on each line")
    shape = batch_size(len(first)), config.image_size, config.image_size, config.channels
    batches = decoded_batches(
        itertools.chain(first, files),
        evaluation_transform(config),
        shape,
        most_bytes(config.max_image_pixels),
        num_decode_threads(config),
    )
    unreadable = 0
    with results(), contextlib.closing(batches), output(total) as (show, display):
        for batch, logits in one_behind((batch, predict(batch.images)) for batch in batches):
            for file, reason in batch.errors:
                with messages(sys.stderr):
                    print(printable(f"cannot read {file}: {reason}"), file=sys.stderr)
            logits = jax.device_get(logits)[: len(batch.files)]
            if np.isnan(logits).any():
                command_line.refuse(f"the network of {_WORKDIR.value} computes NaN; give an earlier --step")
            likeliest = likeliest_classes(logits, class_names, _TOP.value)
            for file, classes in zip(batch.files, likeliest, strict=True):
                show(file, classes)
            sys.stdout.flush()
            unreadable += len(batch.errors)
            display.advance(len(batch.files) + len(batch.errors))
    return 1 if unreadable else 0


def check_flags() -> None:
    """Raises an error for flags that contradict each other, and for files that cannot be written."""
    if bool(_IMAGES.value) == bool(_INPUTS.value) or bool(_INPUTS.value) != bool(_LOGITS.value):
        raise ValueError("give --images=FILES, or --inputs=FILE.npy with --logits=FILE.npz")
    if _CSV.value and _JSON.value:
        raise ValueError("--csv and --json are both given; give one of the two")
    if _INPUTS.value and (_CSV.value or _JSON.value or flags.FLAGS["top"].present):
        raise ValueError("--csv, --json and --top have no effect on --inputs, whose result is --logits; leave them out")
    if not _INPUTS.value and not any(map(separate, _IMAGES.value)):
        raise ValueError("--images is empty; give image files or folders, or - for names on standard input")
    for name, value in (("csv", _CSV.value), ("json", _JSON.value), ("logits", _LOGITS.value)):
        if value not in (None, "-") and not pathlib.Path(value).absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of --{name}={value} does not exist; make it first")
    if _LOGITS.value and pathlib.Path(_LOGITS.value).suffix != ".npz":
        raise ValueError(f"--logits={_LOGITS.value} is no .npz file; name one")


def separate(value: str) -> list[str]:
    """Returns the names between the commas of a value, or the value itself if there is a file of that name."""
    return [value] if os.path.exists(value) else [name for name in value.split(",") if name]


@contextlib.contextmanager
def output(total: int) -> Iterator[tuple[Show, Display]]:
    """Gives the function that shows the result of an image, and the progress bar of `total` images; 0: no bar."""
    to_file, on_terminal = _CSV.value or _JSON.value, sys.stdout.isatty()
    with Display(total, to_errors=bool(to_file) or not on_terminal) as display:
        if to_file:
            if to_file == "-" and isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="surrogateescape")  # as open_atomically writes names that are not UTF-8
            written = contextlib.nullcontext(sys.stdout) if to_file == "-" else open_atomically(pathlib.Path(to_file))
            with written as file, (csv_rows if _CSV.value else json_objects)(file) as show:
                yield show, display
        elif on_terminal:
            with tables_on(display) as show:
                yield show, display
        else:
            yield print_line, display


def print_line(file: str, likeliest: Likeliest) -> None:
    """Prints one line, whatever characters the names contain."""
    print("\t".join([printable(file), *(f"{printable(name)}\t{share:.4f}" for name, share in likeliest)]))


@contextlib.contextmanager
def tables_on(display: Display) -> Iterator[Show]:
    """Gives a function that collects rows for tables of at most ROWS_IN_A_TABLE rows."""
    rows: list[list[str]] = []

    def print_rows() -> None:
        if rows:
            display.boxed(["image", *(f"{rank}." for rank in range(1, len(rows[0])))], rows)
            rows.clear()

    def show(file: str, likeliest: Likeliest) -> None:
        rows.append([file, *(f"{name} {100 * share:.1f} %" for name, share in likeliest)])
        if len(rows) == ROWS_IN_A_TABLE:
            print_rows()

    yield show
    print_rows()


@contextlib.contextmanager
def csv_rows(file: TextIO) -> Iterator[Show]:
    """Gives a function that writes a row for each image."""
    writer, heading = csv.writer(file, lineterminator="\n"), True

    def show(name: str, likeliest: Likeliest) -> None:
        nonlocal heading
        if heading:
            ranks = range(1, len(likeliest) + 1)
            writer.writerow(["file", *(f"{column}_{rank}" for rank in ranks for column in ("class", "probability"))])
            heading = False
        writer.writerow([name, *itertools.chain.from_iterable((label, f"{share:.6g}") for label, share in likeliest)])

    yield show


@contextlib.contextmanager
def json_objects(file: TextIO) -> Iterator[Show]:
    """Gives a function that writes an object for each image; together they are one JSON array."""
    separator = "["

    def show(name: str, likeliest: Likeliest) -> None:
        nonlocal separator
        classes = [{"class": label, "probability": round(share, 6)} for label, share in likeliest]
        file.write(f"{separator}\n{json.dumps({'file': name, 'classes': classes})}")
        separator = ","

    yield show
    file.write("[]\n" if separator == "[" else "\n]\n")


if __name__ == "__main__":
    command_line.run(main)
