"""Which parameters a fine-tuning run trains, and by which factors their learning rates differ."""

import fnmatch
import functools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx
from flax.nnx.traversals import flatten_mapping, unflatten_mapping
from ml_collections import ConfigDict

import models
from configs._option import nearest_name
from models.layers import BatchNorm

Path = tuple[Any, ...]
BACKBONE = "backbone"
"""The name that freezes everything but the layers that grow with the number of classes: a linear probe."""


def frozen_paths(config: ConfigDict) -> frozenset[Path]:
    """Returns the paths of the parameters that config.freeze names; they keep their values.

    Raises:
      ValueError: if a name fits no parameter, or nothing is left to train.
    """
    if not config.freeze:
        return frozenset()
    head = class_axes(config)
    paths, layers = set(_parameters(_model(config))), _layers_by_depth(config.model)
    frozen = set()
    for name in config.freeze:
        if name == BACKBONE:
            found = {path for path in paths if path not in head and not path[0].endswith("_head")}
        elif name in layers:  # as stem, which has no module of this name in most networks
            found = set(layers[name])
        else:
            found = {path for path in paths if any(fnmatch.fnmatchcase(part, name) for part in _dotted_parts(path))}
        if not found:
            names = [BACKBONE, *layers, *(part for path in paths for part in _dotted_parts(path))]
            hint = nearest_name(name, names)
            known = ", ".join(dict.fromkeys([BACKBONE, *layers, *sorted({str(path[0]) for path in paths})]))
            raise ValueError(f"freeze: {config.model} has no part {name!r}{hint or f'; it has {known}'}")
        frozen |= found
    if frozen == paths:
        raise ValueError(f"freeze={','.join(config.freeze)} leaves nothing to train; leave a part out")
    return frozenset(frozen)


def rate_factors(config: ConfigDict) -> dict[Path, float]:
    """Returns the factor of each parameter's learning rate; {} if all are 1.

    The factor is layer_decay to the power of the number of layers behind the parameter's own. A layer is the stem, a
    block, or what follows the last stage, which has the factor 1, as in BEiT and timm (Bao 2021; Clark 2020, ELECTRA).
    The layers that grow with the number of classes have head_rate_factor instead.
    """
    if config.layer_decay == 1 and config.head_rate_factor == 1:
        return {}
    layers = list(_layers_by_depth(config.model).values()) if config.layer_decay != 1 else []
    factors = dict.fromkeys(_parameters(_model(config)), 1.0)
    for depth, paths in enumerate(reversed(layers)):
        factors |= dict.fromkeys(paths, config.layer_decay**depth)
    return factors | dict.fromkeys(class_axes(config), config.head_rate_factor)


def split_frozen(params: Mapping[str, Any], frozen: frozenset[Path]) -> tuple[dict, dict]:
    """Divides parameters, a nested dict, into those that are trained and those that are frozen."""
    if not frozen:
        return dict(params), {}
    flat = flatten_mapping(params)
    return (
        unflatten_mapping({path: value for path, value in flat.items() if path not in frozen}),
        unflatten_mapping({path: value for path, value in flat.items() if path in frozen}),
    )


def join_frozen(trained: dict, frozen: dict) -> dict:
    """Undoes split_frozen."""
    if not frozen:
        return trained
    return unflatten_mapping(flatten_mapping(trained) | flatten_mapping(frozen))


def class_axes(config: ConfigDict) -> dict[Path, int]:
    """Returns the axis of the classes of each array that has one: the one that grows with the number of classes."""
    larger = config.copy_and_resolve_references()
    larger.num_classes = (config.num_classes or models.get_entry(config.model).num_classes) + 1
    shapes, larger_shapes = (
        {path: value.shape for path, value in _parameters(_model(each)).items()} for each in (config, larger)
    )
    axes = {}
    for path, shape in shapes.items():
        for axis, (size, larger_size) in enumerate(zip(shape, larger_shapes[path], strict=True)):
            if size != larger_size:
                axes[path] = axis
    return axes


def freeze_batch_norms(model: nnx.Module, frozen: frozenset[Path]) -> None:
    """Makes each batch normalisation whose parameters are frozen use its running statistics, also in training."""
    for path, module in nnx.iter_modules(model):
        own = {(*path, name) for name in nnx.to_pure_dict(nnx.state(module, nnx.Param))}
        if isinstance(module, BatchNorm) and own <= frozen:
            module.use_running_average = True


def _model(config: ConfigDict) -> models.Network:
    return models.create_model(
        config.model,
        num_classes=config.num_classes,
        channels=config.channels,
        aux_heads=config.aux_heads,
        abstract=True,
    )


def _parameters(model: nnx.Module) -> dict[Path, Any]:
    return flatten_mapping(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def _dotted_parts(path: Path) -> Iterable[str]:
    """Yields the names of a parameter and of the modules that hold it: stage1, stage1.0, ..., stage1.0.conv1.kernel."""
    for end in range(1, len(path) + 1):
        yield ".".join(map(str, path[:end]))


@functools.cache
def _layers_by_depth(name: str) -> dict[str, list[Path]]:
    """Returns the parameters of each layer of a network, without auxiliary heads, in the order in which they are used.

    The first layer is "stem", if something comes before the first stage; then come the blocks of each stage; the last
    is "head", what follows the last stage. The order is read from the traced program.
    """
    entry = models.get_entry(name)
    model = models.create_model(name, abstract=True)
    graph, *state = nnx.split(model, nnx.Param, ...)
    params, rest = map(nnx.to_pure_dict, state)

    def maps(params: dict, rest: dict, images: jax.Array) -> OrderedDict[str, jax.Array]:
        network = nnx.merge(graph, params, rest)
        found = OrderedDict(network.stages(images))
        found[""] = network.classify(list(found.values())[-1])
        return found

    images = jax.ShapeDtypeStruct((1, entry.image_size, entry.image_size, entry.channels), jnp.float32)
    closed, outputs = jax.make_jaxpr(maps, return_shape=True)(params, rest, images)
    jaxpr, paths = closed.jaxpr, list(flatten_mapping(params))
    of_path = dict(zip(jaxpr.invars, paths, strict=False))  # the other inputs come behind the parameters
    makers = {made: index for index, equation in enumerate(jaxpr.eqns) for made in equation.outvars}

    def inputs(index: int) -> list[Any]:
        return [value for value in jaxpr.eqns[index].invars if not isinstance(value, jax.extend.core.Literal)]

    layers: dict[str, list[Path]] = {}
    seen: set[int] = set()  # the equations that the stages so far need
    for stage, output in zip(outputs, jaxpr.outvars, strict=True):
        pending, own = [makers[output]], set()
        while pending:
            index = pending.pop()
            if index not in seen:
                seen.add(index)
                own.add(index)
                pending += [makers[value] for value in inputs(index) if value in makers]
        used = [of_path[value] for index in sorted(own) for value in inputs(index) if value in of_path]
        for path in dict.fromkeys(used):
            layer = f"{path[0]}.{path[1]}" if isinstance(path[1], int) else path[0]
            if not stage:
                layer = "head"
            elif stage == next(iter(outputs)) and path[0] != stage:
                layer = "stem"
            layers.setdefault(layer, []).append(path)
    return layers
