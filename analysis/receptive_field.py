"""Receptive fields, carried from the image through the equations of a traced network.

A unit sees `field` pixels of the image, and its neighbour sees as many, `jump` pixels further. A window of k units at
stride s turns these into field + (k - 1) * jump and jump * s: Araujo, Norris, Sim 2019, Computing receptive fields of
convolutional neural networks, Distill. Where branches meet, the longest path counts. Padding counts as pixels.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.core import ShapedArray
from jax.extend.core import JaxprEqn


@dataclass(frozen=True)
class Axis:
    """The part of the image, in pixels, that the units along the height or the width of an array see.

    Attributes:
      dimension: the number of the axis in the array; None once a unit sees the whole map.
      first: the first pixel of the first unit's field, counted from the image's edge.
      end: the pixel after the last unit's field.
      field: the pixels that a unit sees.
      jump: the pixels from a unit's field to its neighbour's.
    """

    dimension: int | None
    first: int
    end: int
    field: int
    jump: int

    def slide(self, window: int, stride: int, padding: int, count: int, dimension: int) -> "Axis":
        """Returns the axis of `count` windows; the first one begins `padding` units before the map."""
        field = self.field + (window - 1) * self.jump
        first, jump = self.first - padding * self.jump, self.jump * stride
        return Axis(dimension, first, first + (count - 1) * jump + field, field, jump)

    def whole(self) -> "Axis":
        """Returns the axis of one unit that sees the whole map."""
        return dataclasses.replace(self, dimension=None, field=self.end - self.first)

    def at(self, dimension: int | None) -> "Axis":
        """Returns the same axis as another dimension."""
        return dataclasses.replace(self, dimension=dimension)


Axes = tuple[Axis, Axis]


def image_axes(height: int, width: int) -> Axes:
    """Returns the axes of images (N, H, W, C): each pixel sees itself."""
    return Axis(1, 0, height, 1, 1), Axis(2, 0, width, 1, 1)


def propagate(equation: JaxprEqn, inputs: list[Axes | None]) -> Axes | None:
    """Returns the axes of an equation's outputs.

    Args:
      equation: of a traced network, whose maps are (N, H, W, C).
      inputs: the axes of the equation's inputs; None for an input that does not depend on the image.

    Returns:
      The axes; None if no input depends on the image.
    """
    from_image = [(index, axes) for index, axes in enumerate(inputs) if axes]
    if not from_image:
        return None
    position, source = from_image[0]
    shape = aval(equation.outvars[0]).shape
    before, parameters = aval(equation.invars[position]).shape, equation.params

    def moved(axis: Axis) -> Axis:
        """The axis after an equation with one input from the image."""
        dimension = axis.dimension
        if dimension is None:
            return axis
        match equation.primitive.name:
            case "conv_general_dilated":
                numbers = parameters["dimension_numbers"]
                index = numbers.lhs_spec.index(dimension) - 2
                kernel = aval(equation.invars[1]).shape[numbers.rhs_spec[2 + index]]
                window = (kernel - 1) * parameters["rhs_dilation"][index] + 1
                out = numbers.out_spec[2 + index]
                stride, padding = parameters["window_strides"][index], parameters["padding"][index][0]
                return axis.slide(window, stride, padding, shape[out], out)
            case "reduce_window_max" | "reduce_window_sum":
                window, stride = parameters["window_dimensions"][dimension], parameters["window_strides"][dimension]
                return axis.slide(window, stride, parameters["padding"][dimension][0], shape[dimension], dimension)
            case "slice":
                stride = parameters["strides"][dimension] if parameters["strides"] else 1
                start = parameters["start_indices"][dimension]
                return axis.slide(1, stride, -start, shape[dimension], dimension)
            case "pad":
                return axis.slide(1, 1, int(parameters["padding_config"][dimension][0]), shape[dimension], dimension)
            case "dot_general":
                contracted, batch = (dimensions[position] for dimensions in parameters["dimension_numbers"])
                return _removed(axis, contracted) if position == 0 and not batch else axis.whole()
            case "reduce_sum" | "reduce_max":
                return _removed(axis, parameters["axes"])
            case "squeeze":
                return _removed(axis, parameters["dimensions"])
            case "broadcast_in_dim":
                return axis.at(parameters["broadcast_dimensions"][dimension])
            case "transpose":
                return axis.at(parameters["permutation"].index(dimension))
            case "reshape":
                for after, size in enumerate(shape):
                    if (math.prod(shape[:after]), size) == (math.prod(before[:dimension]), before[dimension]):
                        return axis.at(after)
                return axis.whole()
        # All other equations work element by element, or mix the units of the map in a way that is not modelled.
        return axis if len(shape) == len(before) and shape[dimension] == before[dimension] else axis.whole()

    if equation.primitive.name == "concatenate" and parameters["dimension"] in (1, 2) and len(shape) == 4:
        index = parameters["dimension"] - 1
        joined = _joined([axes[index] for _, axes in from_image], parameters["dimension"])
        other = _longest([axes[1 - index] for _, axes in from_image])
        return (joined, other) if index == 0 else (other, joined)
    if equation.primitive.name in ("concatenate", "add", "add_any", "sub", "mul", "div", "max", "select_n"):
        heights, widths = zip(*(axes for _, axes in from_image), strict=True)
        return _longest(heights), _longest(widths)
    height, width = source
    return moved(height), moved(width)


def aval(variable: Any) -> ShapedArray:
    """Returns shape and type of an array in a traced program."""
    return variable.aval


def _removed(axis: Axis, dimensions: Sequence[int]) -> Axis:
    if axis.dimension is None or axis.dimension in dimensions:
        return axis.whole()
    return axis.at(axis.dimension - sum(dimension < axis.dimension for dimension in dimensions))


def _longest(axes: Sequence[Axis]) -> Axis:
    dimension = next((axis.dimension for axis in axes if axis.dimension is not None), None)
    return Axis(
        dimension,
        min(axis.first for axis in axes),
        max(axis.end for axis in axes),
        max(axis.field for axis in axes),
        max(axis.jump for axis in axes),
    )


def _joined(pieces: Sequence[Axis], dimension: int) -> Axis:
    """The axis of a concatenation; pieces that are one unit each, as in adaptive pooling, are spaced evenly."""
    axis = _longest(pieces).at(dimension)
    if len(pieces) > 1 and all(piece.dimension is None for piece in pieces):
        return dataclasses.replace(axis, jump=(axis.end - axis.first - axis.field) // (len(pieces) - 1))
    return axis
