"""Pictures of a benchmark: accuracy against cost, throughput over the batch, time by kind of layer, the roofline.

The published accuracies come from reference.csv; the user's own runs are drawn beside them.
"""

import glob
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import models
from analysis import layer_times
from analysis.rows import Row
from analysis.summary import read_reference, stored_figures, summarize
from configs import base
from training.workdir import read_config, run_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DATASETS = {"imagenet2012": "ImageNet", "cifar10": "CIFAR-10"}
# Green-Armytage's alphabet without its pale and its nearly black colors: fourteen that differ as much as they can.
COLORS = ("#0075DC", "#993F00", "#2BCE48", "#FF0010", "#00998F", "#740AFF", "#FFA405", "#F0A3FF", "#426600", "#5EF1F2")
COLORS += ("#C20088", "#808080", "#9DCC00", "#003380")
FAMILIES = list(dict.fromkeys(entry.family for entry in models.REGISTRY.values()))


class Network(NamedTuple):
    """A trained network: its accuracy and its costs.

    Attributes:
      label: its name; for a run the name of the workdir.
      model: its name in the registry.
      dataset: that the accuracy was measured on.
      top1: accuracy, %.
      gflops: billions of floating-point operations for one image, two for each multiply-accumulate.
      parameters: millions of trainable numbers.
      kind: published, published (10 crops) or own run.
    """

    label: str
    model: str
    dataset: str
    top1: float
    gflops: float
    parameters: float
    kind: str


def draw(rows: list[Row], folder: pathlib.Path, runs: Sequence[pathlib.Path] = ()) -> list[pathlib.Path]:
    """Draws the pictures that the rows have figures for.

    Args:
      rows: of a benchmark.
      folder: for the pictures.
      runs: workdirs of finished runs, to draw their accuracy too.

    Returns:
      The files of the pictures.
    """
    networks = published_networks() + own_networks(runs)
    measured = [row for row in rows if row["status"] == "ok" and row.get("step_ms_median")]
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [
        _save(folder / "accuracy_over_gflops.png", _draw_accuracy_over_gflops, networks),
        _save(folder / "accuracy_per_parameter.png", _draw_accuracy_per_parameter, networks),
    ]
    if measured:
        pictures.append(_save(folder / "throughput_over_batch_size.png", _draw_throughput, measured, rows))
        pictures.append(_save(folder / "roofline.png", _draw_roofline, measured))
    if profiled := [row for row in measured if row.get(layer_times.column(layer_times.KINDS[0])) is not None]:
        pictures.append(_save(folder / "time_by_layer_kind.png", _draw_time_by_kind, profiled))
    return pictures


def published_networks() -> list[Network]:
    """Returns the networks that have an accuracy in reference.csv."""
    networks, figures = [], stored_figures()
    for name, row in read_reference().items():
        if row["top1"]:
            dataset = "ImageNet" if row["num_classes"] == "1000" else "CIFAR-10"
            kind = "published, 10 crops" if "10 crops" in row["accuracy_source"] else "published"
            gflops = 2 * (figures[name]["macs"] or 0) / 1e9 if name in figures else _costs(_config_of(name))[0]
            parameters = int(row["parameters"]) / 1e6
            networks.append(Network(name, name, dataset, float(row["top1"]), gflops, parameters, kind))
    return networks


def find_runs(pattern: str) -> list[pathlib.Path]:
    """Returns the workdirs of finished runs in the folders that match a pattern, and below them.

    Raises:
      FileNotFoundError: if there is none.
    """
    matches = map(pathlib.Path, glob.glob(pattern))
    runs = sorted({summary.parent for match in matches for summary in match.rglob("summary.json")})
    if not runs:
        raise FileNotFoundError(f"--runs={pattern} names no finished run; give workdirs that hold a summary.json")
    return runs


