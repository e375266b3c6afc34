"""Converts PyTorch's weights to workdirs."""

import pathlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from flax.nnx.traversals import flatten_mapping
from ml_collections import ConfigDict

import input_pipeline
import models
from models.torch_files import read_weights
from models.torch_names import from_torch, rename_old, torch_shapes
from training import configuration, published_weights
from training.checkpoints import has_checkpoints
from training.state import count_parameters, make_model
from training.transfer import Source, save_weights
from training.workdir import check_workdir


class Imported(NamedTuple):
    """What import_weights did with the tensors of a file.

    Attributes:
      model: the name of the network.
      used: how many tensors were written to the workdir.
      left_out: names of the tensors of auxiliary heads that the network was not built with.
      key: the name of the state dict in the file; "" for the whole file.
      other_keys: the names of the other state dicts in the file.
    """

    model: str
    used: int
    left_out: list[str]
    key: str
    other_keys: list[str]


def import_weights(
    config: ConfigDict,
    weights: str,
    workdir: pathlib.Path,
    key: str | None = None,
    typed: Collection[str] = (),
) -> Imported:
    """Makes a workdir whose checkpoint of step 0 holds the weights of PyTorch's file.

    Args:
      config: the recipe of the network. Its mean and std become those of the published weights; if `weights` names
        them, its image_size, eval_resize and interpolation do too.
      weights: the path of a state dict with torchvision's or timm's names, or the name of published weights.
      workdir: the folder to make.
      key: the name of the state dict in the file; default: the usual one, state_dict or model.
      typed: names of the options that the user typed, which keep the config's values.

    Raises:
      ValueError: if a tensor is missing, unexpected, misshapen or not finite, or the workdir is in use; nothing is
        written.
      OSError: if the file of the weights does not exist, or cannot be downloaded.
    """
    if has_checkpoints(workdir):
        raise ValueError(f"workdir {workdir} has checkpoints already; choose another --workdir")
    published = published_weights.find(weights, config.model) if published_weights.is_published(weights) else None
    config, entry = config.copy_and_resolve_references(), models.get_entry(config.model)
    if published:
        published_weights.apply_settings(config, published, typed)
    config = configuration.resolve_network(config, typed=None)
    config.num_classes = config.num_classes or entry.num_classes
    for option, value in (("mean", entry.torch_mean), ("std", entry.torch_std)):
        if option not in typed and not published:
            config[option] = value
    check_workdir(workdir, config)
    path = published_weights.fetch(published) if published else pathlib.Path(weights)
    values, imported = _read(config, path, key)
    names = input_pipeline.known_class_names("imagenet2012") if published else _class_names(config)
    save_weights(workdir, config, names, values)
    return imported


def load_published(config: ConfigDict) -> Source:
    """Returns the published weights that config.init_from names.

    Auxiliary heads are included if the config, the published network and the file have them.

    Raises:
      ValueError: if the name is unknown, or the weights are for another network.
      OSError: if the file cannot be downloaded, or is damaged.
    """
    published = published_weights.find(config.init_from, config.model)
    entry, path = models.get_entry(config.model), published_weights.fetch(published)
    config = config.copy_and_resolve_references()
    config.num_classes, config.channels = entry.num_classes, entry.channels
    config.aux_heads = tuple(head for head in config.aux_heads if head in entry.aux_heads)
    try:
        values, _ = _read(config, path)
    except ValueError:  # a file without auxiliary heads
        if not config.aux_heads:
            raise
        config.aux_heads = ()
        values, _ = _read(config, path)
    return Source(config.init_from, values, input_pipeline.known_class_names("imagenet2012"))


def _read(config: ConfigDict, path: pathlib.Path, key: str | None = None) -> tuple[dict[str, Any], Imported]:
    """Returns the variables of a network, a nested dict of arrays, from PyTorch's file, and what became of it."""
    entry, model = models.get_entry(config.model), make_model(config, training=True)
    read = read_weights(path, key, _most_bytes(config))
    state_dict = rename_old(entry, read.tensors)
    try:
        values = from_torch(entry, model, state_dict)
    except ValueError as error:
        if not read.other_keys:
            raise
        others = ", ".join(map(repr, read.other_keys))
        raise ValueError(f"{error}; the file also holds {others}: choose with --key") from error
    for layers, array in flatten_mapping(values).items():
        if not np.isfinite(array).all():
            raise ValueError(
                f"{path} has numbers in {'.'.join(map(str, layers))} that are not finite; take other weights"
            )
    left_out = sorted(name for name in set(state_dict) - set(torch_shapes(entry, model)) if "num_batches" not in name)
    return values, Imported(config.model, len(state_dict) - len(left_out), left_out, read.key, read.other_keys)


def _most_bytes(config: ConfigDict) -> int:
    """Returns the largest valid size of a network's weights in a file: float64, with the authors' auxiliary heads."""
    config = config.copy_and_resolve_references()
    config.aux_heads = models.get_entry(config.model).aux_heads
    variables = nnx.to_pure_dict(nnx.state(make_model(config, training=True), (nnx.Param, nnx.BatchStat)))
    return 8 * count_parameters(variables) + 2**20  # 1 MiB for num_batches_tracked and the file's headers


def _class_names(config: ConfigDict) -> tuple[str, ...]:
    """Returns the classes that the weights were trained on, in the order of the logits.

    They are the classes of config.dataset if that dataset is at hand and has as many classes as the network. A network
    with 1,000 classes is an exception: its classes are ImageNet's unless the dataset's names contradict that; folders
    named by WordNet id or by number, or folders of only some classes, do not. If nothing is known, each class has its
    number as its name.
    """
    names = input_pipeline.known_class_names(config.dataset)
    try:
        names = names or input_pipeline.load_dataset(config, "eval").class_names
    except (ValueError, OSError):
        names = ()
    imagenet = input_pipeline.known_class_names("imagenet2012")
    if config.num_classes == len(imagenet):
        try:
            input_pipeline.match_classes(names, imagenet)
        except ValueError:
            return names if len(names) == config.num_classes else imagenet
        return imagenet
    return names if len(names) == config.num_classes else tuple(map(str, range(config.num_classes)))
