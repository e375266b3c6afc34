"""The costs of layers by themselves, without a network: those of models/, given as Python calls them."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

import models
from analysis.costs import Layer, list_layers
from analysis.receptive_field import image_axes
from configs._option import nearest_name
from models.layers import Module

EXAMPLE = "Conv(3, 64, kernel=3, padding=1), googlenet.Inception(256, (128, 64, 192, 64, 96, 64)) or max_pool(2, 2)"


class Chain(Module):
    """Layers one after the other."""

    def __init__(self, layers: Sequence[tuple[str, Callable[[Any], Any]]]):
        """Takes pairs of a name and a layer; layers of one name are numbered."""
        names = [name for name, _ in layers]
        numbers = [names[: position + 1].count(name) for position, name in enumerate(names)]
        pairs = zip(names, numbers, strict=True)
        self.order = tuple(f"{name}{number}" if names.count(name) > 1 else name for name, number in pairs)
        for name, (_, layer) in zip(self.order, layers, strict=True):
            setattr(self, name, layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to the last layer's output."""
        for name in self.order:
            x = getattr(self, name)(x)
        return x


def list_chain(texts: Sequence[str], shape: tuple[int, int, int], biases: bool = True) -> list[Layer]:
    """Returns the layers of a chain, as traced; allocates and computes nothing.

    >>> [layer.output_shape for layer in list_chain(["Conv(3, 96, kernel=11, stride=4)"], (227, 227, 3))]
    [(55, 55, 96)]

    Args:
      texts: a call for each layer, as in EXAMPLE: a class or function of models/layers.py, or, with the file's name
        before it, of another file of models/. The map of a function is not among its arguments.
      shape: (H, W, C) of the map that the first layer gets.
      biases: whether they count as parameters.

    Raises:
      ValueError: if a text is no such call, or a layer does not fit the map before it.
    """
    layers = [parse_layer(text) for text in texts]
    (_, first), *others = layers
    is_block = isinstance(first, Module) and len(list(nnx.iter_modules(first))) > 1
    module: Any = first if is_block and not others else Chain(layers)
    return trace_module(module, shape, biases)


def trace_module(module: nnx.Module, shape: tuple[int, int, int], biases: bool = True) -> list[Layer]:
    """Returns the layers of a module on one map, as traced.

    Args:
      module: maps (N, H, W, C) to an array.
      shape: (H, W, C) of the map.
      biases: whether they count as parameters.

    Raises:
      ValueError: if a layer does not fit the map before it.
    """
    graph, *state = nnx.split(module, nnx.Param, ...)
    params, rest = map(nnx.to_pure_dict, state)

    def apply(params: dict, rest: dict, maps: jax.Array) -> jax.Array:
        return nnx.merge(graph, params, rest)(maps)

    maps = jax.ShapeDtypeStruct((1, *shape), np.float32)
    try:
        jaxpr = jax.make_jaxpr(apply)(params, rest, maps).jaxpr
    except (TypeError, ValueError, ArithmeticError) as error:  # shapes that do not fit; JAX raises all of them
        raise ValueError(f"a layer does not fit the map before it: {str(error).splitlines()[0]}") from None
    inputs: list = [None] * (len(jaxpr.invars) - 1) + [image_axes(*shape[:2])]
    return list_layers(jaxpr, inputs, module, batch_size=1, biases=biases)


def parse_layer(text: str) -> tuple[str, Callable[[Any], Any]]:
    """Returns the name of a layer in the table, and the layer; runs no code but the layer's own.

    Raises:
      ValueError: if the text is no call of a layer, or the layer refuses the arguments.
    """
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        arguments: list[Any] = [ast.literal_eval(value) for value in call.args]
        options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        file, _, name = f"layers.{ast.unparse(call.func)}".rpartition(".")
        file = file.removeprefix("layers.")
    except (SyntaxError, ValueError, AssertionError):
        raise ValueError(f"--layer={text!r} is no layer; give one, as in {EXAMPLE}") from None
    if file not in ("layers", *models.FAMILIES):
        raise ValueError(f"--layer={text!r}: models/ has no file {file}{nearest_name(file, models.FAMILIES)}")
    module = importlib.import_module(f"models.{file}")
    layer: Any = getattr(module, name, None)
    if getattr(layer, "__module__", "") != module.__name__ or not callable(layer):
        public = [other for other in vars(module) if not other.startswith("_")]
        raise ValueError(f"--layer={text!r}: models/{file}.py has no layer {name}{nearest_name(name, public)}")
    row = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    try:
        if inspect.isclass(layer):
            made: Any = layer(*arguments, **options)
            return row, made
        inspect.signature(layer).bind(None, *arguments, **options)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(f"--layer={text!r}: {error}") from None
    return row, lambda maps: layer(maps, *arguments, **options)


def parse_map(text: str) -> tuple[int, int, int]:
    """Returns (H, W, C) of a text such as 28x28x256; raises ValueError if it is none."""
    sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if not sizes:
        raise ValueError(f"--map={text} is no map; give height, width and channels, as in --map=28x28x256")
    return int(sizes[1]), int(sizes[2]), int(sizes[3])
