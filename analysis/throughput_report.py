"""Pictures of a benchmark: accuracy against cost, throughput over the batch, time by kind of layer, the roofline.

The published accuracies are those of reference.csv, with their sources; the user's own runs stand beside them.
"""

import glob
import json
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import models
from analysis import layer_times
from analysis.rows import Row
from analysis.summary import read_reference, summarize
from configs import base
from training.configuration import read_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATASETS = {"imagenet2012": "ImageNet", "cifar10": "CIFAR-10"}
FAMILY_COLORS = dict(zip(sorted({entry.family for entry in models.REGISTRY.values()}), range(20), strict=False))


class Network(NamedTuple):
    """A trained network: whose it is, and what it costs.

    Attributes:
      label: its name; of a run that of its workdir.
      model: its name in the registry.
      dataset: that its accuracy is of.
      top1: its accuracy, %.
      gflops: billions of floating-point operations for one image, two for each multiply-accumulate.
      parameters: trainable numbers, millions.
      kind: published, published (10 crops) or own run.
    """

    label: str
    model: str
    dataset: str
    top1: float
    gflops: float
    parameters: float
    kind: str


def draw(rows: list[Row], folder: pathlib.Path, runs: str | None = None) -> list[pathlib.Path]:
    """Draws what the rows have figures for.

    Args:
      rows: of a benchmark.
      folder: for the pictures.
      runs: a pattern of the workdirs of finished runs whose accuracy is drawn, too.

    Returns:
      The pictures.

    Raises:
      FileNotFoundError: if no run fits the pattern.
    """
    networks = published_networks() + (own_networks(runs) if runs else [])
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
    """Returns the networks of reference.csv that have an accuracy."""
    networks = []
    for name, row in read_reference().items():
        if row["top1"]:
            dataset = "ImageNet" if row["num_classes"] == "1000" else "CIFAR-10"
            kind = "published, 10 crops" if "10 crops" in row["accuracy_source"] else "published"
            networks.append(_network(name, name, dataset, float(row["top1"]), None, kind))
    return networks


def own_networks(pattern: str) -> list[Network]:
    """Returns the finished runs whose workdirs fit a pattern, with their last evaluation.

    Raises:
      FileNotFoundError: if there is none.
    """
    networks = []
    for path in sorted(map(pathlib.Path, glob.glob(pattern))):
        if (path / "summary.json").exists():
            config, summary = read_config(path), json.loads((path / "summary.json").read_text())
            dataset = DATASETS.get(config.dataset, config.dataset.split(":")[-1].rstrip("/").split("/")[-1])
            top1 = 100 * summary["accuracy_top1"]
            networks.append(_network(path.name, config.model, dataset, top1, config, "own run"))
    if not networks:
        raise FileNotFoundError(f"--runs={pattern} names no finished run; give workdirs that hold a summary.json")
    return networks


def _network(label, model, dataset, top1, config, kind) -> Network:
    """Counts the costs, from the traced program."""
    if config is None:
        config = base.get_config()
        config.model = model
    config.batch_size = 1
    summary = summarize(config)
    return Network(label, model, dataset, top1, 2 * summary.macs / 1e9, summary.parameters / 1e6, kind)


def _save(path: pathlib.Path, draw_on: Callable, *arguments) -> pathlib.Path:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw_on(figure, *arguments)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110)
    return temporary.rename(path)


def _panels(figure: "Figure", networks: list[Network], width: float, height: float) -> list[tuple["Axes", list[Network]]]:
    """A panel for ImageNet, and one for each other dataset that a run is of."""
    datasets = ["ImageNet"]
    datasets += sorted({each.dataset for each in networks if each.kind == "own run"} - {"ImageNet"})
    figure.set_size_inches(width * len(datasets), height)
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    return [
        (axes, [each for each in networks if each.dataset == dataset])
        for axes, dataset in zip(panels, datasets, strict=True)
    ]
