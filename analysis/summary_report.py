"""What summarize.py prints and writes: the rows of a network's layers or of all networks, as tables, CSV and text."""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

import models
from analysis import tables
from analysis.costs import Layer
from analysis.rows import Row
from analysis.summary import Summary, read_reference, summarize
from configs._option import nearest_name

# The networks whose shapes the picture without a model shows.
LANDMARKS = ("lenet5", "alexnet", "vgg16", "googlenet", "resnet50", "densenet121")
# How the table of all networks shows large numbers: heading, unit, decimals.
UNITS = {
    "macs": ("GMACs", 1e9, 4),
    "backward_macs": ("backward GMACs", 1e9, 4),
    "activation_bytes": ("activation MiB", 2**20, 2),
}


def summarize_networks(config: ConfigDict, names: Iterable[str], backward: bool = False) -> Iterator[Summary]:
    """Yields the summary of each network under the options of a config."""
    for name in names:
        config.model = name
        yield summarize(config, backward)


def network_rows(config: ConfigDict, backward: bool) -> list[Row]:
    """Returns a row for each network of the registry: its totals and the published accuracies, in percent.

    Args:
      config: the options that all networks share.
      backward: whether to count the backward pass.
    """
    rows, reference = [], read_reference()
    for network in summarize_networks(config, models.REGISTRY, backward):
        entry, published = models.get_entry(network.model), reference.get(network.model, {})
        summary = as_row(network)
        del summary["layers"], summary["channels"], summary["batch_size"], summary["dtype"]
        accuracies = {key: float(published[key]) if published.get(key) else None for key in ("top1", "top5")}
        rows.append(
            {"model": summary.pop("model"), "family": entry.family, "paper": entry.paper}
            | summary
            | accuracies
            | {"source": published.get("accuracy_source") or None}
        )
    return rows


def as_row(record: Layer | Summary) -> Row:
    """Returns the fields of a layer or a summary, without backward_macs if nobody asked for it."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: value for name, value in fields.items() if name != "backward_macs" or value is not None}


def sort_rows(rows: list[Row], column: str | None) -> list[Row]:
    """Returns the rows sorted by a column: text from A to Z, numbers from the largest, unknown values last.

    Args:
      rows: with the same keys.
      column: a key or its heading; None for the order as it is.

    Raises:
      ValueError: if there is no such column.
    """
    if column is None:
        return rows
    column = {heading: name for name, (heading, *_) in UNITS.items()}.get(column, column)
    if column not in rows[0]:
        hint = nearest_name(column, list(rows[0])) or f"; choose {', '.join(rows[0])}"
        raise ValueError(f"--sort={column} is no column{hint}")
    known = [row for row in rows if row[column] is not None]
    is_text = any(isinstance(row[column], str) for row in known)
    unknown = [row for row in rows if row[column] is None]
    return sorted(known, key=lambda row: row[column], reverse=not is_text) + unknown


def as_csv(rows: list[Row]) -> str:
    """Returns the rows as comma-separated values, shapes as 224x224x64."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _shape(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def describe_layers(summary: Summary, rows: list[Row]) -> str:
    """Returns the table of a network's layers, its totals in words, and the share of each part.

    Args:
      summary: of the network.
      rows: of its layers, in the order to show.
    """
    return f"{_table(rows)}\n\n{_totals(summary)}\n\nThe share of each part, %:\n\n{_table(_shares(summary))}"


def describe_networks(rows: list[Row]) -> str:
    """Returns the table of all networks, large numbers in the units of UNITS."""
    return _table([{UNITS.get(name, (name,))[0]: _scaled(name, row[name]) for name in row} for row in rows])


def _shares(summary: Summary) -> list[Row]:
    """The share of each part in the whole network, in percent; a part is a direct submodule of the network."""
    parts: dict[str, Row] = {}
    part = ""
    for layer in summary.layers:
        own = re.split("[/.]", layer.name)[0]
        if layer.parameters or "/" in layer.name or not part:  # pooling counts to the part before it
            part = own
        shares = parts.setdefault(part, {"part": part, "parameters": 0.0, "macs": 0.0, "activation_bytes": 0.0})
        for name in list(shares)[1:]:
            shares[name] += 100 * getattr(layer, name) / getattr(summary, name)
    return [
        {name: value if name == "part" else f"{value:.2f}" for name, value in row.items()} for row in parts.values()
    ]


def _totals(summary: Summary) -> str:
    aux = summary.parameters_with_aux
    backward = "" if summary.backward_macs is None else f", {summary.backward_macs:,} backward"
    images = "an image" if summary.batch_size == 1 else f"{summary.batch_size} images"
    return (
        f"{summary.model} on {images} of {summary.image_size} pixels in {summary.dtype}\n"
        f"parameters: {summary.parameters:,}{f' ({aux:,} with its auxiliary heads)' if aux else ''}\n"
        f"MACs an image: {summary.macs:,}{backward}\n"
        f"activations: {summary.activation_bytes:,} bytes ({summary.activation_bytes / 2**20:,.1f} MiB)\n"
        f"receptive field of the last map: {summary.receptive_field} pixels"
    )


def _table(rows: list[Row]) -> str:
    cells = [[_text(value) for value in row.values()] for row in rows]
    numbers = [
        heading not in ("kernel", "stride") and all(text[:1] in "0123456789" for text in column)
        for heading, column in zip(rows[0], zip(*cells, strict=True), strict=True)
    ]
    return tables.markdown(list(rows[0]), cells, numbers)


def _scaled(name: str, value: Any) -> Any:
    _, unit, decimals = UNITS.get(name, (name, None, None))
    return f"{value / unit:.{decimals}f}" if unit else value


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(_shape(value) or "")


def _shape(value: Any) -> Any:
    """A shape such as (224, 224, 64) in its usual form, 224x224x64; other values as they are."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else value