def own_networks(runs: Sequence[pathlib.Path]) -> list[Network]:
    """Returns the networks of finished runs, with the accuracy of their last evaluation."""
    networks = []
    for path in runs:
        config, summary = read_config(path), json.loads((path / "summary.json").read_text())
        dataset = DATASETS.get(config.dataset, config.dataset.split(":")[-1].rstrip("/").split("/")[-1])
        costs = _costs(config)
        networks.append(
            Network(run_name(path), config.model, dataset, 100 * summary["accuracy_top1"], *costs, "own run")
        )
    return networks


def _config_of(model: str) -> ConfigDict:
    config = base.get_config()
    config.model = model
    return config


def _costs(config: ConfigDict) -> tuple[float, float]:
    """Returns GFLOPs an image and million parameters, both of the traced program and without auxiliary heads."""
    config = config.copy_and_resolve_references()
    config.batch_size = 1
    summary = summarize(config)
    return 2 * summary.macs / 1e9, summary.parameters / 1e6


def _save(path: pathlib.Path, draw_on: Callable, *arguments) -> pathlib.Path:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=110)
    draw_on(figure, *arguments)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary)
    return temporary.rename(path)


def _panels(
    figure: "Figure", networks: list[Network], width: float, height: float
) -> list[tuple["Axes", str, list[Network]]]:
    """One panel for ImageNet, and one for each other dataset of a run."""
    datasets = ["ImageNet"]
    datasets += sorted({each.dataset for each in networks if each.kind == "own run"} - {"ImageNet"})
    figure.set_size_inches(width * len(datasets), height)
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    return [
        (axes, dataset, [each for each in networks if each.dataset == dataset])
        for axes, dataset in zip(panels, datasets, strict=True)
    ]


def _draw_accuracy_over_gflops(figure: "Figure", networks: list[Network]) -> None:
    """Canziani, Culurciello and Paszke 2017, Fig. 2."""
    from matplotlib.lines import Line2D

    for axes, dataset, shown in _panels(figure, networks, 12, 8):
        areas = [12 * each.parameters for each in shown]
        for each, area in zip(shown, areas, strict=True):
            color = _color(each.model)
            face = "none" if each.kind == "published, 10 crops" else color
            edge = "black" if each.kind == "own run" else color
            axes.scatter(each.gflops, each.top1, s=area, facecolor=face, edgecolor=edge, alpha=0.55, linewidth=1.2)
            size, marker = (60, "*") if each.kind == "own run" else (5, "o")
            axes.scatter(each.gflops, each.top1, size, "black", marker=marker)
        axes.set_xscale("log")
        _round_ticks(axes.xaxis)
        axes.margins(0.1, 0.1)
        axes.set_xlabel("GFLOPs for one image: two for each multiply-accumulate")
        axes.set_ylabel(f"top-1 accuracy on {dataset}, %")
        axes.grid(alpha=0.25)
        sizes = [size for size in (1, 5, 25, 125) if size <= 2 * max(each.parameters for each in shown)]
        circle: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "none", "markeredgecolor": "gray"}
        handles = [Line2D([], [], markersize=math.sqrt(12 * size), label=f"{size} M", **circle) for size in sizes]
        if any(each.kind == "published, 10 crops" for each in shown):
            handles.append(Line2D([], [], markersize=8, label="not filled: 10 crops", **circle))
        if any(each.kind == "own run" for each in shown):
            handles.append(Line2D([], [], marker="*", linestyle="", color="black", label="own run"))
        parameters = axes.legend(
            handles=handles,
            title="parameters" if sizes else None,
            loc="lower right",
            labelspacing=1.7,
            handletextpad=2,
            borderpad=1.5,
        )
        axes.add_artist(parameters)
        there = {models.get_entry(each.model).family: _color(each.model) for each in shown}
        families = [
            Line2D([], [], marker="o", linestyle="", markersize=8, color=there[family], label=family)
            for family in FAMILIES
            if family in there
        ]
        axes.legend(handles=families, title="family", loc="upper left", fontsize=8)
        points = [(each.gflops, each.top1) for each in shown]
        radii = [math.sqrt(area) / 2 for area in areas]
        _label(axes, points, [each.label for each in shown], radii, taken=[parameters])
    figure.suptitle("Accuracy over cost; the area is the number of parameters")


