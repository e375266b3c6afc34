"""The shape of a network: the sides and the channels of its maps over the depth."""

import pathlib
from typing import NamedTuple

from analysis.summary import Summary

WEIGHTED = ("conv", "grouped conv", "depthwise conv", "dense")
JOINTS = ("sum", "concatenation")


class Map(NamedTuple):
    """The output of a layer.

    Attributes:
      kind: of the layer, as in analysis.Layer; "image" for the input.
      depth: the number of convolutions and dense layers so far, in the order of execution, one branch after the other.
      side: in pixels; 1 for a vector.
      channels: of the map, or features of the vector.
    """

    kind: str
    depth: int
    side: int
    channels: int


def list_maps(summary: Summary) -> list[Map]:
    """Returns the image and the output of each layer, without normalisations, which do not change the shape."""
    maps = [Map("image", 0, summary.image_size, summary.channels)]
    for layer in summary.layers:
        if layer.kind not in ("batch norm", "local response norm"):
            side = layer.output_shape[0] if len(layer.output_shape) == 3 else 1
            depth = maps[-1].depth + (layer.kind in WEIGHTED)
            maps.append(Map(layer.kind, depth, side, layer.output_shape[-1]))
    return maps


def draw_shapes(summaries: list[Summary], path: pathlib.Path) -> None:
    """Draws the sides and the channels of the maps over the depth, one panel for each network.

    Args:
      summaries: of the networks.
      path: of the picture; its suffix gives the format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(len(summaries), 3)
    rows = -(-len(summaries) // columns)
    figure = Figure(figsize=(max(3.6 * columns, 7), max(2.6 * rows, 3.2) + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, summary in zip(grid.flat, summaries, strict=False):
        maps = list_maps(summary)
        depths, sides = [each.depth for each in maps], [each.side for each in maps]
        panel.plot(depths, sides, drawstyle="steps-post", color="tab:blue", label="side of the map, pixels")
        for label, kinds, color in (
            ("channels of a convolution or dense layer", ("image", *WEIGHTED), "tab:orange"),
            ("channels of a sum or concatenation of branches", JOINTS, "tab:red"),
        ):
            points = [(each.depth, each.channels) for each in maps if each.kind in kinds]
            panel.plot(*zip(*points, strict=True) if points else ((), ()), "o", color=color, markersize=3, label=label)
        panel.set_yscale("log", base=2)
        panel.set_title(summary.model)
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.yaxis.set_major_formatter("{x:.0f}")
    for panel in grid.flat[len(summaries) :]:
        panel.remove()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    figure.supxlabel("convolutions and dense layers so far, branches one after the other", fontsize="medium")
    figure.savefig(path, dpi=80)
