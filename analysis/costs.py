"""The costs of a network, layer by layer, counted from the equations of the function that runs.

A multiply-accumulate (MAC) is one multiplication of a convolution, a dense layer or one of attention's two products,
together with its addition.
Normalisation, pooling and activations count as none.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from analysis.receptive_field import Axes, aval, propagate

IN_PLACE = ("relu", "relu6", "tanh", "sigmoid", "gelu", "dropout", "stochastic depth")
"""The kinds of layers that change a map in place."""

# Equations that read their operands from memory and write their results there. Compilers fuse all other equations,
# which work element by element or only move data, into these.
_UNFUSED = r"conv_general_dilated|dot_general|reduce_(?!precision)|select_and_scatter|sort|scatter|cum|arg|top_k"


@dataclass(frozen=True)
class Layer:
    """A row of the table.

    Attributes:
      name: the path of its module, as in stages.0.1/conv2; a layer without a module is named after its kind.
      kind: conv, grouped conv, depthwise conv, dense, batch norm, max pool, sum, concatenation, product (one of the two
        of attention) and so on.
      kernel: height and width of its window; None if it has no window.
      stride: the window's steps down and across.
      output_shape: of one image, (H, W, C), (features,), or of a sequence (length, features).
      parameters: the number of its trainable numbers.
      macs: multiply-accumulates for one image, forward.
      backward_macs: the same, backward; None if not asked for.
      activation_bytes: of its output, for the whole batch.
      receptive_field: pixels a side that an element of the output depends on, padding included; None from the first
        sequence on, because attention makes it global.
      jump: pixels from the field of one element to that of its neighbour; None as above.
    """

    name: str
    kind: str
    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    backward_macs: int | None
    activation_bytes: int
    receptive_field: int | None
    jump: int | None


class Traced(NamedTuple):
    """An equation of a traced program.

    Attributes:
      equation: the equation itself.
      scope: the names of the modules around it.
      repeats: how often it runs.
      image_inputs: how many of its inputs depend on the image.
      axes: of its outputs; None if they do not depend on the image.
    """

    equation: JaxprEqn
    scope: str
    repeats: int
    image_inputs: int
    axes: Axes | None


def walk(
    jaxpr: Jaxpr, inputs: list[Axes | None], scope: str = "", repeats: int = 1
) -> Generator[Traced, None, list[Axes | None]]:
    """Yields the equations in the order of execution, those of inner functions and loops included.

    Args:
      jaxpr: of a traced function.
      inputs: the axes of each of its inputs; None for an input that does not depend on the image.
      scope: the names of the modules around it.
      repeats: how often it runs.

    Returns:
      The axes of its outputs.
    """
    known = dict(zip(jaxpr.invars, inputs, strict=False))

    def axes_of(variables: list) -> list[Axes | None]:
        return [None if isinstance(variable, Literal) else known.get(variable) for variable in variables]

    for equation in jaxpr.eqns:
        name = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        inner, operands = _inner(equation)
        axes = axes_of(operands)
        if inner is None:
            outputs = [propagate(equation, axes)] * len(equation.outvars)
            yield Traced(equation, name, repeats, sum(map(bool, axes)), outputs[0])
        else:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            outputs = yield from walk(inner, axes, name, repeats * times)
        known.update(zip(equation.outvars, outputs, strict=False))
    return axes_of(jaxpr.outvars)


def _inner(equation: JaxprEqn) -> tuple[Jaxpr | None, list]:
    """Returns the function that an equation calls, or None, and the variables that are its arguments.

    For lax.platform_dependent the function is the last branch, the default, so that the counts depend on no platform.
    """
    inner = list(jaxprs_in_params(equation.params))
    return (inner[-1], equation.invars[-len(inner[-1].invars) :]) if inner else (None, equation.invars)


def count_macs(equation: JaxprEqn) -> int:
    """Returns the multiply-accumulates of one equation; only convolutions and dot products have any.

    A convolution's output element sums (kernel / output features) products; an input element takes part in (kernel /
    input features) of them. The smaller count is right: the first one for a convolution and for the gradient of its
    kernel, the second one for the gradient of its input, whose map has zeros between and around its elements.
    """
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = aval(equation.invars[0]).shape
        return aval(equation.outvars[0]).size * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name != "conv_general_dilated":
        return 0
    maps, kernel = map(aval, equation.invars)
    out_features, in_features, *_ = (kernel.shape[axis] for axis in equation.params["dimension_numbers"].rhs_spec)
    groups = equation.params["feature_group_count"] * equation.params["batch_group_count"]
    seen_from_output = aval(equation.outvars[0]).size * kernel.size // out_features
    seen_from_input = maps.size * kernel.size // (in_features * groups)
    return min(seen_from_output, seen_from_input)


def count_flops(jaxpr: Jaxpr) -> int:
    """Returns the floating-point operations of a traced program, two for each multiply-accumulate."""
    return 2 * sum(traced.repeats * count_macs(traced.equation) for traced in walk(jaxpr, []))


def count_bytes(jaxpr: Jaxpr) -> int:
    """Returns the fewest bytes that a traced program moves through memory, layer by layer.

    Convolutions, dot products, poolings and sums over a map read their operands and write their results once. Equations
    that work element by element are fused into them: their result costs its own bytes or those of their operands,
    whichever are fewer. A program that keeps maps in a cache, or fuses one layer into the next, moves less.
    """
    total, numbers = 0, itertools.count()
    # The bytes that are read to make an array, by the array's number; 0 if they are counted already.
    read_for: dict[int, int] = {}

    def stored(variable) -> dict[int, int]:
        """Returns the arrays from which a value is read, as numbers and bytes: here one new array."""
        return {next(numbers): _bytes(variable)}

    def run(jaxpr: Jaxpr, inputs: list[dict[int, int]], repeats: int) -> list[dict[int, int]]:
        nonlocal total
        known = dict(zip(jaxpr.invars, inputs, strict=False))

        def sources(variable) -> dict[int, int]:
            return {} if isinstance(variable, Literal) else known.setdefault(variable, stored(variable))

        for equation in jaxpr.eqns:
            inner, operands = _inner(equation)
            operands = [sources(variable) for variable in operands]
            if inner and equation.primitive.name in ("scan", "while"):
                run(inner, [stored(variable) for variable in inner.invars], repeats * equation.params.get("length", 1))
                outputs = [stored(variable) for variable in equation.outvars]
            elif inner:
                outputs = run(inner, operands, repeats)
            elif equation.primitive.name == "optimization_barrier":
                outputs = operands
            else:
                read = {number: size for operand in operands for number, size in operand.items()}
                outputs = [stored(variable) for variable in equation.outvars]
                if re.match(_UNFUSED, equation.primitive.name):
                    total += repeats * sum(sum(moved.values()) for moved in (read, *outputs))
                    read_for.update((number, 0) for output in outputs for number in output)
                else:
                    read_for.update((number, sum(read.values())) for output in outputs for number in output)
                    outputs = [min(read, output, key=lambda arrays: sum(arrays.values())) for output in outputs]
            known.update(zip(equation.outvars, outputs, strict=False))
        return [sources(variable) for variable in jaxpr.outvars]

    results = run(jaxpr, [stored(variable) for variable in jaxpr.invars], 1)
    for variable, made_of in zip(jaxpr.outvars, results, strict=True):
        reads = [read_for.get(number, size) for number, size in made_of.items()]
        total += _bytes(variable) + sum(reads) if any(reads) else 0
    return total


def _bytes(variable: Any) -> int:
    array = aval(variable)
    return array.size * array.dtype.itemsize if hasattr(array, "size") else 0  # a token has no size


def count_backward_macs(jaxpr: Jaxpr) -> collections.Counter[str]:
    """Returns the multiply-accumulates of the gradients in a traced training step, by the name of the layer."""
    counts: collections.Counter[str] = collections.Counter()
    for equation, scope, repeats, *_ in walk(jaxpr, []):
        # In a gradient JAX calls the equations of the layer `name` transpose(jvp(name)).
        if "transpose(" in scope and (macs := count_macs(equation)):
            counts[_module_name(re.sub(r"\w+\(|\)", "", scope))] += repeats * macs
    return counts


def _module_name(scope: str) -> str:
    """Returns a scope without the names that einsum adds to those of the modules, such as vmap(NI,IO->NO)."""
    return "/".join(part for part in scope.split("/") if "->" not in part)


def list_layers(
    jaxpr: Jaxpr,
    inputs: list[Axes | None],
    model: nnx.Module,
    batch_size: int,
    backward_macs: collections.Counter[str] | None = None,
    biases: bool = True,
) -> list[Layer]:
    """Returns the layers of a traced network in the order of execution.

    A layer is a module without submodules, or an equation between modules that makes a new map: pooling, the sum of two
    branches, a concatenation, a product of attention. Activation functions and dropout change a map in place: they cost
    no memory and no multiply-accumulates, and they have rows for the reader alone, of a kind of IN_PLACE. Biases have
    no row.

    Args:
      jaxpr: of the traced network.
      inputs: the axes of each of its inputs; None for an input that does not depend on the images.
      model: the network, whose modules give their names and parameters.
      batch_size: of the traced network.
      backward_macs: of the whole batch, by layer, from count_backward_macs.
      biases: whether they count as parameters.
    """
    modules = _leaf_modules(model)
    groups: dict[tuple, list[Traced]] = {}
    activation: tuple | None = None
    for position, traced in enumerate(walk(jaxpr, inputs)):
        if traced.axes and (kind := _activation(traced.equation)):
            if kind == "relu6" and activation:  # it is computed as min(relu(x), 6)
                del groups[activation]
            activation = traced.scope, position, kind
            groups[activation] = [traced]
        if traced.axes and traced.scope in modules:
            groups.setdefault((traced.scope,), []).append(traced)
        elif traced.axes and _kind_between_modules(traced):
            groups[traced.scope, position] = [traced]
    layers, is_global = [], False
    for (scope, *position), group in groups.items():
        last = group[-1]
        assert last.axes  # only equations that depend on the image are in a group
        is_global |= aval(last.equation.outvars[0]).ndim == 3  # a sequence
        field, jump = (
            None if is_global else max(getattr(axis, part) for axis in last.axes) for part in ("field", "jump")
        )
        in_place = {
            "output_shape": aval(last.equation.outvars[0]).shape[1:],
            "backward_macs": None if backward_macs is None else 0,
            "receptive_field": field,
            "jump": jump,
        }
        if len(position) == 2:
            name = f"{scope}/{position[1]}" if scope in modules else "/".join(filter(None, (scope, "activation")))
            layers.append(_in_place(name, position[1], **in_place))
            continue
        module = None if position else modules[scope]
        operation = next((traced.equation for traced in group if _kind(traced.equation)), last.equation)
        kind = (_kind(operation) or _words(module)) if module else _kind_between_modules(last) or ""
        if kind == "conv" and getattr(module, "groups", 1) > 1:  # Conv may run its groups one by one
            kind = "grouped conv"
        owner = _module_name(scope)
        share = 2 if kind == "product" else 1  # attention's two products have one scope, and cost the same
        kernel, stride = _window(operation)
        output = aval(last.equation.outvars[0])
        if kind in IN_PLACE:
            layers.append(_in_place(scope, kind, **in_place))
            continue
        layers.append(
            Layer(
                name="/".join(filter(None, (owner, kind.replace(" ", "_")))) if position else scope,
                kind=kind,
                kernel=kernel,
                stride=stride,
                output_shape=output.shape[1:],
                parameters=count_module_parameters(module, biases) if module else 0,
                macs=sum(traced.repeats * count_macs(traced.equation) for traced in group) // batch_size,
                backward_macs=None if backward_macs is None else backward_macs[owner] // batch_size // share,
                activation_bytes=output.size * output.dtype.itemsize,
                receptive_field=field,
                jump=jump,
            )
        )
    return _numbered(layers)


def _in_place(name: str, kind: str, **fields: Any) -> Layer:
    """Returns the row of a layer that works in place: without a window, parameters, costs and memory."""
    return Layer(name, kind, kernel=None, stride=None, parameters=0, macs=0, activation_bytes=0, **fields)


def _activation(equation: JaxprEqn) -> str | None:
    """Returns the name of the activation function that an equation is; None if it is none."""
    name = equation.primitive.name
    literals = [value.val for value in equation.invars if isinstance(value, Literal)]
    constants: list[float] = [float(value) for value in literals if not np.ndim(value)]
    if constants in ([0.0], [6.0]):
        return {("max", 0.0): "relu", ("min", 6.0): "relu6"}.get((name, constants[0]))
    return {"tanh": "tanh", "logistic": "sigmoid", "erf": "gelu", "erfc": "gelu"}.get(name)


def _leaf_modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """The modules without submodules, by their names in the traced program."""
    modules = {re.sub(r"/(\d+)", r".\1", "/".join(map(str, path))): each for path, each in nnx.iter_modules(model)}
    inner = {name.rpartition("/")[0] for name in modules}
    return {name: module for name, module in modules.items() if name not in inner}


def _kind(equation: JaxprEqn) -> str | None:
    """Returns the kind of layer that an equation is; None if the equation is not a layer on its own."""
    name, parameters = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        groups, features = parameters["feature_group_count"], parameters["dimension_numbers"].lhs_spec[1]
        if groups == 1:
            return "conv"
        return "depthwise conv" if groups == aval(equation.invars[0]).shape[features] else "grouped conv"
    if name == "dot_general":  # a 1x1 convolution may run as a product at every pixel
        return "dense" if aval(equation.outvars[0]).ndim < 4 else "conv"
    if name in ("reduce_window_max", "reduce_window_sum") and parameters["window_dimensions"][-1] == 1:
        return "max pool" if name == "reduce_window_max" else "average pool"
    if name in ("reduce_sum", "reduce_max") and set(parameters["axes"]) == {1, 2}:
        return "global max pool" if name == "reduce_max" else "global average pool"
    return None


def _kind_between_modules(traced: Traced) -> str | None:
    equation = traced.equation
    if traced.image_inputs > 1 and equation.primitive.name == "add":
        return "sum"
    if traced.image_inputs > 1 and equation.primitive.name == "concatenate":
        channels = aval(equation.outvars[0]).ndim - 1
        if equation.params["dimension"] == channels:
            return "concatenation"
        return "adaptive average pool" if channels == 3 else None  # None: tokens are joined to a sequence
    if traced.image_inputs > 1 and equation.primitive.name == "dot_general":
        return "product"
    return _kind(equation)


def _window(equation: JaxprEqn) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """The kernel and the stride of a convolution or a pooling."""
    kind, parameters = _kind(equation), equation.params
    if equation.primitive.name == "conv_general_dilated":
        sizes = aval(equation.invars[1]).shape
        kernel = tuple(sizes[axis] for axis in parameters["dimension_numbers"].rhs_spec[2:])
        return kernel, tuple(parameters["window_strides"])
    if kind == "conv":
        return (1, 1), (1, 1)
    if kind in ("max pool", "average pool"):
        return tuple(parameters["window_dimensions"][1:3]), tuple(parameters["window_strides"][1:3])
    return None, None


def _words(module: nnx.Module) -> str:
    """The name of the module's class in words: "batch norm" for BatchNorm."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(module).__name__).lower()


def count_module_parameters(module: nnx.Module, biases: bool = True) -> int:
    """Returns the number of a module's trainable numbers, with or without its biases."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    pairs = zip(flat.paths, flat.leaves, strict=True)
    return sum(variable.get_value().size for path, variable in pairs if biases or path[-1] != "bias")


def _numbered(layers: list[Layer]) -> list[Layer]:
    """The layers, with a number behind each name that several layers share: max_pool1, max_pool2."""
    total = collections.Counter(layer.name for layer in layers)
    seen: collections.Counter[str] = collections.Counter()
    result = []
    for layer in layers:
        seen[layer.name] += 1
        number = seen[layer.name] if total[layer.name] > 1 else ""
        result.append(dataclasses.replace(layer, name=f"{layer.name}{number}"))
    return result
