"""The pictures of a benchmark can be read: every family has its color and its name, and no name covers another."""

import itertools

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from analysis import throughput_report
from models import REGISTRY


def test_accuracy_over_cost_names_each_network_once_and_no_name_covers_another():
    networks = [each for each in throughput_report.published_networks() if each.dataset == "ImageNet"]
    figure = Figure(layout="constrained", dpi=110)
    throughput_report._draw_accuracy_over_gflops(figure, networks)
    (axes,) = figure.axes
    names = [child for child in axes.get_children() if isinstance(child, Annotation)]
    assert sorted(name.get_text() for name in names) == sorted(each.model for each in networks)
    figure.draw_without_rendering()
    boxes = [name.get_window_extent() for name in names]
    for (one, first), (two, second) in itertools.combinations(zip(names, boxes, strict=True), 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(width, height) < 2, f"{one.get_text()} and {two.get_text()} overlap"  # pixels
    families = {REGISTRY[each.model].family for each in networks}
    assert {text.get_text() for text in axes.get_legend().get_texts()} == families


def test_every_family_has_a_color_of_its_own():
    colors = {entry.family: throughput_report._color(entry.name) for entry in REGISTRY.values()}
    assert len(set(colors.values())) == min(len(colors), len(throughput_report.COLORS))


@pytest.mark.parametrize("share", [0.5, 1.12])
def test_points_above_the_roofline_are_marked_and_explained(share):
    row = {"model": "resnet50", "mode": "train", "dtype": "float32", "image_size": 224, "device_count": 1}
    row |= {"platform": "gpu", "device": "GPU", "flops_per_image": 1e10, "bytes_per_image": 1e9}
    row |= {"ceiling_flops_per_second": 1e14, "ceiling_bytes_per_second": 1e12, "images_per_second": share * 1e3}
    figure = Figure(layout="constrained")
    throughput_report._draw_roofline(figure, [row])
    (name,) = (child for child in figure.axes[0].get_children() if isinstance(child, Annotation))
    assert name.get_text() == ("resnet50" if share < 1 else "resnet50 (112%)")
    assert figure.get_supxlabel().startswith("Above the roof") == (share > 1)
