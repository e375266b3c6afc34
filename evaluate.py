"""Evaluates checkpoints exactly: python evaluate.py --workdir=DIR [--workdir=DIR2 ...] [--views=10] [--report=DIR3].

Every image of the split counts once. The default is the newest checkpoint; if the run kept averaged weights, these are
evaluated. Several --workdir are an ensemble: their probabilities are averaged. Classes are matched by their names, so
--dataset may have only some of the network's classes, in any order.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


import contextlib
import csv
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

import input_pipeline
from analysis import evaluation_report, tables
from configs import base
from input_pipeline.datasets import image_folder
from input_pipeline.files import is_remote, local_path
from input_pipeline.image_folder import has_split_folders
from training import command_line
from training.checkpoints import check_same_arrays
from training.classification import Tally, mean_of
from training.platform import prepare_platform
from training.processes import check_same_work, join_processes
from training.remote_workdir import local_copy
from training.scoring import (
    Inputs,
    Member,
    Scores,
    check_classes,
    load_average,
    load_member,
    score,
    with_new_statistics,
)
from training.state import make_mesh
from training.views import VIEWS, at_sizes
from training.workdir import open_atomically, read_config, write_atomically

_WORKDIR = flags.DEFINE_multi(
    command_line.PATH_OR_URL, flags.ArgumentSerializer(), "workdir", None, "A folder that train.py made.", required=True
)
_STEP = flags.DEFINE_string("step", None, "The checkpoint's step, or best; default: the newest.")
_AVERAGE = flags.DEFINE_integer("average", None, "Take the mean of this many newest checkpoints.", lower_bound=2)
_DATASET = flags.DEFINE_string("dataset", None, "Another dataset, as in training; default: the first workdir's.")
_SPLIT = flags.DEFINE_string(
    "split",
    None,
    "train, eval, all or the dataset's own name of a split; default: eval; all if --dataset is another image_folder "
    "without splits.",
)
_DATA_DIR = flags.DEFINE(
    command_line.PATH_OR_URL, "data_dir", None, "The folder of TFDS datasets; default: as in training."
)
_ON_BAD_IMAGE = flags.DEFINE_enum(
    "on_bad_image", None, ["raise", "skip"], "skip: leave damaged images out; default: as in training."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time; default: as in training.", lower_bound=1)
_VIEWS = flags.DEFINE_enum(
    "views", "1", VIEWS, "1: the centre; flip: also mirrored; 5: centre and corners; 10: these, also mirrored."
)
_IMAGE_SIZE = flags.DEFINE_list("image_size", [], "Side of the crop in pixels; several sizes are averaged.")
_RESIZE = flags.DEFINE_list("resize", [], "Shorter side before the crop in pixels; several are averaged; 0: no crop.")
_JSON = flags.DEFINE(command_line.PATH, "json", None, "A file for the result; - for standard output.")
_CSV = flags.DEFINE(command_line.PATH, "csv", None, "A file for the label, prediction and probabilities of each image.")
_REPORT = flags.DEFINE(command_line.PATH, "report", None, "A folder for pictures: confusion, calibration, mistakes.")


def main() -> None:
    """Runs the program."""
    with command_line.refusing_bad_input():
        join_processes(base.OPTIONS["process_timeout_seconds"].default)
        check_flags()
        members, mesh = load_members()
        config, class_names = members[0].config, members[0].class_names
        check_classes(members)
        # The run may have used another number of devices.
        config.eval_batch_size = -(-(_BATCH_SIZE.value or config.eval_batch_size) // mesh.size) * mesh.size
        config.data_dir = _DATA_DIR.value or config.data_dir
        config.on_bad_image = _ON_BAD_IMAGE.value or config.on_bad_image
        tested = config.copy_and_resolve_references()
        if other := is_other_dataset(config.dataset):
            tested.dataset, tested.eval_split = _DATASET.value, None
        sizes = pixels("image_size", _IMAGE_SIZE.value), pixels("resize", _RESIZE.value)
        configs = [tested, *(member.config for member in members[1:])]
        inputs = Inputs([at_sizes(each, *sizes, _VIEWS.value) for each in configs], _VIEWS.value)
        if _JSON.value != "-":
            networks = " and ".join(f"{member.config.model} of {member.workdir}" for member in members)
            command_line.say(f"evaluating {networks}")
        split = _SPLIT.value or ("all" if other and has_no_splits(tested) else "eval")
        datasets = [input_pipeline.load_dataset(loaded, split) for loaded in inputs.loaded]
        classes = input_pipeline.match_classes(datasets[0].class_names, class_names)
        datasets = [input_pipeline.with_classes_of(dataset, class_names) for dataset in datasets]
        check_same_work(tested, datasets, views=_VIEWS.value, sizes=sizes, steps=[member.step for member in members])
        check_same_arrays([(member.params, member.batch_stats) for member in members])
        if _AVERAGE.value:
            members = [with_new_statistics(member, mesh, watched) for member in members]

    try:
        ensemble = Tally(len(class_names), classes, evaluation_report.MISTAKES if _REPORT.value else 0)
        alone = [Tally(len(class_names), classes) for _ in members[1:] and members]
        batches = -(-len(datasets[0]) // config.eval_batch_size)
        with tables.Display(batches, to_errors=_JSON.value == "-") as display, csv_rows(datasets[0]) as add_rows:
            for scores in score(members, inputs, datasets, mesh):
                together = mean_of(scores.log_probabilities)
                ensemble.add(together, scores.labels, scores.records)
                for tally, log_probabilities in zip(alone, scores.log_probabilities, strict=False):  # no or all members
                    tally.add(log_probabilities, scores.labels, scores.records)
                add_rows(scores, together)
                display.advance()
        result = result_of(members, inputs, datasets[0], ensemble, alone)
        if _JSON.value == "-":
            command_line.say(json.dumps(result, indent=2))
        else:
            describe(result, left_out=len(datasets[0]) - ensemble.examples)
        if _JSON.value not in (None, "-"):
            write_atomically(pathlib.Path(_JSON.value), json.dumps(result, indent=2) + "\n")
        if _REPORT.value:
            evaluation_report.write(pathlib.Path(_REPORT.value), ensemble, datasets[0], inputs.loaded[0])
    except (input_pipeline.DamagedImageError, FloatingPointError) as error:
        command_line.refuse(str(error))
    except input_pipeline.UnreadableImageError as error:
        command_line.machine_failed(str(error))
    except OSError as error:
        command_line.machine_failed(f"the result cannot be written: {error}")


def load_members() -> tuple[list[Member], Mesh]:
    """Returns the networks of the workdirs, and the devices on which they are."""
    step, count = command_line.step(_STEP.value), _AVERAGE.value
    with contextlib.ExitStack() as copies:
        folders = [copies.enter_context(local_copy(each, step, count or 1)) for each in _WORKDIR.value]
        prepare_platform(read_config(folders[0]))
        mesh = make_mesh()
        members = [
            load_average(folder, mesh, count) if count else load_member(folder, mesh, step) for folder in folders
        ]
    return [member._replace(workdir=name) for member, name in zip(members, _WORKDIR.value, strict=True)], mesh


def watched(batches: Iterable[dict[str, jax.Array]], count: int) -> Iterator[dict[str, jax.Array]]:
    """Yields the training batches of the batch statistics, `count` in all, and moves a progress bar."""
    with tables.Display(count, to_errors=_JSON.value == "-") as display:
        display.begin("batch statistics of the averaged weights")
        for batch in batches:
            yield batch
            display.advance()


def check_flags() -> None:
    """Raises an error for flags that contradict each other, and for files that cannot be written."""
    if _AVERAGE.value and _STEP.value:
        raise ValueError("--average takes the newest checkpoints, so that --step has no effect; leave one of them out")
    for name, value in (("json", _JSON.value), ("csv", _CSV.value)):
        if value not in (None, "-") and not pathlib.Path(value).absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of --{name}={value} does not exist; make it first")
    if _CSV.value == "-":
        raise ValueError("--csv=- is invalid, as standard output is for the result; give a file")
    if _REPORT.value and pathlib.Path(_REPORT.value).is_file():
        raise FileExistsError(f"--report={_REPORT.value} is a file; give a folder")


def is_other_dataset(own: str) -> bool:
    """Returns whether --dataset names another dataset than the run's own; one folder may be written in several ways."""

    def place(name: str) -> str:
        folder = name.removeprefix("image_folder:")
        return name if folder == name or is_remote(folder) else os.path.realpath(local_path(folder))

    return place(_DATASET.value or own) != place(own)


