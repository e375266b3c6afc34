"""What summarize.py prints and writes: the rows of a network's layers or of all networks, as tables, CSV and text."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

import models
from analysis import tables
from analysis.costs import Layer
from analysis.rows import Row
from analysis.summary import FIGURES, Summary, read_reference, stored_figures, summarize
from configs import base
from configs._option import nearest_name
from training.workdir import write_atomically

# The networks whose shapes the picture without a model shows.
LANDMARKS = ("lenet5", "alexnet", "vgg16", "googlenet", "resnet50", "densenet121")
# The columns of the table of all networks after model, family and paper.
COUNTED = ("image_size", "parameters", "parameters_with_aux", "macs", "backward_macs", "activation_bytes")
COUNTED += ("receptive_field",)
PUBLISHED = ("top1", "top5", "protocol", "source")
GLOBAL = "global"  # the receptive field behind attention, None in the rows
WIDTH = 100  # characters of a line of the table of layers
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


def network_rows(config: ConfigDict, names: Iterable[str], backward: bool, stored: bool = False) -> list[Row]:
    """Returns a row for each of some networks: its totals and the published accuracies, in percent.

    Args:
      config: the options that all networks share.
      names: of the networks.
      backward: whether to count the backward pass.
      stored: whether to take the figures of models/figures.csv, which are for the natural options; only networks that
        the file lacks are counted.
    """
    figures = stored_figures() if stored else {}
    rows, reference = [], read_reference()
    for name in names:
        entry = models.get_entry(name)
        published = reference.get(name, {})
        counted = figures.get(name) or count_figures(next(summarize_networks(config, [name], backward)))
        if stored and name in figures:
            counted = counted | {"activation_bytes": (counted["activation_bytes"] or 0) * config.batch_size}
        accuracies = {key: float(published[key]) if published.get(key) else None for key in ("top1", "top5")}
        rows.append(
            {"model": name, "family": entry.family, "paper": entry.paper}
            | counted
            | accuracies
            | {"protocol": _protocol(published), "source": published.get("accuracy_source") or None}
        )
    return rows


def count_figures(network: Summary) -> Row:
    """Returns the figures of a network that its row in the table has."""
    return {name: value for name, value in as_row(network).items() if name in COUNTED}


def _protocol(published: dict[str, str]) -> str | None:
    """Returns on what images and how a published accuracy was measured; other accuracies do not compare with it."""
    if not published.get("top1"):
        return None
    classes = published["num_classes"]
    dataset = {"1000": "ImageNet", "10": "CIFAR-10"}.get(classes, f"{classes} classes")
    return f"{dataset}, 10 crops" if "10 crops" in published["accuracy_source"] else dataset


def as_row(record: Layer | Summary) -> Row:
    """Returns the fields of a layer or a summary, without its layers, and without backward_macs if not asked for."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    fields = {name: value for name, value in fields.items() if name not in ("layers", "all_layers")}
    return {name: value for name, value in fields.items() if name != "backward_macs" or value is not None}


def find_column(heading: str | None, kind: type, backward: bool) -> str | None:
    """Returns the key of a column, given the key or its heading; None for None.

    Args:
      heading: as typed in --sort.
      kind: Layer for the table of layers, Summary for that of networks.
      backward: whether the table has the backward pass.

    Raises:
      ValueError: if there is no such column.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    if kind is Summary:
        names = ["model", "family", "paper", *(name for name in names if name in COUNTED), *PUBLISHED]
    names = [name for name in names if name != "backward_macs" or backward]
    column = {heading: name for name, (heading, *_) in UNITS.items()}.get(heading or "", heading)
    if column is not None and column not in names:
        hint = nearest_name(column, names) or f"; choose {', '.join(names)}"
        raise ValueError(f"--sort={heading} is no column{hint}")
    return column


def sort_rows(rows: list[Row], column: str | None) -> list[Row]:
    """Returns the rows sorted by a column: text from A to Z, numbers from the largest, unknown values last.

    Accuracies are ranked only among those of one protocol; the protocols follow one another.

    Args:
      rows: with the same keys.
      column: a key; None for the order as it is.
    """
    if column is None:
        return rows
    if column in ("top1", "top5"):
        protocols = dict.fromkeys(row["protocol"] for row in rows if row["protocol"])
        parts = [[row for row in rows if row["protocol"] == protocol] for protocol in sorted(protocols, key=_rank)]
        unknown = [row for row in rows if not row["protocol"]]
        return [row for part in parts for row in _sort_known(part, column)] + unknown
    return _sort_known(rows, column)


def _rank(protocol: str) -> tuple:
    return "crops" in protocol, protocol != "ImageNet", protocol


def _sort_known(rows: list[Row], column: str) -> list[Row]:
    known = [row for row in rows if row[column] is not None]
    is_text = any(isinstance(row[column], str) for row in known)
    unknown = [row for row in rows if row[column] is None]
    return sorted(known, key=lambda row: row[column], reverse=not is_text) + unknown


def write_figures() -> None:
    """Counts the figures of all networks and writes them into models/figures.csv."""
    config = base.get_config()
    config.batch_size = 1
    rows = [{"model": each.model} | count_figures(each) for each in summarize_networks(config, models.REGISTRY)]
    write_atomically(FIGURES, as_csv(rows))


def as_csv(rows: list[Row]) -> str:
    """Returns the rows as comma-separated values, shapes as 224x224x64."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _shape(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def describe_layers(summary: Summary, rows: list[Row], wide: bool = False) -> str:
    """Returns the table of a network's layers, its totals in words, and the share of each part.

    Args:
      summary: of the network.
      rows: of its layers, in the order to show.
      wide: whether to show all columns and whole names; otherwise the table is at most WIDTH characters wide.
    """
    table, shares = _table(rows) if wide else _narrow_table(rows), _table(_shares(summary))
    return f"{table}\n\n{_totals(summary)}\n\nThe share of each part, %:\n\n{shares}"