def _draw_accuracy_per_parameter(figure: "Figure", networks: list[Network]) -> None:
    """Canziani, Culurciello and Paszke 2017, Fig. 10: accuracy per million parameters."""
    tallest = max(map(len, (panel for panel in _by_dataset(networks).values())))
    for axes, dataset, shown in _panels(figure, networks, 8, 0.2 * tallest + 1.6):
        shown = sorted(shown, key=lambda each: each.top1 / each.parameters)
        values = [each.top1 / each.parameters for each in shown]
        bars = axes.barh(range(len(shown)), values, color=[_color(each.model) for each in shown])
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
        axes.set_yticks(range(len(shown)), [each.label for each in shown], fontsize=8)
        axes.set_ylim(len(shown) - tallest - 0.7, len(shown) - 0.3)
        axes.margins(x=0.1)
        axes.set_xlabel(f"top-1 accuracy on {dataset}, % for each million parameters")
        axes.grid(alpha=0.25, axis="x")
        axes.set_axisbelow(True)
        for bar, each in zip(bars, shown, strict=True):
            if each.kind == "own run":
                bar.set(edgecolor="black", linewidth=1.5)
    figure.suptitle("Accuracy per parameter")


def _by_dataset(networks: list[Network]) -> dict[str, list[Network]]:
    return {name: [each for each in networks if each.dataset == name] for name in {each.dataset for each in networks}}


def _draw_throughput(figure: "Figure", measured: list[Row], rows: list[Row]) -> None:
    modes = sorted({row["mode"] for row in measured})
    figure.set_size_inches(7 * len(modes), 6)
    for axes, mode in zip(figure.subplots(1, len(modes), squeeze=False)[0], modes, strict=True):
        ends = []
        curves = _grouped(measured, mode)
        for number, (name, rows_of) in enumerate(curves.items()):
            points = sorted((row["batch_size"], row["images_per_second"]) for row in rows_of)
            errors = np.transpose(
                [
                    (
                        row["images_per_second"] - row["images_per_second_low"],
                        row["images_per_second_high"] - row["images_per_second"],
                    )
                    for row in sorted(rows_of, key=lambda row: row["batch_size"])
                ]
            )
            color = f"C{number % 10}"
            axes.errorbar(*zip(*points, strict=True), yerr=errors, marker="o", markersize=4, capsize=3, color=color)
            ends.append((points[-1], name, color))
        for row in rows:
            if row["status"] == "out_of_memory" and row["mode"] == mode and _name(row, measured) in curves:
                best = max(each["images_per_second"] for each in curves[_name(row, measured)])
                color = f"C{list(curves).index(_name(row, measured)) % 10}"
                axes.plot(row["batch_size"], best, "x", color=color, markersize=8, markeredgewidth=2)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        _round_ticks(axes.yaxis)
        axes.margins(0.2, 0.15)
        axes.set_xlabel("images a step")
        axes.set_ylabel("images/s")
        axes.set_title(mode)
        axes.grid(alpha=0.25)
        points, names, colors = zip(*ends, strict=True)
        _label(axes, points, names, [4] * len(ends), colors, widest_angle=1.3)
    crosses = "; a cross: out of memory" if any(row["status"] == "out_of_memory" for row in rows) else ""
    figure.suptitle(f"Throughput over batch size, {_machine(measured)}; bars: 95 %{crosses}")


