"""Loads the weights of a run, and starts a run from the weights of another one or from published ones."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from input_pipeline import match_classes
from models.vit import fit_positions
from training.checkpoints import Checkpoints
from training.fine_tuning import class_axes, frozen_paths
from training.metrics import best_evaluation, read_rows
from training.optimizer import make_optimizer
from training.platform import float64_enabled
from training.state import (
    State,
    abstract_state,
    create_state,
    evaluated_variables,
    make_mesh,
    make_model,
    select,
    start_average,
)
from training.workdir import all_class_names, read_class_names, read_config, write_config


def load_weights(
    workdir: pathlib.Path, mesh: Mesh, step: int | str | None = None
) -> tuple[ConfigDict, dict[str, Any], dict[str, Any], int]:
    """Returns the config of a workdir and the params, batch_stats and step of one of its checkpoints.

    If the run kept moving averages, params and batch_stats are the averaged ones.

    Args:
      workdir: a folder that train.py made.
      mesh: the devices on which the arrays are placed.
      step: a checkpoint's step, "best" for the one with the best accuracy_top1, or None for the newest intact one.

    Raises:
      ValueError: if the step has no intact checkpoint.
      FileNotFoundError: if the folder is not a workdir or has no checkpoint.
    """
    config = read_config(workdir)
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        raise FileNotFoundError(f"{workdir} has no checkpoints yet; train it first")
    checkpoints = Checkpoints(workdir, read_only=True)
    if isinstance(step, str):  # "best"
        best = best_evaluation(read_rows(workdir))
        if best is None:
            raise ValueError(f"no checkpoint in {workdir} has been evaluated, so none is the best; leave --step out")
        step = int(best["step"])
        if step not in checkpoints.steps():
            raise ValueError(
                f"the best evaluation of {workdir} is that of step {step}, whose checkpoint is gone; there are "
                f"{checkpoints.steps()}: choose one with --step, or leave --step out for the newest"
            )
    target = abstract_state(config, make_model(config, training=True), optimizer=None, mesh=mesh)
    with float64_enabled(config.dtype == "float64"):
        state = checkpoints.restore(target, step)
    if state is None:
        raise FileNotFoundError(f"{workdir} has no checkpoints yet; train it first")
    checkpoints.close()
    return config, *evaluated_variables(state), int(state["step"])


def load_model(workdir: str | pathlib.Path, step: int | str | None = None) -> tuple[models.Network, ConfigDict]:
    """Returns the network of a workdir in evaluation mode, with the weights of a checkpoint, and the config.

    Args:
      workdir: a folder that train.py made.
      step: a checkpoint's step, "best" for the one with the best accuracy_top1, or None for the newest intact one.

    Raises:
      ValueError: if the step has no intact checkpoint.
      FileNotFoundError: if the folder is not a workdir or has no checkpoint.
    """
    config, *variables, _ = load_weights(pathlib.Path(workdir), make_mesh(1), step)
    model = make_model(config, training=False)
    for values, own in zip(variables, nnx.state(model, nnx.Param, nnx.BatchStat), strict=True):
        nnx.update(model, select(values, nnx.to_pure_dict(own)))  # leaves out the variables of auxiliary heads
    return model, config


def save_weights(
    workdir: pathlib.Path, config: ConfigDict, class_names: tuple[str, ...], values: dict[str, Any]
) -> None:
    """Makes a workdir whose checkpoint of step 0 holds weights that come from elsewhere.

    Args:
      workdir: the folder to make.
      config: with the network's options resolved.
      class_names: names of the classes in the order of the logits.
      values: parameters and running statistics of the network in training mode, a nested dict of arrays.
    """
    mesh, model = make_mesh(), make_model(config, training=True)
    target = abstract_state(config, model, make_optimizer(config, lambda _: config.learning_rate), mesh)
    state = create_state(target, model, config.seed)
    placement = NamedSharding(mesh, PartitionSpec())
    for part in ("params", "batch_stats"):
        state[part] = jax.device_put(select(values, state[part]), placement)
    state = start_average(state, target)
    write_config(workdir, config, class_names)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state)


class Source(NamedTuple):
    """Weights that a run can start from.

    Attributes:
      name: where they are from, as the user typed it.
      values: parameters and running statistics of the network in training mode, a nested dict of arrays.
      class_names: the classes that they were trained on, in the order of the logits.
    """

    name: str
    values: dict[str, Any]
    class_names: Sequence[str]


class Initialized(NamedTuple):
    """A fresh state with the weights of another network.

    Attributes:
      state: of the training.
      new: names of the arrays that keep their initial values.
      differing_classes: which classes the source lacks, so that `new` has the arrays with an axis of classes, those of
        the last layer and of auxiliary classifiers; "" if the source has all classes of this run.
    """

    state: State
    new: list[str]
    differing_classes: str


def load_source(workdir: pathlib.Path, mesh: Mesh) -> Source:
    """Returns the newest weights of a workdir, the averaged ones if it has them.

    Raises:
      FileNotFoundError: if the folder is no workdir or has no checkpoint.
    """
    _, params, batch_stats, _ = load_weights(workdir, mesh)
    flat = nnx.traversals.flatten_mapping(params) | nnx.traversals.flatten_mapping(batch_stats)
    return Source(str(workdir), nnx.traversals.unflatten_mapping(flat), read_class_names(workdir))


def initialize_from(state: State, source: Source, config: ConfigDict, class_names: tuple[str, ...]) -> Initialized:
    """Gives a fresh state the weights of another run, or published weights.

    Arrays with an axis of classes, those of the last layer and of auxiliary classifiers, get the weights of each class
    from the source's class of the same name. If the source lacks one of the classes, these arrays keep their initial
    values. Position embeddings of a transformer for another image size are interpolated. Arrays that the source lacks,
    or has in another shape, keep their initial values too.

    Args:
      state: before the first step.
      source: the weights.
      config: of this run, resolved.
      class_names: of this run's dataset, in the order of its labels.

    Raises:
      ValueError: if most of the arrays do not fit: the weights are those of another network; or if an array that would
        keep its initial values is frozen.
    """
    found = dict(nnx.traversals.flatten_mapping(source.values))
    axes, positions, differing_classes, new = class_axes(config), None, "", []
    class_names = all_class_names(class_names, config.num_classes)
    try:
        positions = match_classes(class_names, source.class_names, by_number=False)
    except ValueError as error:
        differing_classes = str(error)

    def find(path: tuple, value: jax.Array) -> jax.Array | None:
        """Returns the source's array for ours, or None."""
        array, axis = found.get(path), axes.get(path)
        if array is not None:
            array = fit_positions(path, array, value.shape)
        if array is not None and axis is not None:
            if positions is None:
                return None
            if positions != list(range(array.shape[axis])):
                array = np.take(jax.device_get(array), positions, axis)
        if array is None or array.shape != value.shape:
            return None
        return jax.device_put(array, value.sharding)

    def choose(ours: dict) -> dict:
        chosen = {}
        for path, value in nnx.traversals.flatten_mapping(ours).items():
            array = find(path, value)
            chosen[path] = value if array is None else array.astype(value.dtype)
            if array is None:
                new.append(".".join(map(str, path)))
        return nnx.traversals.unflatten_mapping(chosen)

    total = len(jax.tree.leaves((state["params"], state["batch_stats"])))
    state |= {"params": choose(state["params"]), "batch_stats": choose(state["batch_stats"])}
    if 2 * len(new) > total:
        raise ValueError(f"init_from={source.name} holds another network: {len(new)} of {total} arrays do not fit")
    frozen = {".".join(map(str, path)) for path in frozen_paths(config)}
    if fresh := [name for name in new if name in frozen]:
        raise ValueError(
            f"freeze={','.join(config.freeze)} would keep random values, as {source.name} lacks {', '.join(fresh)}; "
            "freeze other parts"
        )
    averages = start_average({"params": state["params"], "batch_stats": state["batch_stats"]}, state)
    # Copies, because the training step donates the state: no array may be in it twice.
    return Initialized(state | jax.tree.map(lambda leaf: leaf.copy(), averages), new, differing_classes)
