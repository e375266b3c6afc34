"""The summary of a network: its layers, their costs and the totals."""

import collections
import csv
import fnmatch
import pathlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

import models
from analysis.costs import IN_PLACE, Layer, count_backward_macs, count_module_parameters, list_layers
from analysis.receptive_field import image_axes
from models.layers import Dropout
from training.configuration import resolve_network
from training.program import make_program
from training.state import make_mesh, make_model

FIGURES = pathlib.Path(models.__file__).parent / "figures.csv"


@dataclass(frozen=True)
class Summary:
    """A network's totals and layers.

    Attributes:
      model: its name.
      image_size: pixels a side of its images.
      channels: of its images.
      batch_size: images of a batch, for activation_bytes.
      dtype: of the computation.
      parameters: trainable numbers, without auxiliary heads.
      parameters_with_aux: with the network's own auxiliary heads; None if it has none.
      macs: multiply-accumulates for one image, forward, without auxiliary heads.
      backward_macs: for one image, in the backward pass of a training step, auxiliary heads included; None if not asked
        for.
      activation_bytes: the outputs of all layers, for the whole batch.
      receptive_field: pixels a side, of the last map before global pooling or dense layers; None: global, because of
        attention.
      layers: those that make a new map, in the order of execution.
      all_layers: the same with the activation functions and dropout between them, which work in place.
    """

    model: str
    image_size: int
    channels: int
    batch_size: int
    dtype: str
    parameters: int
    parameters_with_aux: int | None
    macs: int
    backward_macs: int | None
    activation_bytes: int
    receptive_field: int | None
    layers: list[Layer]
    all_layers: list[Layer]


def summarize(
    config: ConfigDict, backward: bool = False, biases: bool = True, typed: Collection[str] | None = None
) -> Summary:
    """Traces a network, and with `backward` also its training step; allocates and computes nothing.

    Args:
      config: options as typed; options that are None get the network's own values.
      backward: whether to count the backward pass.
      biases: whether biases count as parameters.
      typed: names of the options that were given on the command line, as for resolve_network.

    Raises:
      ValueError: if an option does not fit the network.
    """
    config = resolve_network(config, typed)
    with jax.enable_x64(config.dtype == "float64"):
        return _summarize(config, backward, biases)


def _summarize(config: ConfigDict, backward: bool, biases: bool) -> Summary:
    model = make_model(config, training=False)
    size, entry = config.image_size, models.get_entry(config.model)
    variables = tuple(nnx.to_pure_dict(part) for part in nnx.state(model, nnx.Param, nnx.BatchStat))
    images = jax.ShapeDtypeStruct((config.batch_size, size, size, config.channels), np.dtype(config.dtype))
    jaxpr = jax.make_jaxpr(_make_apply_with_dropout(model))(*variables, images).jaxpr
    inputs = [*(None for _ in jaxpr.invars[:-1]), image_axes(size, size)]
    backward_macs = _count_backward_macs(config) if backward else None
    all_layers = list_layers(jaxpr, inputs, model, config.batch_size, backward_macs, biases)
    layers = [layer for layer in all_layers if layer.kind not in IN_PLACE]
    maps = [layer for layer in layers if len(layer.output_shape) > 1 and layer.kind != "adaptive average pool"]
    return Summary(
        model=config.model,
        image_size=size,
        channels=config.channels,
        batch_size=config.batch_size,
        dtype=config.dtype,
        parameters=count_module_parameters(model, biases),
        parameters_with_aux=_count_with_own_heads(config, entry, biases),
        macs=sum(layer.macs for layer in layers),
        backward_macs=None if backward_macs is None else backward_macs.total() // config.batch_size,
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        receptive_field=maps[-1].receptive_field,
        layers=layers,
        all_layers=all_layers,
    )


def _make_apply_with_dropout(model: nnx.Module) -> Callable[[dict, dict, jax.Array], jax.Array]:
    """Returns the network in evaluation mode except for its dropout, so that the trace has the dropout layers too."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Dropout):
            module.deterministic = False
    graph, *_ = nnx.split(model, nnx.Param, nnx.BatchStat, models.DropoutKey)

    def apply(params: dict, batch_stats: dict, images: jax.Array) -> jax.Array:
        keys = models.dropout_keys(model, jax.random.key(0))
        return nnx.merge(graph, params, batch_stats, keys)(images)

    return apply


def match_networks(words: Iterable[str]) -> list[str]:
    """Returns the networks that names, patterns such as vgg*, or "all" stand for, each once.

    >>> match_networks(["vgg1?", "lenet5"])
    ['vgg11', 'vgg13', 'vgg16', 'vgg19', 'lenet5']

    Raises:
      ValueError: if a name is unknown.
    """
    names: dict[str, None] = {}
    for word in words:
        found = fnmatch.filter(models.REGISTRY, "*" if word == "all" else word)
        names |= dict.fromkeys(found or [models.get_entry(word).name])
    return list(names)


def stored_figures() -> dict[str, dict[str, int | None]]:
    """Returns the figures of models/figures.csv by the name of the network: one image, float32, all else natural.

    `python summarize.py --store` counts them anew; tests/analysis/test_summary.py checks them.
    """
    with FIGURES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("model"): {name: int(text) if text else None for name, text in row.items()} for row in rows}


def read_reference() -> dict[str, dict[str, str]]:
    """Returns the published figures of each network, by its name; "" where nothing trustworthy was found."""
    with (pathlib.Path(__file__).parent / "reference.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def trace_train_step(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    """Traces the step that train.py runs, without compiling it or allocating anything.

    Args:
      config: with the network's options resolved and num_classes given.
      mesh: the devices; they may be a compiler's description of devices that this machine does not have.
    """
    config = config.copy_and_resolve_references()
    config.num_steps, config.train_sizes = config.num_steps or 1, ()
    return make_program(config, mesh, steps_per_epoch=1).trace()


def _count_backward_macs(config: ConfigDict) -> collections.Counter[str]:
    """Returns the backward pass's multiply-accumulates by layer; a batch of one image cannot be mixed or divided."""
    config = config.copy_and_resolve_references()
    config.update({"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "accumulation_steps": 1, "bn_virtual_batch_size": 0})
    return count_backward_macs(trace_train_step(config, make_mesh(1)).jaxpr.jaxpr)


def _count_with_own_heads(config: ConfigDict, entry: models.Entry, biases: bool) -> int | None:
    if not entry.aux_heads:
        return None
    config = config.copy_and_resolve_references()
    config.aux_heads = entry.aux_heads
    return count_module_parameters(make_model(config, training=True), biases)