def describe_chain(layers: list[Layer], shape: tuple[int, int, int]) -> str:
    """Returns the table of layers without a network, which got one map of a shape (H, W, C), and their totals."""
    macs, parameters = (sum(getattr(layer, name) for layer in layers) for name in ("macs", "parameters"))
    totals = f"on a map of {_shape(shape)}: {parameters:,} parameters, {macs:,} MACs"
    return f"{_narrow_table([as_row(layer) for layer in layers])}\n\n{totals}"


def describe_memory(summary: Summary) -> str:
    """Returns the table of lectures: the elements of each map for one image, beside the parameters of its layer.

    The summary is one without biases. Stanford's CS231n shows this table for VGG-16.
    """
    image = (summary.image_size, summary.image_size, summary.channels)
    rows: list[Row] = [{"name": "image", "kind": "", "output": image, "elements": math.prod(image), "parameters": 0}]
    for layer in summary.layers:
        output = layer.output_shape
        rows.append({"name": layer.name, "kind": layer.kind, "output": output, "elements": math.prod(output)})
        rows[-1]["parameters"] = layer.parameters
    elements = sum(row["elements"] for row in rows)
    item = summary.activation_bytes / summary.batch_size / (elements - math.prod(image))
    return (
        f"{_table(rows)}\n\nelements of all maps of one image: {elements:,}, {elements * item / 1e6:.1f} MB in "
        f"{summary.dtype}\nparameters without biases: {summary.parameters:,}"
    )


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
    field = GLOBAL if summary.receptive_field is None else f"{summary.receptive_field} pixels"
    return (
        f"{summary.model} on {images} of {summary.image_size} pixels in {summary.dtype}\n"
        f"parameters: {summary.parameters:,}{f' ({aux:,} with its auxiliary heads)' if aux else ''}\n"
        f"MACs an image: {summary.macs:,}{backward}\n"
        f"activations: {summary.activation_bytes:,} bytes ({summary.activation_bytes / 2**20:,.1f} MiB)\n"
        f"receptive field of the last map: {field}"
    )


def _table(rows: list[Row]) -> str:
    cells = [[_text(value) for value in row.values()] for row in rows]
    shapes = ("kernel", "stride", "window", "output", "output_shape")
    numbers = [
        heading not in shapes and all(text[:1] in "0123456789" or text == GLOBAL for text in column)
        for heading, column in zip(rows[0], zip(*cells, strict=True), strict=True)
    ]
    return tables.markdown(list(rows[0]), cells, numbers)


def _narrow_table(rows: list[Row]) -> str:
    """Returns the table without the less important columns, and with long names cut at their beginning."""
    backward = "backward_macs" in rows[0]  # takes the place of the window and the field
    shown: list[Row] = [
        {"name": row["name"], "kind": row["kind"]}
        | ({} if backward else {"window": f"{_shape(row['kernel'])} /{row['stride'][0]}" if row["kernel"] else ""})
        | {"output": row["output_shape"], "parameters": row["parameters"], "macs": row["macs"]}
        | ({"backward": row["backward_macs"]} if backward else {"field": _field(row["receptive_field"])})
        for row in rows
    ]
    surplus = len(_table(shown).partition("\n")[0]) - WIDTH
    longest = max(len(row["name"]) for row in rows) - surplus
    if surplus > 0:
        names = [name if len(name := row["name"]) <= longest else f"…{name[len(name) - longest + 1 :]}" for row in rows]
        shown = [row | {"name": name} for row, name in zip(shown, names, strict=True)]
    return _table(shown)


def _field(value: int | None) -> int | str:
    return GLOBAL if value is None else value


def _scaled(name: str, value: Any) -> Any:
    if name == "receptive_field":
        return _field(value)
    _, unit, decimals = UNITS.get(name, (name, None, None))
    return f"{value / unit:.{decimals}f}" if unit else value


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(_shape(value) or "")


def _shape(value: Any) -> Any:
    """A shape such as (224, 224, 64) in its usual form, 224x224x64; other values as they are."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else value
