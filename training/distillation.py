"""Distillation: a run also learns from the probabilities that a trained network, the teacher, gives to its images.

Hinton 2015, Distilling the knowledge in a neural network, section 2. Teacher and student see the same augmented image
at the same size (Beyer 2022, Knowledge distillation: a good teacher is patient and consistent).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import input_pipeline
import models
from configs import base
from training import configuration, conversion, published_weights
from training.inference import make_apply
from training.remote_workdir import local_copy
from training.state import make_model, select
from training.transfer import load_weights
from training.workdir import all_class_names, read_class_names


class Teacher(NamedTuple):
    """A trained network that a run learns from. It has neither gradients nor a part in the state or the checkpoints.

    Attributes:
      config: options of its network: model, mean, std; dtype is the run's.
      variables: its `params` and `batch_stats`, nested dicts of arrays on every device of the mesh.
      positions: the teacher's class of each of the run's classes; None if they are the same.
    """

    config: ConfigDict
    variables: dict[str, Any]
    positions: Sequence[int] | None


def load_teacher(config: ConfigDict, class_names: tuple[str, ...], mesh: Mesh) -> Teacher | None:
    """Returns the teacher that config.teacher names, or None if there is none.

    Args:
      config: of the run, resolved.
      class_names: of the run's dataset, in the order of its labels.
      mesh: the devices.

    Raises:
      ValueError: if the name is unknown, or if the teacher lacks a class of the run, takes images of other channels, or
        takes only larger images.
      OSError: if the teacher cannot be read or downloaded.
    """
    if not config.teacher:
        return None
    if published_weights.is_published(config.teacher):
        published, own = published_weights.find(config.teacher), base.get_config()
        own.model, own.init_from = published.model, config.teacher
        own = configuration.resolve_network(own)
        entry = models.get_entry(own.model)
        own.num_classes, own.channels = entry.num_classes, entry.channels
        values = conversion.load_published(own).values
        params = batch_stats = values
        names: Sequence[str] = input_pipeline.known_class_names("imagenet2012")
    else:
        with local_copy(config.teacher, timeout=config.remote_timeout_seconds) as workdir:
            own, params, batch_stats, _ = load_weights(workdir, mesh)
            names = read_class_names(workdir)
    if own.channels != config.channels:
        raise ValueError(
            f"teacher={config.teacher} takes images of {own.channels} channels, but channels is {config.channels}; "
            "give another teacher, or the same channels"
        )
    try:
        positions = input_pipeline.match_classes(
            all_class_names(class_names, config.num_classes), names, by_number=False
        )
    except ValueError as error:
        raise ValueError(f"teacher={config.teacher} cannot teach these classes: {error}") from error
    own.dtype = config.dtype
    try:
        configuration.check_image_size(own, config)
    except ValueError as error:
        raise ValueError(f"teacher={config.teacher}: {error}") from error
    wanted = [nnx.to_pure_dict(part) for part in nnx.state(make_model(own, training=False), nnx.Param, nnx.BatchStat)]
    replicated = NamedSharding(mesh, PartitionSpec())
    variables = {
        name: jax.device_put(jax.tree.map(_as_type_of, own_part, select(values, own_part)), replicated)
        for name, values, own_part in zip(("params", "batch_stats"), (params, batch_stats), wanted, strict=True)
    }
    return Teacher(own, variables, None if positions == list(range(len(names))) else positions)


def _as_type_of(variable: jax.Array, value: jax.Array) -> jax.Array:
    """Returns a value in the type of the network's variable: a teacher that was trained in float64 has others."""
    return value.astype(variable.dtype)


def make_lesson(teacher: Teacher) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
    """Returns the teacher in inference mode: (variables, images of 0 to 255) -> logits (N, classes of the run)."""
    apply = make_apply(teacher.config, make_model(teacher.config, training=False))

    def logits(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        found = apply(variables["params"], variables["batch_stats"], images)
        return found if teacher.positions is None else found[:, np.asarray(teacher.positions)]

    return logits