def has_no_splits(config: ConfigDict) -> bool:
    """Returns whether the dataset is a folder of images without splits.

    If the run was trained on another dataset, all images of such a folder are evaluated.
    """
    return config.dataset.startswith("image_folder:") and not has_split_folders(local_path(image_folder(config)))


def pixels(flag: str, values: list[str]) -> list[int]:
    """Returns the values of a flag as numbers of pixels."""
    for value in values:
        if not value.isdecimal():
            raise ValueError(f"--{flag}={','.join(values)} is invalid; give numbers of pixels with commas between them")
    return list(map(int, values))


@contextlib.contextmanager
def csv_rows(dataset: input_pipeline.Dataset) -> Iterator[Callable[[Scores, np.ndarray], None]]:
    """Gives a function that adds a row for each image to the file of --csv, if there is one."""
    if not _CSV.value:
        yield lambda scores, together: None
        return
    names = dataset.class_names
    with open_atomically(pathlib.Path(_CSV.value)) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "label", "prediction", *names])

        def add_rows(scores: Scores, together: np.ndarray) -> None:
            for record, label, row in zip(scores.records, scores.labels, together, strict=True):
                shares = (f"{share:.6g}" for share in np.exp(row))
                writer.writerow([dataset.file_name(int(record)), names[label], names[row.argmax()], *shares])

        yield add_rows


