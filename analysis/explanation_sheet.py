"""Draws what explains a network's score: one sheet an image, legible at 800 pixels."""

import itertools
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.files import printable

WIDTH, DPI = 8.0, 100  # inches, pixels an inch
PERCENTILE = (
    99  # what a map is divided by, because single pixels would leave the others dark: Smilkov 2017, section 3.1
)


class Panel(NamedTuple):
    """A field of a sheet.

    Attributes:
      title: one or more lines.
      picture: (H, W, 1 or 3), uint8.
      heat: (H', W'), a map to draw over the picture; None: the picture alone.
      signed: whether the map has negative values too, which lower the score.
    """

    title: str
    picture: np.ndarray
    heat: np.ndarray | None = None
    signed: bool = False


def draw_sheet(title: str, columns: Sequence[Sequence[Panel]], path: pathlib.Path) -> None:
    """Draws a sheet, and writes it atomically.

    Args:
      title: above all panels.
      columns: the panels, from top to bottom. Those of a single column are arranged in rows of four.
      path: of the PNG file.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if len(columns) == 1:
        (panels,) = columns
        rows = [panels[first : first + 4] for first in range(0, len(panels), 4)]
    else:
        rows = list(itertools.zip_longest(*columns))
    count = max(map(len, rows))
    characters = int(WIDTH / count * 14.5)  # of a title's line
    titles = [[_wrapped(panel.title, characters) if panel else "" for panel in row] for row in rows]
    lines = sum(1 + max(text.count("\n") for text in row) for row in titles)
    figure = Figure(figsize=(WIDTH, len(rows) * WIDTH / count + 0.14 * lines + 1.3), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, texts, line in zip(rows, titles, grid, strict=True):
        for panel, text, axes in zip(row, texts, line, strict=False):
            if panel:
                axes.set_title(text, fontsize=8, parse_math=False)
                axes.imshow(_blend(panel, colormaps), interpolation="nearest")
    shown = [panel for row in rows for panel in row if panel and panel.heat is not None]
    bars = (
        (False, "magma", (0, 1), f"strength; 1 is the map's {PERCENTILE}th percentile"),
        (
            True,
            "RdBu_r",
            (-1, 1),
            f"blue lowers the score, red raises it; 1 is the {PERCENTILE}th percentile of the map's absolute values",
        ),
    )
    for signed, colors, limits, label in bars:
        if any(panel.signed == signed for panel in shown):
            mappable = ScalarMappable(Normalize(*limits), colors)
            bar = figure.colorbar(mappable, ax=grid, location="bottom", aspect=60, shrink=0.7, fraction=0.02, pad=0.01)
            bar.set_label(label, fontsize=8)
            bar.ax.tick_params(labelsize=8)
    figure.suptitle(_wrapped(title, int(WIDTH * 12)), fontsize=10, parse_math=False)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=DPI, format="png")
    temporary.rename(path)


def mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Arranges tiles (N, H, W, C) of values 0 to 1 in rows with white lines between them; returns uint8 (H', W', C)."""
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    result = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, channels))
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        result[top : top + height, left : left + width] = tile
    return (255 * result).round().astype(np.uint8)


def filter_panel(kernel: np.ndarray) -> Panel:
    """Shows filters, (KH, KW, C, O), each in colour from its least to its largest weight; grey ones if C is not 3."""
    filters = np.moveaxis(kernel, -1, 0)
    if filters.shape[-1] != 3:
        filters = filters.mean(-1, keepdims=True)
    count, height, width, _ = filters.shape
    title = f"{count} filters of the first layer"
    return Panel(title, mosaic(_stretched(filters), int(np.ceil(np.sqrt(count)))))


def stage_panels(maps: dict[str, np.ndarray], count: int = 9) -> list[Panel]:
    """Shows for each stage the `count` features of its map, (H', W', F), with the largest means.

    Each feature is scaled by itself: its least value is black, its largest white.
    """
    panels = []
    for stage, features in maps.items():
        height, width, total = features.shape
        strongest = np.argsort(-features.mean((0, 1)), kind="stable")[:count]
        tiles = _stretched(np.moveaxis(features[..., strongest], -1, 0)[..., None])
        title = f"{stage}: {len(strongest)} of {total} maps, {height}x{width}"
        panels.append(Panel(title, mosaic(tiles, int(np.ceil(np.sqrt(len(strongest)))))))
    return panels


def _stretched(tiles: np.ndarray) -> np.ndarray:
    """Scales each tile, (N, H, W, C), to 0 to 1."""
    low, high = (extreme(axis=(1, 2, 3), keepdims=True) for extreme in (tiles.min, tiles.max))
    return (tiles - low) / np.where(high > low, high - low, 1)


def _blend(panel: Panel, colormaps) -> np.ndarray:
    """Returns a panel's picture, (H, W, 3) from 0 to 1; a map covers the grey picture more where it is stronger."""
    picture = np.broadcast_to(panel.picture, (*panel.picture.shape[:2], 3)) / 255
    if panel.heat is None:
        return picture
    heat = np.asarray(panel.heat, np.float32)
    scale = np.percentile(np.abs(heat), PERCENTILE) or np.abs(heat).max() or 1
    height, width, _ = picture.shape
    heat = np.asarray(Image.fromarray(heat / scale).resize((width, height), Image.Resampling.BILINEAR)).clip(-1, 1)
    colors = colormaps["RdBu_r"]((heat + 1) / 2) if panel.signed else colormaps["magma"](heat)
    grey, share = picture.mean(-1, keepdims=True), 0.4 + 0.6 * np.abs(heat[..., None])
    return (1 - share) * grey + share * colors[..., :3]


def _wrapped(text: str, characters: int) -> str:
    return "\n".join(textwrap.fill(printable(line), characters) for line in text.split("\n"))
