"""The rows of a benchmark: as files, and as a table that grows while they come."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from training.workdir import write_atomically

Row = dict[str, Any]
# What each row has, even one that failed.
IDENTITY = {"model", "mode", "batch_size", "image_size", "dtype", "status", "auto"}


class Column(NamedTuple):
    """A column of a table: its heading, its width, the key of a row that it shows, and its unit; None for a name."""

    heading: str
    width: int
    key: str
    unit: float | None = None


def line(columns: list[Column], row: Row) -> str:
    """Returns a row of the table, in Markdown; one that failed says why in the place of figures."""
    cells = [_padded(_text(row.get(column.key), column.unit), column) for column in columns]
    if row.get("status", "ok") != "ok":
        named = sum(column.unit is None for column in columns)
        cells = [*cells[:named], f"{row['status']}: {row['error']}"]
    return f"| {' | '.join(cells)} |"


def heading(columns: list[Column]) -> str:
    """Returns the two lines above a table."""
    names = [_padded(column.heading, column) for column in columns]
    rules = ["-" * (column.width + 1) + ("-" if column.unit is None else ":") for column in columns]
    return f"| {' | '.join(names)} |\n|{'|'.join(rules)}|"


def read(path: str) -> list[Row]:
    """Returns the rows of a file that as_json made.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it holds something else.
    """
    try:
        rows = json.loads(pathlib.Path(path).read_text())
        known = isinstance(rows, list) and rows and all(IDENTITY <= row.keys() for row in rows)
        known = known and all(row["images_per_second"] > 0 for row in rows if row["status"] == "ok")
    except (ValueError, TypeError, AttributeError, KeyError):
        known = False
    if not known:
        raise ValueError(f"{path} holds no rows of a benchmark; give a file that benchmark.py --json wrote")
    return rows


def check_file(flag: str, path: str) -> None:
    """Raises OSError if a file that a flag asks for could not be written once its rows are there."""
    file = pathlib.Path(path).absolute()
    if file.is_dir():
        raise IsADirectoryError(f"--{flag}={path} is a folder; give a file")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"the folder of --{flag}={path} does not exist; make it first")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(f"the folder of --{flag}={path} cannot be written to; choose another")


def record(path: pathlib.Path, row: Row, same: Iterable[str]) -> None:
    """Adds a row to those of a JSON file, a line each, in the place of the one that is the same in some keys."""
    others = json.loads(path.read_text()) if path.exists() else []
    others = [other for other in others if any(other.get(key) != row[key] for key in same)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "[\n" + ",\n".join(map(json.dumps, [*others, row])) + "\n]\n")


def as_json(rows: list[Row]) -> str:
    """Returns the rows as a list of objects, all with the keys of all."""
    return json.dumps([{name: row.get(name) for name in _keys(rows)} for row in rows], indent=2) + "\n"


def as_csv(rows: list[Row]) -> str:
    """Returns the rows as comma-separated values, empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _keys(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Display:
    """Lines on the terminal, and below them a bar that tells how far the whole is. Used as a context."""

    def __init__(self, total: int, to_errors: bool):
        """Begins at 0 of a total; to_errors leaves the standard output to others."""
        self._console = Console(stderr=to_errors, highlight=False, markup=False, soft_wrap=True)
        columns = BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        hidden = not (self._console.is_terminal and total)
        self._progress = Progress(*columns, console=self._console, transient=True, disable=hidden)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints lines above the bar."""
        self._console.print(text)

    def begin(self, text: str) -> None:
        """Says what is measured now."""
        self._progress.update(self._task, description=text)

    def advance(self) -> None:
        """Moves the bar by one."""
        self._progress.advance(self._task)


def _keys(rows: list[Row]) -> list[str]:
    """All that rows have, in the order of the fullest: failed ones lack much."""
    return list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))


def _padded(text: str, column: Column) -> str:
    return text.ljust(column.width) if column.unit is None else text.rjust(column.width)


def _text(value: Any, unit: float | None) -> str:
    if value is None:
        return ""
    if unit is None:
        return str(value)
    value /= unit
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