def _draw_roofline(figure: "Figure", measured: list[Row]) -> None:
    """Williams, Waterman and Patterson 2009, Fig. 1, with the peaks measured on this machine."""
    figure.set_size_inches(11, 7)
    axes = figure.subplots()
    best: dict[tuple, Row] = {}
    for row in sorted(measured, key=lambda row: row["images_per_second"]):
        best[row["mode"], _name(row, measured)] = row
    measured = list(best.values())
    intensities = [row["flops_per_image"] / row["bytes_per_image"] for row in measured]
    achieved = [row["flops_per_image"] * row["images_per_second"] for row in measured]
    ceilings = {
        (row["dtype"], row["ceiling_flops_per_second"], row["ceiling_bytes_per_second"]): None for row in measured
    }
    for number, (dtype, flops, moved) in enumerate(ceilings):
        ends = min(min(intensities) / 2, flops / moved / 4), max(max(intensities) * 2, flops / moved * 4)
        x = np.array([ends[0], flops / moved, ends[1]])
        style: dict[str, Any] = {"color": "black", "linestyle": ("-", "--", "-.", ":")[number % 4], "linewidth": 1.5}
        axes.plot(x, np.minimum(flops, x * moved), **style, label=f"{dtype}: {_si(flops)}FLOP/s, {_si(moved)}B/s")
    markers = dict(zip(("train", "infer", "real"), "os^", strict=True))
    for row, x, y in zip(measured, intensities, achieved, strict=True):
        axes.plot(x, y, markers[row["mode"]], color=_color(row["model"]), markersize=7, markeredgecolor="black")
    for mode in dict.fromkeys(row["mode"] for row in measured):
        axes.plot([], [], markers[mode], color="lightgray", markeredgecolor="black", label=mode)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.05, 0.12)
    axes.set_xlabel("floating-point operations for each byte that must move at least")
    axes.set_ylabel("FLOP/s")
    _round_ticks(axes.xaxis)
    _round_ticks(axes.yaxis)
    axes.yaxis.set_major_formatter(lambda value, _: _si(value))
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left")
    roofs = [
        min(row["ceiling_flops_per_second"], x * row["ceiling_bytes_per_second"])
        for row, x in zip(measured, intensities, strict=True)
    ]
    shares = [y / roof for y, roof in zip(achieved, roofs, strict=True)]
    names = [f"{name}{f' ({share:.0%})' if share > 1 else ''}" for (_, name), share in zip(best, shares, strict=True)]
    _label(axes, list(zip(intensities, achieved, strict=True)), names, [5] * len(measured))
    if max(shares) > 1:
        figure.supxlabel(
            "Above the roof, % of it: the bytes are counted layer by layer; a program that fuses layers or keeps maps "
            "in a cache moves fewer.",
            fontsize=8,
        )
    figure.suptitle(f"Networks at their best batch size under the roofline of the same run: {_machine(measured)}")


def _draw_time_by_kind(figure: "Figure", profiled: list[Row]) -> None:
    figure.set_size_inches(11, 0.42 * len(profiled) + 2.2)
    axes = figure.subplots()
    left = np.zeros(len(profiled))
    for number, kind in enumerate(layer_times.KINDS):
        shares = 100 * np.array([row[layer_times.column(kind)] for row in profiled])
        bars = axes.barh(range(len(profiled)), shares, left=left, label=kind, color=f"C{number}", height=0.75)
        axes.bar_label(bars, [f"{share:.0f}" if share >= 4 else "" for share in shares], label_type="center", color="w")
        left += shares
    names = [f"{_name(row, profiled)}, {row['mode']} {row['batch_size']}" for row in profiled]
    axes.set_yticks(range(len(profiled)), names)
    axes.set(xlim=(0, 100), ylim=(len(profiled) - 0.4, -0.6))
    axes.set_xlabel("share of the time of all operations, %, by a profile of three steps")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)


def _grouped(measured: list[Row], mode: str) -> dict[str, list[Row]]:
    """The rows of a mode by the names of their curves; rows of a curve differ only in the batch size."""
    curves: dict[str, list[Row]] = {}
    for row in measured:
        if row["mode"] == mode:
            curves.setdefault(_name(row, measured), []).append(row)
    return curves


