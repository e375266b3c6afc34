"""Writes the tables that benchmarks and studies make into the pages of docs/."""

import pathlib

from training.workdir import write_atomically


def put_table(path: pathlib.Path, label: str, text: str) -> None:
    """Replaces the text between the two comments with this label in a page.

    Raises:
      ValueError: if the page lacks the comments; it stays as it is.
    """
    begin, end = f"<!-- {label}: begin -->\n", f"<!-- {label}: end -->"
    before, found, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"{path} lacks the lines {begin.strip()} and {end}; put them where the table belongs")
    write_atomically(path, f"{before}{begin}{text}\n{end}{after}")
