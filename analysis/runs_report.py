"""What compare.py prints and writes: the table of runs, curves, a page in HTML and the same in Markdown."""

import base64
import html
import io
import itertools
import pathlib
import string
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis import tables
from analysis.runs import Group, Run, Setting, Spread, difference
from configs import base
from configs._option import nearest_name
from training.metrics import Row, format_seconds, is_evaluation, is_other_loss, scale_losses
from training.workdir import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; beyond seven the markers differ too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
MOST_CURVES = 14
AXES = {"epoch": "epoch", "step": "optimizer steps", "seconds": "seconds"}
TEMPLATE = pathlib.Path(__file__).parent / "runs_page.html"
PAGE, PAGE_MARKDOWN = "comparison.html", "comparison.md"


class Table(NamedTuple):
    """The table of a group of runs, a row for each setting.

    Attributes:
      headings: of the columns.
      cells: the texts of each row.
      settings: of the rows, in their order.
    """

    headings: list[str]
    cells: list[list[str]]
    settings: list[Setting]


def make_table(group: Group, targets: Sequence[float], sort: str | None, baseline: Setting | None) -> Table:
    """Returns the table of a group.

    Args:
      group: of runs.
      targets: top-1 accuracies, shares, for which the steps and the time to reach them are shown.
      sort: the heading of a column, or an option; None, or an option that is the same for the whole group: top-1.
      baseline: the setting from which differences are shown, if it is in the group; None for none.

    Raises:
      ValueError: if there is no such column.
    """
    baseline = baseline if baseline in group.settings else None
    rows = [(setting, _columns(setting, group, targets, baseline)) for setting in group.settings]
    names = list(rows[0][1])
    short = {name.partition(",")[0]: name for name in reversed(names)}  # "top-1" for "top-1, %"
    column = short.get(sort or "", sort) or "top-1, %"
    if column not in names:
        if column not in base.OPTIONS:
            hint = nearest_name(column, short) or f"; choose {', '.join(short)}"
            raise ValueError(f"--sort={sort} is no column{hint}")
        column = "top-1, %"
    rows.sort(key=lambda row: _sort_key(column, row[1][column][0]))
    cells = [[text for _, text in columns.values()] for _, columns in rows]
    return Table(names, cells, [setting for setting, _ in rows])


def describe(groups: Sequence[tuple[Group, Table]], baseline: Setting | None) -> str:
    """Returns the tables of all groups as Markdown, which a terminal shows well too."""
    parts = []
    for group, table in groups:
        numbers = [name not in ("run", "state", "seeds", *group.options) for name in table.headings]
        parts += [f"{group.title}:", tables.markdown(table.headings, table.cells, numbers)]
    return "\n\n".join([*parts, *notes([group for group, _ in groups], baseline)])


def notes(groups: Sequence[Group], baseline: Setting | None) -> list[str]:
    """Returns sentences that explain the figures of the tables."""
    settings = [setting for group in groups for setting in group.settings]
    texts = []
    if any(len(setting.runs) > 1 for setting in settings):
        texts.append("Figures of several seeds are their mean ± standard deviation, over the finished runs.")
    if baseline:
        texts.append(
            f"Differences are to {baseline.label}, in percentage points of top-1, with a 95 % interval: Welch's over "
            "the seeds where both have several; marked * it is that of sampling the evaluation images, which "
            "says nothing about other seeds."
        )
    if len(groups) > 1:
        texts.append("Runs of different datasets or splits are in different tables, because their accuracies differ.")
    return texts


def write(folder: pathlib.Path, groups: Sequence[tuple[Group, Table]], baseline: Setting | None) -> list[pathlib.Path]:
    """Writes comparison.html, which needs no other file, and comparison.md with its pictures; returns both pages."""
    folder.mkdir(parents=True, exist_ok=True)
    sections, texts = [], ["# Comparison of runs"]
    for number, (group, table) in enumerate(groups, start=1):
        pictures = {axis: draw_curves(table.settings[:MOST_CURVES], axis) for axis in AXES}
        sections.append(_section(number, group, table, pictures))
        texts += [f"## {group.title}", tables.markdown(table.headings, table.cells), *notes([group], baseline)]
        for axis, picture in pictures.items():
            name = f"curves{number}_over_{axis}.png"
            write_atomically(folder / name, picture)
            texts.append(f"![curves over {AXES[axis]}]({name})")
    remarks = "".join(f"<p>{html.escape(text)}</p>" for text in notes([group for group, _ in groups], baseline))
    page = string.Template(TEMPLATE.read_text()).substitute(sections="\n".join(sections), remarks=remarks)
    write_atomically(folder / PAGE, page)
    write_atomically(folder / PAGE_MARKDOWN, "\n\n".join(texts) + "\n")
    return [folder / PAGE, folder / PAGE_MARKDOWN]