def _name(row: Row, rows: list[Row]) -> str:
    """The model, with the image size and the data type if they differ between its rows."""
    parts = [row["model"]]
    parts += [f"{row['image_size']} px"] * (
        len({each["image_size"] for each in rows if each["model"] == row["model"]}) > 1
    )
    parts += [row["dtype"]] * (len({each["dtype"] for each in rows}) > 1)
    return ", ".join(parts)


def _machine(rows: list[Row]) -> str:
    """The hardware that the rows were measured on."""
    names = {
        f"{row['device_count']} x {row['device'] if row['platform'] != 'cpu' else row['processor']}" for row in rows
    }
    return ", ".join(sorted(names))


def _color(model: str) -> str:
    """A color for each family; with more families than in the list the first colors come again."""
    return COLORS[FAMILIES.index(models.get_entry(model).family) % len(COLORS)]


def _round_ticks(axis: "Axis") -> None:
    """Puts the ticks of a logarithmic axis at 1, 2, 5, 10, 20, 50 and so on."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,g}")


def _si(value: float) -> str:
    """A number with an SI prefix: 1.2 T, 34 G."""
    power = min(max(int(math.log10(value) // 3), 0), 5) if value > 0 else 0
    return f"{value / 1000**power:.3g} {' kMGTP'[power].strip()}"


def _label(
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    radii: Sequence[float],
    colors: Sequence[str] = (),
    widest_angle: float = math.pi,
    taken: Sequence[Any] = (),
) -> None:
    """Writes a name beside each point, where it overlaps least with other names, other points and the edges.

    Args:
      axes: with their final scales and limits.
      points: in data coordinates.
      texts: the names.
      radii: of the circles drawn at the points, in typographic points.
      colors: of the names; default: black.
      widest_angle: the largest angle between the direction of a name and the right, radians; default: any direction.
      taken: legends and other things, besides the axes' legend, that no name may cover.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()  # computes the layout
    pixels = figure.dpi / 72
    centers = axes.transData.transform(points)
    # A name is legible within a large circle, but not on its middle. A box is its lower left and upper right corner.
    halves = np.clip(radii, 3, 12)[:, None] * pixels
    boxes_taken = [*np.hstack([centers - halves, centers + halves])]
    for legend in filter(None, (axes.get_legend(), *taken)):
        boxes_taken.append(np.array(legend.get_window_extent().extents))
    angles = np.array(
        sorted(np.linspace(-widest_angle, widest_angle, 17), key=abs)
    )  # of equally good directions the first, the right, is taken
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    for number, (center, text, point) in enumerate(zip(centers, texts, points, strict=True)):
        color = colors[number] if colors else "black"
        note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=8, color=color)
        half, reach = np.array(note.get_window_extent().size) / 2, min(radii[number], 12) * pixels
        best, least = np.zeros(4), math.inf
        for distance in (3, 8, 14, 22, 32, 44, 60, 80, 100):
            middles = center + directions * (reach + distance * pixels + half)
            boxes = np.hstack([middles - half, middles + half])
            outside = 4 * half.prod() - _overlap(boxes, np.array(axes.bbox.extents))
            costs = distance + 10 * outside + sum(_overlap(boxes, other) for other in boxes_taken)
            if costs.min() < least:
                best, least = boxes[costs.argmin()], costs.min()
        boxes_taken.append(best)
        note.set_position((best[:2] - center) / pixels)
        nearest = np.clip(center, best[:2], best[2:])
        if np.hypot(*(nearest - center)) > reach + 10 * pixels:
            ends = axes.transData.inverted().transform([center, nearest])
            axes.plot(*ends.T, color="gray", linewidth=0.6, scalex=False, scaley=False)


def _overlap(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The area, in square pixels, that each of the boxes, (n, 4), shares with another one, (4,)."""
    sides = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    return np.clip(sides, 0, None).prod(axis=-1)
