"""The rows of a benchmark as JSON and CSV files."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from training.workdir import write_atomically

Row = dict[str, Any]
# The keys of every row, even of a failed one.
IDENTITY = {"model", "mode", "batch_size", "image_size", "dtype", "status", "auto"}


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
    """Raises OSError if the file of a flag is not writable, before any row is measured."""
    file = pathlib.Path(path).absolute()
    if file.is_dir():
        raise IsADirectoryError(f"--{flag}={path} is a folder; give a file")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"the folder of --{flag}={path} does not exist; make it first")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(f"the folder of --{flag}={path} cannot be written to; choose another")


def record(path: pathlib.Path, row: Row, same: Iterable[str]) -> None:
    """Adds a row to a JSON file with a line for each row, and removes the old row with the same values of some keys."""
    others = json.loads(path.read_text()) if path.exists() else []
    others = [other for other in others if any(other.get(key) != row[key] for key in same)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "[\n" + ",\n".join(map(json.dumps, [*others, row])) + "\n]\n")


def as_json(rows: list[Row]) -> str:
    """Returns the rows as a JSON list of objects, each with the keys of all rows."""
    return json.dumps([{name: row.get(name) for name in _keys(rows)} for row in rows], indent=2) + "\n"


def as_csv(rows: list[Row]) -> str:
    """Returns the rows as comma-separated values; a missing value is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _keys(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _keys(rows: list[Row]) -> list[str]:
    """Returns the keys of all rows, in the order of the row with the most keys, because failed rows lack many."""
    return list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