def draw_curves(settings: Sequence[Setting], axis: str) -> bytes:
    """Returns a PNG of accuracy and loss over "epoch", "step" or "seconds", a colour for each setting.

    Evaluations are solid, training is dashed. With several seeds a line is their mean and a band reaches from the
    lowest to the highest. Losses are the main classifier's; total and auxiliary losses have a panel of their own.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = {name for setting in settings for run in setting.runs for row in run.rows for name in row}
    extra = sorted(filter(is_other_loss, names))
    other_losses = list(zip(extra, itertools.cycle(_EXTRA_STYLES), strict=False))
    panels = [("accuracy_top1", "top-1 accuracy, %"), ("loss", "cross-entropy of the\nmain classifier, nats")]
    height = 2.6 * (len(panels) + bool(extra)) + 0.22 * len(settings) + 0.5
    figure = Figure(figsize=(5.2, height), layout="constrained", dpi=150)
    grid = figure.subplots(len(panels) + bool(extra), 1, sharex=True)
    for number, setting in enumerate(settings):
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number // len(COLORS) % len(MARKERS)]}
        for axes, (name, _) in zip(grid, panels, strict=False):
            scale = 100 if name == "accuracy_top1" else 1
            _draw_setting(axes, setting, axis, name, scale, True, label=setting.label, linestyle="-", **style)
            _draw_setting(
                axes, setting, axis, name, scale, False, linestyle="--", linewidth=1, **style | {"marker": ""}
            )
        for name, linestyle in other_losses:
            plain = {"linestyle": linestyle, "linewidth": 1.2} | style | {"marker": ""}
            _draw_setting(grid[-1], setting, axis, name, 1, False, **plain)
    for axes, (_, label) in zip(grid, panels, strict=False):
        axes.set_ylabel(label)
    if extra:
        grid[-1].set_ylabel("other losses of\nthe training, nats")
        lines = [
            Line2D([], [], color="gray", linestyle=style)
            for _, style in zip(extra, itertools.cycle(_EXTRA_STYLES), strict=False)
        ]
        grid[-1].legend(lines, extra, fontsize="small")
    for axes in grid:
        axes.grid(alpha=0.3)
    for axes in grid[1:]:
        scale_losses(axes)
    grid[-1].set_xlabel(AXES[axis])
    handles, labels = grid[0].get_legend_handles_labels()
    title = "solid: evaluation, dashed: training" + ("; band: all seeds" if _has_seeds(settings) else "")
    figure.legend(handles, labels, loc="outside lower left", fontsize="small", title=title, title_fontsize="small")
    return _as_png(figure)


def show_spread(spread: Spread | None, scale: float, digits: int) -> str:
    """Returns mean ± standard deviation, a single value alone, or "" for None."""
    if spread is None:
        return ""
    text = f"{scale * spread.mean:,.{digits}f}"
    return text if spread.deviation is None else f"{text} ± {scale * spread.deviation:,.{digits}f}"


_EXTRA_STYLES: Any = ("-", ":", "-.", (0, (1, 3)), (0, (5, 1, 1, 1, 1, 1)))


def _columns(
    setting: Setting, group: Group, targets: Sequence[float], baseline: Setting | None
) -> dict[str, tuple[Any, str]]:
    """Returns the columns of a row: their headings, the value that they are sorted by, and their text."""
    columns: dict[str, tuple[Any, str]] = {}
    if not group.options:
        columns["run"] = (setting.label, setting.label)
    columns |= {name: (_number(text), text) for name, text in setting.options.items()}
    columns["seeds"] = (len(setting.runs), ", ".join(str(run.config["seed"]) for run in setting.runs))
    columns["state"] = (setting.state, setting.state)
    top1, best, loss, seconds = setting.last("accuracy_top1"), setting.best, setting.last("loss"), setting.seconds
    columns["top-1, %"] = (top1 and top1.mean, show_spread(top1, 100, 2))
    if baseline:
        columns |= _difference_columns(setting, baseline)
    columns["best top-1, %"] = (best and best.mean, show_spread(best, 100, 2))
    columns["loss, nats"] = (loss and loss.mean, show_spread(loss, 1, 4))
    for target in targets:
        for name, heading in (("step", f"steps to {100 * target:g} %"), ("seconds", f"time to {100 * target:g} %")):
            reached, never = setting.reach(target, name)
            text = show_spread(reached, 1, 0) if name == "step" else _show_time(reached)
            text = f"{text} ({never} of {len(setting.counted)} never)" if reached and never else text or "never"
            columns[heading] = (reached and reached.mean, text)
    columns["time"] = (seconds and seconds.mean, _show_time(seconds))
    return columns


def _difference_columns(setting: Setting, baseline: Setting) -> dict[str, tuple[Any, str]]:
    heading = "difference, points"
    found = difference(setting, baseline)
    if setting is baseline or found is None:
        return {heading: (0.0 if found else None, "baseline" if setting is baseline else "")}
    value, half, kind = found
    star = "*" if kind == "images" else ""
    return {heading: (value, f"{100 * value:+.2f} [{100 * (value - half):+.2f}, {100 * (value + half):+.2f}]{star}")}


def _show_time(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return format_seconds(spread.mean) + ("" if spread.deviation is None else f" ± {format_seconds(spread.deviation)}")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _sort_key(column: str, value: Any) -> tuple:
    """Accuracies and differences from the highest, everything else from the lowest, unknown values last."""
    if isinstance(value, str) or value is None:
        return value is None, 1, 0.0, value or ""
    return False, 0, -value if "top-1" in column or "difference" in column else value, ""


def _has_seeds(settings: Iterable[Setting]) -> bool:
    return any(len(setting.runs) > 1 for setting in settings)


def _points(run: Run, axis: str, name: str, evaluated: bool) -> list[tuple[float, float]]:
    rows: list[Row] = [row for row in run.rows if is_evaluation(row) == evaluated and name in row]
    return [(row[axis], row[name]) for row in rows]


def _draw_setting(
    axes: "Axes", setting: Setting, axis: str, name: str, scale: float, evaluated: bool, **style: Any
) -> None:
    """Draws a metric of a setting: a line for a single run, the mean and a band for several."""
    curves = [points for run in setting.counted if (points := _points(run, axis, name, evaluated))]
    if not curves:
        return
    # The curves are interpolated wherever a seed has a row, within the range that all seeds cover: clocks differ, and a
    # run that was stopped has a row of its own at that step.
    start, end = max(points[0][0] for points in curves), min(points[-1][0] for points in curves)
    x = np.unique(np.clip([where for points in curves for where, _ in points], start, max(start, end)))
    values = [np.interp(x, *np.transpose(points)) for points in curves]
    low, middle, high = np.min(values, 0), np.mean(values, 0), np.max(values, 0)
    if axis == "seconds" and len(curves) > 1:
        style |= {"marker": ""}
    axes.plot(x, scale * middle, markersize=3.5, **style)
    if len(curves) > 1:
        axes.fill_between(x, scale * low, scale * high, color=style["color"], alpha=0.2, linewidth=0)


def _as_png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _section(number: int, group: Group, table: Table, pictures: dict[str, bytes]) -> str:
    """Returns the part of the page about a group: its table, its curves and a table of every run."""
    shown, count = min(len(table.settings), MOST_CURVES), len(table.settings)
    left_out = f" of the first {shown} of {count} rows" if shown < count else ""
    choices, images = [], []
    for position, (axis, picture) in enumerate(pictures.items()):
        checked = " checked" if position == 0 else ""
        key = f"axis{number}{axis}"
        radio = f'<input type="radio" name="axis{number}" id="{key}"{checked}>'
        choices.append(f"<label>{radio}{AXES[axis]}</label> ")
        source = base64.b64encode(picture).decode()
        text = f"Top-1 accuracy and loss over {AXES[axis]}: {'; '.join(s.label for s in table.settings[:shown])}"
        images.append(f'<img class="{axis}" alt="{html.escape(text)}" src="data:image/png;base64,{source}">')
    runs = [
        [
            str(run.folder),
            setting.label if group.options else "",
            str(run.config["seed"]),
            run.state,
            f"{100 * run.evaluations[-1]['accuracy_top1']:.2f}" if run.evaluations else "",
            f"{run.evaluations[-1]['loss']:.4f}" if run.evaluations else "",
            f"{run.rows[-1]['seconds']:.0f}" if run.rows else "",
        ]
        for setting in table.settings
        for run in setting.runs
    ]
    headings = ["folder", "options", "seed", "state", "top-1, %", "loss, nats", "seconds"]
    return f"""<section>
<h2>{html.escape(group.title)}</h2>
{_html_table(table.headings, table.cells, "settings")}
<h3>Curves{left_out}</h3>
<fieldset class="curves"><legend>over</legend>{"".join(choices)}
<div>{"".join(images)}</div></fieldset>
<details><summary>Every run</summary>{_html_table(headings, runs, "every run")}</details>
</section>"""


def _html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    head = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<label class="filter">rows with <input type="search" placeholder="any text"></label>'
        f'<div class="wide" tabindex="0" role="region" aria-label="table of {label}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
