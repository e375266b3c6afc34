"""Takes networks apart: python summarize.py [--config.model=vgg16] [--config.batch_size=1] [--json=FILE] ...

With a model, or a recipe in --config, a row a layer: its shape, parameters and multiply-accumulates (MACs) for one
image, the memory of its output for the batch, its receptive field. Without one, a row a network, with the published
accuracy in percent. All is counted from the traced program and nothing is allocated. The tables are Markdown.
--picture=FILE.png draws maps and channels over the depth, of the network or of six landmarks.

python summarize.py --workdir=DIR --effective_receptive_field=FILE.png [--images=64] draws which pixels of the run's
evaluation images move the unit in the middle of the last map, by the gradient of its newest weights.
"""

import csv
import dataclasses
import gc
import io
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

import input_pipeline
import models
from analysis import Summary, draw_shapes, effective_receptive_field, read_reference, summarize
from configs._option import nearest_name
from training import command_line
from training.platform import prepare_platform
from training.state import make_mesh, make_model

BASE = pathlib.Path(__file__).resolve().parent / "configs" / "base.py"

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/; default: base.py.")
_BACKWARD = flags.DEFINE_bool("backward", False, "Count the backward pass of a training step, too.")
_SORT = flags.DEFINE_string("sort", None, "A column to sort by, numbers from the largest; default: as they come.")
_JSON = flags.DEFINE_string("json", None, "A file for the result; - for standard output, and nothing else there.")
_CSV = flags.DEFINE_string("csv", None, "A file for the rows; - for standard output, and nothing else there.")
_PICTURE = flags.DEFINE_string("picture", None, "A file for a picture of maps and channels over the depth.")
_WORKDIR = flags.DEFINE_string("workdir", None, "For --effective_receptive_field: the folder that train.py made.")
_FIELD = flags.DEFINE_string("effective_receptive_field", None, "A file for a picture of it.")
_IMAGES = flags.DEFINE_integer("images", 64, "For --effective_receptive_field: evaluation images.", lower_bound=1)

# What --picture shows without a model.
LANDMARKS = ("lenet5", "alexnet", "vgg16", "googlenet", "resnet50", "densenet121")

# How the table of all networks shows large numbers: heading, unit, decimals.
UNITS = {
    "macs": ("GMACs", 1e9, 4),
    "backward_macs": ("backward GMACs", 1e9, 4),
    "activation_bytes": ("activation MiB", 2**20, 2),
}

Row = dict[str, Any]


def main() -> None:
    """Runs the program."""
    if _WORKDIR.value or _FIELD.value:
        with command_line.refusing_bad_input():
            return measure_effective_receptive_field()
    gc.set_threshold(100_000)  # a trace is many small objects that stay: looking for garbage took a quarter of the time
    flag = flags.FLAGS["config"]
    overrides, summary = config_flags.get_override_values(flag), None
    with command_line.refusing_bad_input():
        if config_flags.get_config_filename(flag) == str(BASE) and "model" not in overrides:
            result = rows = _sorted(_networks(_CONFIG.value, _BACKWARD.value), _SORT.value)
        else:
            summary = summarize(_CONFIG.value, _BACKWARD.value)
            rows = _sorted([_row(layer) for layer in summary.layers], _SORT.value)
            result = _row(summary) | {"layers": rows}
        if _JSON.value:
            _write(_JSON.value, json.dumps(result, indent=2) + "\n")
        if _CSV.value:
            _write(_CSV.value, _csv(rows))
        if _PICTURE.value:
            shown = [summary] if summary else list(_summaries(_CONFIG.value, LANDMARKS))
            draw_shapes(shown, pathlib.Path(_PICTURE.value))
    if "-" in (_JSON.value, _CSV.value):
        return
    if summary:
        print(f"{_table(rows)}\n\n{_totals(summary)}\n\nThe share of each part, %:\n\n{_table(_shares(summary))}")
    else:
        print(_table([{UNITS.get(name, (name,))[0]: _scaled(name, row[name]) for name in row} for row in rows]))