def result_of(
    members: list[Member], inputs: Inputs, dataset: input_pipeline.Dataset, ensemble: Tally, alone: list[Tally]
) -> dict[str, Any]:
    """Returns everything that was measured, for --json; of an ensemble, also each member's measures."""
    names, first = dataset.class_names, members[0]
    result = {
        "model": first.config.model,
        "dataset": inputs.loaded[0].dataset,
        "split": dataset.split,
        "step": first.step,
    }
    result |= {"views": inputs.views, "image_sizes": [seen.image_size for seen in inputs.configs[0]]}
    result |= {"resizes": [seen.eval_resize for seen in inputs.configs[0]]} | ensemble.measures()
    result["accuracy_of_class"] = {names[label]: share for label, share in ensemble.accuracies().items()}
    result["most_confused"] = [
        {"label": names[label], "prediction": names[prediction], "images": count}
        for (label, prediction), count in ensemble.confused.most_common(20)
    ]
    if alone:
        result["model"] = "ensemble"
        result["members"] = [
            {"workdir": str(member.workdir), "model": member.config.model, "step": member.step} | tally.measures()
            for member, tally in zip(members, alone, strict=True)
        ]
    return result


def describe(result: dict[str, Any], left_out: int) -> None:
    """Prints the result in words; left_out is the number of damaged images that were left out."""
    images = f"{result['examples']:,} {result['split']} images of {result['dataset']}"
    images += f" ({left_out:,} damaged ones left out)" if left_out else ""
    if result["views"] != "1" or len(result["image_sizes"]) > 1:
        sizes = ", ".join(map("{} from {}".format, result["image_sizes"], result["resizes"]))
        images += f", views {result['views']} of {sizes} pixels"
    who = result["model"] if "members" in result else f"{result['model']}, step {result['step']},"
    command_line.say(f"{who} on {images}: {loss_and_accuracies(result)}")
    more = f"mean accuracy of the classes {100 * result['mean_class_accuracy']:.2f} %"
    if "accuracy_top1_among_its_classes" in result:
        more += f", top-1 among the dataset's own classes {100 * result['accuracy_top1_among_its_classes']:.2f} %"
    command_line.say(f"{more}, expected calibration error {100 * result['expected_calibration_error']:.2f} %")
    lowest = list(result["accuracy_of_class"].items())[:5]
    command_line.say("lowest classes: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in lowest))
    if confused := result["most_confused"][:5]:
        pairs = (f"{pair['label']} as {pair['prediction']} {pair['images']}" for pair in confused)
        command_line.say("most confused: " + ", ".join(pairs))
    for member in result.get("members", []):
        where = f"{member['model']}, step {member['step']}, of {member['workdir']}"
        command_line.say(f"alone, {where}: {loss_and_accuracies(member)}")


def loss_and_accuracies(measures: dict[str, Any]) -> str:
    """Returns the three most important measures in words."""
    top1, top5 = (100 * measures[name] for name in ("accuracy_top1", "accuracy_top5"))
    return f"loss {measures['loss']:.4f}, top-1 {top1:.2f} %, top-5 {top5:.2f} %"


if __name__ == "__main__":
    command_line.run(main)
