"""Workdirs from PyTorch's weights, and files for PyTorch from workdirs."""

import pathlib
from collections.abc import Collection
from typing import NamedTuple

from flax.nnx.traversals import flatten_mapping, unflatten_mapping
from ml_collections import ConfigDict

import input_pipeline
import models
from models.torch_files import read_state_dict, write_safetensors
from models.torch_names import from_torch, rename_old, to_torch, torch_shapes
from training import configuration
from training.checkpoints import has_checkpoints
from training.state import make_mesh, make_model
from training.transfer import load_weights, save_weights
from training.workdir import check_workdir


class Imported(NamedTuple):
    """What became of the tensors of a file.

    Attributes:
      model: the network.
      used: how many tensors are in the workdir.
      left_out: names of the tensors of auxiliary heads that the network was not built with.
    """

    model: str
    used: int
    left_out: list[str]


def import_weights(
    config: ConfigDict, weights: pathlib.Path, workdir: pathlib.Path, typed: Collection[str] = ()
) -> Imported:
    """Makes a workdir whose checkpoint of step 0 holds the weights of PyTorch's file.

    Args:
      config: the recipe of the network. Its mean and std become those of the published weights.
      weights: a state dict with torchvision's or timm's names.
      workdir: the folder to make.
      typed: options that keep the config's value, as the user typed it.

    Raises:
      ValueError: if a tensor is missing, surplus or misshapen, or the workdir is in use; nothing is written.
      FileNotFoundError: if there is no such file.
    """
    if has_checkpoints(workdir):
        raise ValueError(f"workdir {workdir} has checkpoints already; choose another --workdir")
    config, entry = configuration.resolve_network(config), models.get_entry(config.model)
    config.num_classes = config.num_classes or entry.num_classes
    for option, published in (("mean", entry.torch_mean), ("std", entry.torch_std)):
        if option not in typed:
            config[option] = published
    check_workdir(workdir, config)

    state_dict, model = rename_old(entry, read_state_dict(weights)), make_model(config, training=True)
    values = from_torch(entry, model, state_dict)
    left_out = sorted(name for name in set(state_dict) - set(torch_shapes(entry, model)) if "num_batches" not in name)
    save_weights(workdir, config, _class_names(config), values)
    return Imported(config.model, len(state_dict) - len(left_out), left_out)


def export_weights(workdir: pathlib.Path, step: int | str | None = None) -> tuple[pathlib.Path, int]:
    """Writes a workdir's weights as MODEL.safetensors with PyTorch's names and shapes.

    Args:
      workdir: what train.py made.
      step: a checkpoint's step, "best", or None for the newest.

    Returns:
      The file, in the workdir, and the step of the checkpoint.

    Raises:
      ValueError: if PyTorch has no such network, or the step has no sound checkpoint.
      FileNotFoundError: if the folder is no workdir.
    """
    config, params, batch_stats, step = load_weights(workdir, make_mesh(), step)
    entry, path = models.get_entry(config.model), workdir / f"{config.model}.safetensors"
    values = unflatten_mapping(flatten_mapping(params) | flatten_mapping(batch_stats))
    write_safetensors(path, to_torch(entry, make_model(config, training=True), values))
    return path, step


def _class_names(config: ConfigDict) -> tuple[str, ...]:
    """The dataset's class names if it is at hand and has as many classes as the network, else numbers."""
    names = input_pipeline.known_class_names(config.dataset)
    try:
        names = names or input_pipeline.load_dataset(config, "eval").class_names
    except (ValueError, OSError):
        names = ()
    return names if len(names) == config.num_classes else tuple(map(str, range(config.num_classes)))