def measure_effective_receptive_field() -> None:
    """Draws the effective receptive field of a workdir's newest weights, and says how wide it is.

    Raises:
      ValueError: if a flag is missing, or nothing moves the unit.
      FileNotFoundError: if the folder is no workdir, or its images are not there.
    """
    from training.transfer import load_weights  # Orbax, a second to import, is for this alone

    if not (_WORKDIR.value and _FIELD.value):
        raise ValueError("give both --workdir=DIR and --effective_receptive_field=FILE.png")
    mesh = make_mesh()
    config, params, batch_stats, step = load_weights(pathlib.Path(_WORKDIR.value), mesh)
    dataset = input_pipeline.load_dataset(config, "eval")
    prepare_platform(config)
    count = min(_IMAGES.value, len(dataset))

    def record(number: int) -> int:
        """Evenly over the split, as folders come class by class."""
        return number * len(dataset) // count

    sample = dataclasses.replace(
        dataset,
        size=count,
        read=lambda number: dataset.read(record(number)),
        describe=lambda number: dataset.describe(record(number)),
    )
    config.eval_batch_size = -(-min(config.eval_batch_size, count) // mesh.size) * mesh.size
    batches = input_pipeline.eval_batches(sample, config)
    with input_pipeline.to_device(batches, mesh, config.prefetch_batches) as batches:
        model = make_model(config, training=False)
        field = effective_receptive_field.measure_network(config, model, params, batch_stats, batches)
    title = f"{config.model}, step {step}, {count} {dataset.split} images of {config.dataset}"
    effective_receptive_field.draw(field, title, pathlib.Path(_FIELD.value))
    share = 100 * effective_receptive_field.SHARE
    print(
        f"{title}: {share:g} % of the influence on the unit in the middle of the last map lies within "
        f"{field.side()} pixels a side; its theoretical field has {field.theoretical_side}, "
        f"the images {config.image_size}"
    )


def _summaries(config: ConfigDict, names: Iterable[str], backward: bool = False) -> Iterator[Summary]:
    for name in names:
        config.model = name
        yield summarize(config, backward)


def _networks(config: ConfigDict, backward: bool) -> list[Row]:
    """A row for each network of the registry."""
    rows, reference = [], read_reference()
    for network in _summaries(config, models.REGISTRY, backward):
        entry, published = models.get_entry(network.model), reference.get(network.model, {})
        summary = _row(network)
        del summary["layers"], summary["channels"], summary["batch_size"], summary["dtype"]
        accuracies = {key: float(published[key]) if published.get(key) else None for key in ("top1", "top5")}
        rows.append(
            {"model": summary.pop("model"), "family": entry.family, "paper": entry.paper}
            | summary
            | accuracies
            | {"source": published.get("accuracy_source") or None}
        )
    return rows


def _row(record: Any) -> Row:
    """The fields of a dataclass, those of the backward pass only if it was asked for."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: value for name, value in fields.items() if name != "backward_macs" or value is not None}


def _sorted(rows: list[Row], column: str | None) -> list[Row]:
    """The rows by a column: names from A to Z, numbers from the largest, what is unknown last."""
    if column is None:
        return rows
    column = {heading: name for name, (heading, *_) in UNITS.items()}.get(column, column)
    if column not in rows[0]:
        hint = nearest_name(column, list(rows[0])) or f"; choose {', '.join(rows[0])}"
        raise ValueError(f"--sort={column} is no column{hint}")
    known = [row for row in rows if row[column] is not None]
    names = any(isinstance(row[column], str) for row in known)
    return sorted(known, key=lambda row: row[column], reverse=not names) + [row for row in rows if row[column] is None]


def _shares(summary: Summary) -> list[Row]:
    """What each part of the network has of the whole, in percent; a part is what the root module calls by a name."""
    parts: dict[str, Row] = {}
    part = ""
    for layer in summary.layers:
        own = re.match("[^/.]+", layer.name)[0]
        if layer.parameters or "/" in layer.name or not part:  # pooling goes with the part before it
            part = own
        shares = parts.setdefault(part, {"part": part, "parameters": 0.0, "macs": 0.0, "activation_bytes": 0.0})
        for name in list(shares)[1:]:
            shares[name] += 100 * getattr(layer, name) / getattr(summary, name)
    return [
        {name: value if name == "part" else f"{value:.2f}" for name, value in row.items()} for row in parts.values()
    ]


def _totals(summary: Summary) -> str:
    """The network's totals in words."""
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


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _size(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def _write(path: str, text: str) -> None:
    if path == "-":
        print(text, end="")
    else:
        pathlib.Path(path).write_text(text)


def _table(rows: list[Row]) -> str:
    """The rows in Markdown, as wide as it takes: a terminal breaks its lines if it must, a pipe does not."""
    table = Table(box=MARKDOWN)
    for column in rows[0]:
        number = all(_text(row[column])[:1] in "0123456789" for row in rows) and column not in ("kernel", "stride")
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_text, row.values()))
    console = Console(file=io.StringIO(), width=1000)
    console.print(table)
    return console.file.getvalue().strip()


def _scaled(name: str, value: Any) -> Any:
    _, unit, decimals = UNITS.get(name, (name, None, None))
    return f"{value / unit:.{decimals}f}" if unit else value


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(_size(value) or "")


def _size(value: Any) -> Any:
    """A shape, (224, 224, 64), as people write it: 224x224x64."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


if __name__ == "__main__":
    command_line.run(main, default_config=BASE)
