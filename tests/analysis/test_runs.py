"""Runs beside each other: from metrics that are written by hand, so that every figure is known."""

import base64
import html.parser
import json
import math
import statistics

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis import runs, runs_report
from configs import base
from training.metrics import plot_curves, read_rows


def write_run(folder, accuracies, seed=0, total_steps=30, extra=None, **options):
    """Writes the workdir of a run with an evaluation at every tenth step, a step a second; returns the folder."""
    config = json.loads(base.get_config().to_json())
    natural = {"image_size": 32, "channels": 1, "dropout_rate": 0.0, "num_classes": 10, "aux_weight": []}
    config |= natural | {"num_steps": total_steps, "num_epochs": 3.0, "eval_batch_size": 64, "seed": seed} | options
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": config}))
    rows = []
    for step, accuracy in zip(range(10, total_steps + 1, 10), accuracies, strict=False):
        row = {"step": step, "epoch": step / 10, "accuracy_top1": accuracy, "accuracy_top5": 1.0}
        row["seconds"] = float(step)
        rows.append(row | {"split": "train", "loss": 2.0, "learning_rate": 0.1} | (extra or {}))
        rows.append(row | {"split": "validation", "loss": 1.0, "examples": 400})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if len(accuracies) == total_steps // 10:
        (folder / "summary.json").write_text("{}")
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two settings with three seeds each, one that was stopped, and one on another dataset."""
    for seed, (plain, headed) in enumerate([(0.80, 0.90), (0.82, 0.94), (0.84, 0.92)]):
        write_run(tmp_path / f"lenet5/seed={seed}", [0.5, 0.85, plain], seed)
        heads = {"aux_weight": [0.3], "aux_heads": ["conv3"]}
        write_run(tmp_path / f"lenet5/aux_weight=0.3,seed={seed}", [0.6, 0.7, headed], seed, **heads)
    write_run(tmp_path / "lenet5/learning_rate=1.0", [0.1], learning_rate=1.0)
    write_run(tmp_path / "other", [0.2, 0.3, 0.4], dataset="synthetic")
    return tmp_path


def rows_of(group, baseline=None, targets=(), sort=None):
    table = runs_report.make_table(group, targets, sort, baseline)
    return [dict(zip(table.headings, cells, strict=True)) for cells in table.cells]


def test_runs_of_one_setting_are_averaged_over_the_seeds(folders):
    groups = runs.group_runs(runs.find_runs([str(folders)]))
    assert [group.title for group in groups] == ["digits, 400 validation images", "synthetic, 400 validation images"]
    assert groups[0].options == ["aux_weight", "learning_rate"]  # not the seed, nor the heads that follow from it
    headed, plain, stopped = rows_of(groups[0], targets=[0.85])
    assert (headed["aux_weight"], headed["seeds"], headed["state"]) == ("0.3", "0, 1, 2", "3 of 3 finished")
    assert headed["top-1, %"] == "92.00 ± 2.00" and plain["top-1, %"] == "82.00 ± 2.00"
    assert plain["best top-1, %"] == "85.00 ± 0.00" and plain["steps to 85 %"] == "20 ± 0"
    assert headed["time to 85 %"] == "30 s ± 0 s" and stopped["time to 85 %"] == "never"
    assert stopped["state"] == "stopped, 33 %" and stopped["top-1, %"] == "10.00"


def test_a_setting_averages_finished_runs_only(folders):
    write_run(folders / "lenet5/seed=3", [0.1], seed=3)
    (group, _) = runs.group_runs(runs.find_runs([str(folders)]))
    (plain,) = (row for row in rows_of(group) if row["seeds"] == "0, 1, 2, 3")
    assert plain["state"] == "3 of 4 finished" and plain["top-1, %"] == "82.00 ± 2.00"


def test_runs_of_another_split_or_share_are_another_group(folders):
    write_run(folders / "lenet5/split_seed=1", [0.5, 0.6, 0.7], split_seed=1)
    assert len(runs.group_runs(runs.find_runs([str(folders)]))) == 3


def test_differences_have_the_interval_of_welch_or_of_the_images(folders):
    groups = runs.group_runs(runs.find_runs([f"{folders}/lenet5"]))
    baseline = runs.find_setting(groups, f"{folders}/lenet5/seed=1")
    headed, plain, stopped = rows_of(groups[0], baseline)
    # scipy 1.15: scipy.stats.ttest_ind([.90, .94, .92], [.80, .82, .84], equal_var=False).confidence_interval(0.95)
    assert headed["difference, points"] == "+10.00 [+5.47, +14.53]"
    assert plain["difference, points"] == "baseline"
    half = 196 * math.sqrt((0.1 * 0.9 + 0.82 * 0.18) / 400)
    assert stopped["difference, points"] == f"-72.00 [{-72 - half:+.2f}, {-72 + half:+.2f}]*"
    with pytest.raises(ValueError, match="--baseline=.* is none of the runs"):
        runs.find_setting(groups, f"{folders}/other")


def test_rows_are_filtered_and_sorted(folders):
    found = runs.find_runs([f"{folders}/*", f"{folders}/lenet5/seed=0"])
    assert len(found) == 8  # a run that two patterns name counts once
    assert {run.config["seed"] for run in runs.filter_runs(found, ["seed=1", "dataset=dig*"])} == {1}
    with pytest.raises(ValueError, match="--filter=seed=9 matches no run; seed is 0, 1, 2"):
        runs.filter_runs(found, ["seed=9"])
    with pytest.raises(ValueError, match="--filter=sed=1 is invalid; did you mean seed?"):
        runs.filter_runs(found, ["sed=1"])
    group = runs.group_runs(found)[0]
    assert [row["learning_rate"] for row in rows_of(group, sort="learning_rate")] == ["0.05", "0.05", "1.0"]
    with pytest.raises(ValueError, match="--sort=tops is no column"):
        rows_of(group, sort="tops")
    with pytest.raises(FileNotFoundError, match="nowhere names no run"):
        runs.find_runs(["nowhere"])


def test_consequences_of_an_option_are_not_listed(tmp_path):
    natural = {"image_size": 224, "channels": 3, "dropout_rate": 0.5}
    write_run(tmp_path / "a", [0.5] * 3)
    write_run(tmp_path / "b", [0.5] * 3, model="vgg11", batch_size=32, eval_batch_size=32, **natural)
    (group,) = runs.group_runs(runs.find_runs([f"{tmp_path}/?"]))
    assert group.options == ["model", "batch_size"]


class Page(html.parser.HTMLParser):
    """Collects what a page shows and what it asks for."""

    def __init__(self):
        super().__init__()
        self.sources, self.cells, self.buttons = [], [], 0

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [value for name, value in attributes.items() if name in ("src", "href")]
        self.buttons += tag == "button"
        assert tag not in ("link", "iframe") and (tag != "img" or attributes["alt"])

    def handle_data(self, data):
        self.cells.append(data)


def test_the_page_needs_no_other_file_and_shows_every_run(folders, tmp_path):
    write_run(folders / "lenet5/<b>&.png", [0.5, 0.5, 0.5], train_split="<b>&")
    extra = {"total_loss": 3.0, "aux1_loss": 1.0}
    write_run(folders / "lenet5/aux_weight=1", [0.9] * 3, aux_weight=[1.0], aux_heads=["conv3"], extra=extra)
    found = runs.find_runs([str(folders / "lenet5")])
    groups = runs.group_runs(found)
    tables = [(group, runs_report.make_table(group, [], None, None)) for group in groups]
    html_file, markdown_file = runs_report.write(tmp_path / "out", tables, None)
    page = Page()
    page.feed(html_file.read_text())
    assert len(page.sources) == 3 * len(groups)
    for source in page.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    assert {str(run.folder) for run in found} <= set(page.cells) and page.buttons
    assert "https:" not in html_file.read_text() and "http:" not in html_file.read_text()
    for line in markdown_file.read_text().splitlines():
        if line.startswith("!["):
            assert Image.open(markdown_file.parent / line.partition("](")[2].rstrip(")")).width > 500


def test_the_mean_over_seeds_has_all_of_them_at_the_step_where_one_was_stopped(tmp_path):
    for seed, accuracies in enumerate([[0.2, 0.4, 0.6], [0.4, 0.6, 0.8]]):
        write_run(tmp_path / f"seed={seed}", accuracies, seed)
    path = tmp_path / "seed=0" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    stopped = next(row for row in rows if row["step"] == 10 and row["split"] != "train")
    stopped = stopped | {"step": 15, "epoch": 1.5 * stopped["epoch"], "accuracy_top1": 0.3}
    path.write_text("".join(json.dumps(row) + "\n" for row in sorted([*rows, stopped], key=lambda row: row["step"])))
    (group,) = runs.group_runs(runs.find_runs([str(tmp_path)]))
    axes = Figure().subplots()
    runs_report._draw_setting(axes, group.settings[0], "step", "accuracy_top1", 100, True, color="C0")
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[10, 30], [15, 40], [20, 50], [30, 70]])


def test_metrics_of_earlier_versions_have_the_main_classifiers_loss(tmp_path):
    row = {"step": 1, "epoch": 0.1, "split": "train", "loss": 3.0, "accuracy_top1": 0.5, "accuracy_top5": 1.0}
    row |= {"seconds": 1.0, "learning_rate": 0.1, "main_loss": 2.0, "aux1_loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read_rows(tmp_path)
    assert (found["loss"], found["total_loss"]) == (2.0, 3.0) and "main_loss" not in found


@pytest.mark.parametrize(("worst", "scale"), [(2.5, "linear"), (5e6, "log")])
def test_an_exploded_loss_gets_a_logarithmic_axis(tmp_path, monkeypatch, worst, scale):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    rows = [
        {"step": step, "epoch": step, "split": "train", "loss": loss, "accuracy_top1": 0.5, "learning_rate": 0.1}
        for step, loss in enumerate([2.3, worst, 1.0, 0.5, 0.3])
    ]
    plot_curves(tmp_path, rows)
    assert figures[0].axes[0].get_yscale() == scale and figures[0].axes[1].get_yscale() == "linear"
    plot_curves(tmp_path, [row | {"total_loss": 5.0, "aux1_loss": 1.0} for row in rows])
    labels = [[line.get_label() for line in axes.lines] for axes in figures[1].axes]
    assert labels == [["train"], ["total_loss", "aux1_loss"], ["train"], ["train"]]


def test_spreads():
    values = [1.0, 2.0, 4.0]
    assert runs.Spread.of(values) == (statistics.fmean(values), statistics.stdev(values), 3)
    assert runs.Spread.of([]) is None and runs.Spread.of([1.0]) == (1.0, None, 1)
