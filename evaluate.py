"""Evaluates a checkpoint exactly: python evaluate.py --workdir=DIR [--step=N|best] [--split=NAME] [--json=FILE].

Every image of the split counts once. The default is the newest checkpoint. If the run kept averaged weights, these are
evaluated.
"""

import json
import pathlib
from typing import Any

from absl import flags

import input_pipeline
from configs import base
from training import command_line
from training.checkpoints import check_same_arrays
from training.evaluation import evaluate
from training.platform import prepare_platform
from training.processes import check_same_work, join_processes
from training.state import make_mesh, make_model
from training.step import make_eval_step
from training.transfer import load_weights
from training.workdir import read_class_names, write_atomically

_WORKDIR = flags.DEFINE(command_line.PATH, "workdir", None, "The folder that train.py made.", required=True)
_STEP = flags.DEFINE_string("step", None, "The checkpoint's step, or best; default: the newest.")
_SPLIT = flags.DEFINE_string("split", None, "train, eval or the dataset's own name of a split; default: eval.")
_DATA_DIR = flags.DEFINE(command_line.PATH, "data_dir", None, "The folder of TFDS datasets; default: as in training.")
_ON_BAD_IMAGE = flags.DEFINE_enum(
    "on_bad_image", None, ["raise", "skip"], "skip: leave damaged images out; default: as in training."
)
_JSON = flags.DEFINE(command_line.PATH, "json", None, "A file for the result; - for standard output.")


def main() -> None:
    """Runs the program."""
    with command_line.refusing_bad_input():
        join_processes(base.OPTIONS["process_timeout_seconds"].default)
        mesh = make_mesh()
        config, params, batch_stats, step = load_weights(
            pathlib.Path(_WORKDIR.value), mesh, command_line.step(_STEP.value)
        )
        if _JSON.value not in (None, "-") and not pathlib.Path(_JSON.value).absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of --json={_JSON.value} does not exist; make it first")
        # The run may have used another number of devices.
        config.eval_batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
        config.data_dir = _DATA_DIR.value or config.data_dir
        config.on_bad_image = _ON_BAD_IMAGE.value or config.on_bad_image
        class_names = read_class_names(pathlib.Path(_WORKDIR.value))
        dataset = input_pipeline.load_dataset(config, _SPLIT.value or "eval")
        dataset = input_pipeline.with_classes_of(dataset, class_names)
        batches = input_pipeline.eval_batches(dataset, config)
    prepare_platform(config)
    with command_line.refusing_bad_input((ValueError,)):
        check_same_work(config, [dataset], step=step)
        check_same_arrays((params, batch_stats))
    eval_step = make_eval_step(config, make_model(config, training=False), mesh)
    try:
        with input_pipeline.to_device(batches, mesh, config.prefetch_batches) as batches:
            metrics: dict[str, Any] = evaluate(eval_step, params, batch_stats, batches) or {}
    except input_pipeline.DamagedImageError as error:
        command_line.refuse(str(error))

    result = {"model": config.model, "dataset": config.dataset, "split": dataset.split, "step": step} | metrics
    text = json.dumps(result, indent=2)
    if _JSON.value == "-":
        return command_line.say(text)
    command_line.say(describe(result, left_out=len(dataset) - metrics["examples"]))
    if _JSON.value:
        write_atomically(pathlib.Path(_JSON.value), text + "\n")


def describe(result: dict, left_out: int) -> str:
    """Returns the result in words; left_out is the number of damaged images that were left out."""
    top1, top5 = (100 * result[name] for name in ("accuracy_top1", "accuracy_top5"))
    images = f"{result['examples']:,} {result['split']} images of {result['dataset']}"
    images += f" ({left_out:,} damaged ones left out)" if left_out else ""
    accuracies = f"loss {result['loss']:.4f}, top-1 {top1:.2f} %, top-5 {top5:.2f} %"
    return f"{result['model']}, step {result['step']}, on {images}: {accuracies}"


if __name__ == "__main__":
    command_line.run(main)
