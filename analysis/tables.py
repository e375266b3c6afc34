"""Tables on a terminal and in Markdown, all written by rich. A cell is plain text: never markup, never cut off."""

import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from analysis.rows import Row
from input_pipeline.files import printable
from training.output import messages

WIDEST_LINE = 10_000  # characters: a Markdown table is never broken to the width of a terminal


class Column(NamedTuple):
    """A column of a table whose rows are printed as they come.

    Attributes:
      heading: its name.
      width: characters; a longer cell makes its own line longer.
      key: the key of a row whose value the column shows.
      unit: what a number is divided by; None for text.
    """

    heading: str
    width: int
    key: str
    unit: float | None = None


def heading(columns: Sequence[Column]) -> str:
    """Returns the two lines above a Markdown table."""
    return _markdown(_headed(columns))


def line(columns: Sequence[Column], row: Row) -> str:
    """Returns one line of a Markdown table; a row whose status is not ok has its error in the place of the numbers."""
    table, cells = _headed(columns, show_header=False), [_cell(row.get(key), unit) for _, _, key, unit in columns]
    if row.get("status", "ok") != "ok":
        names = [column for column in columns if column.unit is None]
        table = _headed([*names, Column("", 0, "error")], show_header=False)
        cells = [*cells[: len(names)], f"{row['status']}: {row['error']}"]
    table.add_row(*map(_plain, cells))
    return _markdown(table)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[bool] = ()) -> str:
    """Returns a whole table in Markdown.

    Args:
      headings: of the columns.
      rows: the cells of each row.
      numbers: for each column whether it holds numbers, which stand on the right; default: text only.
    """
    table = Table(box=MARKDOWN)
    for name, is_number in zip(headings, numbers or [False] * len(headings), strict=True):
        table.add_column(_plain(name), justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_plain, row))
    return _markdown(table)


def print_boxed(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Prints a table with lines around its cells; long cells are wrapped on a terminal, not in a pipe or a file."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDEST_LINE)
    with messages():
        console.print(_boxed(headings, rows, title))


class Display:
    """Lines on the terminal, and below them a progress bar. Used as a context."""

    def __init__(self, total: int, to_errors: bool):
        """Starts at 0 of a total.

        Args:
          total: the number of steps of the bar.
          to_errors: whether to print to standard error, because standard output is for the results.
        """
        self._console = _Console(stderr=to_errors, highlight=False, markup=False, emoji=False, soft_wrap=True)
        description = TextColumn("{task.description}", markup=False)
        columns = BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), description
        self._shown = bool(self._console.is_terminal and total)
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not self._shown)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        if self._shown:  # Rich 13 ends a hidden bar with an empty line
            self._progress.stop()

    def say(self, text: str) -> None:
        """Prints lines above the bar."""
        with messages(self._console.file):
            self._console.print(printable(text, kept="\n"))

    def boxed(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Prints a table with lines around its cells above the bar."""
        with messages(self._console.file):
            self._console.print(_boxed(headings, rows))

    def begin(self, text: str) -> None:
        """Shows beside the bar what is being measured."""
        self._progress.update(self._task, description=printable(text))

    def advance(self, steps: int = 1) -> None:
        """Moves the bar by one step, or by several."""
        self._progress.advance(self._task, steps)


class _Console(Console):
    """A console whose closed pipe is an error; Rich would discard standard output, whichever stream was closed."""

    def on_broken_pipe(self) -> None:
        """Raises the BrokenPipeError that Rich has caught."""
        raise


def _boxed(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    table = Table(title=title and _plain(title))
    for name in headings:
        table.add_column(_plain(name), overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    return table


def _plain(cell: str) -> Text:
    return Text(printable(cell))


def _headed(columns: Sequence[Column], show_header: bool = True) -> Table:
    table = Table(box=MARKDOWN, show_header=show_header)
    for column in columns:
        table.add_column(Text(column.heading), min_width=column.width, no_wrap=True)
        table.columns[-1].justify = "left" if column.unit is None else "right"
    return table


def _markdown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDEST_LINE)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().strip().split("\n")
    if table.show_header:  # a colon at its end makes a column of numbers stand on the right where Markdown is shown
        rules = zip(lines[1].strip("|").split("|"), table.columns, strict=True)
        rules = [rule[:-1] + ":" if column.justify == "right" else rule for rule, column in rules]
        lines[1] = f"|{'|'.join(rules)}|"
    return "\n".join(lines)


def _cell(value: Any, unit: float | None) -> str:
    if value is None or unit is None:
        return "" if value is None else str(value)
    value /= unit
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
