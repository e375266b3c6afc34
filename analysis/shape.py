"""The shape of a network: the sides and the channels of its maps over the depth."""

import math
import pathlib
from typing import NamedTuple

from analysis.summary import Summary

WEIGHTED = ("conv", "grouped conv", "depthwise conv", "dense")
JOINTS = ("sum", "concatenation")
SHAPELESS = ("batch norm", "layer norm", "local response norm", "layer scale", "product")


class Map(NamedTuple):
    """The output of a layer.

    Attributes:
      kind: of the layer, as in analysis.Layer; "image" for the input.
      depth: the number of convolutions and dense layers so far, in the order of execution, one branch after the other.
      side: in pixels; 1 for a vector, and for a sequence the side of its grid of patches.
      channels: of the map, or features of the vector.
    """

    kind: str
    depth: int
    side: int
    channels: int


def list_maps(summary: Summary) -> list[Map]:
    """Returns the image and the output of each layer.

    Normalisations and layer scales, which do not change the shape, and the products of attention are left out.
    """
    maps = [Map("image", 0, summary.image_size, summary.channels)]
    for layer in summary.layers:
        if layer.kind not in SHAPELESS:
            *sides, _ = layer.output_shape
            side = math.isqrt(sides[0]) if len(sides) == 1 else max(sides, default=1)
            depth = maps[-1].depth + (layer.kind in WEIGHTED)
            maps.append(Map(layer.kind, depth, side, layer.output_shape[-1]))
    return maps


def draw_shapes(summaries: list[Summary], path: pathlib.Path) -> None:
    """Draws the sides (left axis) and the channels (right axis) of the maps over the depth, a panel for each network.

    Args:
      summaries: of the networks.
      path: of the picture; its suffix gives the format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(len(summaries), 3)
    rows = -(-len(summaries) // columns)
    figure = Figure(figsize=(max(4.0 * columns, 7), max(2.7 * rows, 3.4) + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    maps_of = [list_maps(summary) for summary in summaries]
    largest = max(max(each.side, each.channels) for maps in maps_of for each in maps)
    for number, (summary, maps) in enumerate(zip(summaries, maps_of, strict=True)):
        sides = grid.flat[number]
        channels = sides.twinx()
        depths = [each.depth for each in maps]
        sides.plot(
            *(depths, [each.side for each in maps]),
            drawstyle="steps-post",
            color="#0072B2",
            label="side of the map, pixels (left axis)",
        )
        for label, kinds, color, marker in (
            ("channels of a convolution or dense layer (right axis)", ("image", *WEIGHTED), "#D55E00", "o"),
            ("channels of a sum or concatenation (right axis)", JOINTS, "#000000", "^"),
        ):
            points = [(each.depth, each.channels) for each in maps if each.kind in kinds]
            style = {"color": color, "markersize": 4, "label": label, "markerfacecolor": "none"}
            channels.plot(*zip(*points, strict=True) if points else ((), ()), marker, **style)
        for axes in (sides, channels):
            axes.set_yscale("log", base=2)
            axes.set_ylim(0.8, 1.3 * largest)
            axes.yaxis.set_major_formatter("{x:.0f}")
        if number % columns == 0:
            sides.set_ylabel("side, pixels", color="#0072B2")
        if number % columns == columns - 1 or number == len(summaries) - 1:
            channels.set_ylabel("channels", color="#D55E00")
        else:
            channels.tick_params(labelright=False)
        sides.set_title(summary.model)
        sides.grid(alpha=0.3)
        sides.xaxis.set_major_locator(MaxNLocator(integer=True))
        if number == 0:
            legends = [axes.get_legend_handles_labels() for axes in (sides, channels)]
            handles, labels = (one + two for one, two in zip(*legends, strict=True))
    for panel in grid.flat[len(summaries) :]:
        panel.remove()
    # The three labels fit beside each other only over three panels.
    figure.legend(handles, labels, loc="outside upper center", ncols=3 if columns == 3 else 1, frameon=False)
    figure.supxlabel("convolutions and dense layers so far, branches one after the other", fontsize="medium")
    figure.savefig(path, dpi=90)
