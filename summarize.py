"""Summarizes networks: python summarize.py [--config.model=vgg16] [--config.batch_size=1] [--json=FILE] ...

With a model, or a recipe in --config, the table has a row for each layer: its shape, its parameters, its
multiply-accumulates (MACs) for one image, and its receptive field; with --wide also the memory of its output for the
batch, one image by default. Without a model, the table has a row for each network, or for each of --models, with the
published accuracy in percent. All numbers are counted in the traced program, which allocates no array; those of the
table of all networks are stored in models/figures.csv. The tables are Markdown. --picture=FILE.png draws the sides and
the channels of the maps over the depth, for the model, for those of --models or for six well-known networks.

python summarize.py --map=28x28x256 --layer="googlenet.Inception(256, (128, 64, 192, 64, 96, 64))" has the costs of a
layer of models/ by itself; several --layer=CALL follow one another.

python summarize.py --workdir=DIR --effective_receptive_field=FILE.png [--images=64] draws how much each pixel of the
run's evaluation images influences the unit in the middle of the last map, by the gradient with the newest weights.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


import gc
import json
import pathlib
from collections.abc import Collection

from absl import flags
from ml_collections import config_flags

import models
from analysis import effective_receptive_field, layer_chain, summary_report, throughput_report
from analysis.costs import Layer
from analysis.shape import draw_shapes
from analysis.summary import Summary, match_networks, summarize
from training import command_line
from training.output import results
from training.workdir import write_atomically

BASE = pathlib.Path(__file__).resolve().parent / "configs" / "base.py"

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/; default: base.py.")
_MODELS = flags.DEFINE_list("models", None, "Names or patterns such as vgg*: the table has only these networks.")
_LAYER = flags.DEFINE_multi_string(
    "layer", [], "A layer by itself, as in 'Conv(3, 64, kernel=3)'; again: the next one."
)
_MAP = flags.DEFINE_string("map", None, "For --layer: height, width and channels of the first map, as in 28x28x256.")
_BACKWARD = flags.DEFINE_bool("backward", False, "Also count the backward pass of a training step.")
_SORT = flags.DEFINE_string("sort", None, "A column to sort by, numbers from the largest; default: not sorted.")
_WIDE = flags.DEFINE_bool("wide", False, "Show all columns and whole names of the layers, however wide.")
_NO_BIASES = flags.DEFINE_bool(
    "no_biases", False, "A table as in CS231n: elements of each map of one image, and parameters without biases."
)
_STORE = flags.DEFINE_bool("store", False, "Count the figures of all networks anew into models/figures.csv.")
_JSON = flags.DEFINE(
    command_line.PATH, "json", None, "A file for the result; -: standard output, which then has nothing else."
)
_CSV = flags.DEFINE(
    command_line.PATH, "csv", None, "A file for the rows; -: standard output, which then has nothing else."
)
_PICTURE = flags.DEFINE(command_line.PATH, "picture", None, "A file for a picture of maps and channels over the depth.")
_REPORT = flags.DEFINE(
    command_line.PATH, "report", None, "A folder for pictures of the published accuracies over cost and parameters."
)
_WORKDIR = flags.DEFINE(
    command_line.PATH, "workdir", None, "For --effective_receptive_field: the folder that train.py made."
)
_FIELD = flags.DEFINE(
    command_line.PATH, "effective_receptive_field", None, "A file for a picture of the effective receptive field."
)
_IMAGES = flags.DEFINE_integer("images", 64, "For --effective_receptive_field: evaluation images.", lower_bound=1)


def main() -> None:
    """Runs the program."""
    with command_line.refusing_bad_input():
        if _WORKDIR.value or _FIELD.value:
            return draw_effective_receptive_field()
        # Tracing makes many small objects that stay alive, and garbage collection took a quarter of the time.
        gc.set_threshold(100_000)
        if _STORE.value:
            return summary_report.write_figures()
        flag = flags.FLAGS["config"]
        typed = config_flags.get_override_values(flag)
        several = config_flags.get_config_filename(flag) == str(BASE) and "model" not in typed
        check_flags(several)
        if _LAYER.value:
            return summarize_layers()
        if "batch_size" not in typed:
            _CONFIG.value.batch_size = 1
        if several:
            summarize_networks(natural=set(typed) <= {"batch_size"})
        else:
            summarize_network(typed)


def check_flags(several: bool) -> None:
    """Raises ValueError for flags that contradict each other; several: whether no single network was named."""
    if bool(_LAYER.value) != bool(_MAP.value):
        raise ValueError("give both --layer=CALL and --map=HEIGHTxWIDTHxCHANNELS")
    if not several and (_MODELS.value or _LAYER.value or _REPORT.value):
        raise ValueError("--models, --layer and --report are not for a single network; leave the recipe or model out")
    if several and _WIDE.value and not _LAYER.value:
        raise ValueError("--wide is for one network; give it, as in --config.model=vgg16")
    if several and _NO_BIASES.value and not _LAYER.value:
        raise ValueError("--no_biases is for one network; give it, as in --config.model=vgg16")
    if _LAYER.value and (_PICTURE.value or _REPORT.value or _MODELS.value):
        raise ValueError("--layer is about a layer; leave --models, --picture and --report out")
    if (_NO_BIASES.value or _LAYER.value) and (_BACKWARD.value or _SORT.value or _WIDE.value):
        raise ValueError("--no_biases and --layer have tables of their own; leave --backward, --sort and --wide out")


def summarize_layers() -> None:
    """Prints and writes the table of the layers of --layer."""
    shape = layer_chain.parse_map(_MAP.value or "")
    layers = layer_chain.list_chain(_LAYER.value, shape, biases=not _NO_BIASES.value)
    rows = [summary_report.as_row(layer) for layer in layers]
    write_files(rows, rows)
    if "-" not in (_JSON.value, _CSV.value):
        command_line.say(summary_report.describe_chain(layers, shape))


def summarize_network(typed: Collection[str]) -> None:
    """Prints and writes the table of one network's layers; typed: names of the options of the command line."""
    column = summary_report.find_column(_SORT.value, Layer, _BACKWARD.value)
    summary = summarize(_CONFIG.value, _BACKWARD.value, not _NO_BIASES.value, typed)
    rows = summary_report.sort_rows([summary_report.as_row(layer) for layer in summary.all_layers], column)
    write_files(summary_report.as_row(summary) | {"layers": rows}, rows)
    if _PICTURE.value:
        draw_shapes([summary], pathlib.Path(_PICTURE.value))
    if "-" not in (_JSON.value, _CSV.value):
        whole = summary_report.describe_layers(summary, rows, _WIDE.value)
        command_line.say(summary_report.describe_memory(summary) if _NO_BIASES.value else whole)


def summarize_networks(natural: bool) -> None:
    """Prints and writes the table of all networks or of --models; natural: no option but the batch size was typed.

    With natural options the figures are the stored ones.
    """
    names = match_networks(_MODELS.value or models.REGISTRY)
    column = summary_report.find_column(_SORT.value, Summary, _BACKWARD.value)
    stored = natural and not _BACKWARD.value
    rows = summary_report.sort_rows(summary_report.network_rows(_CONFIG.value, names, _BACKWARD.value, stored), column)
    write_files(rows, rows)
    if _PICTURE.value:
        drawn = names if _MODELS.value else summary_report.LANDMARKS
        summaries = summary_report.summarize_networks(_CONFIG.value, drawn)
        draw_shapes(list(summaries), pathlib.Path(_PICTURE.value))
    if "-" not in (_JSON.value, _CSV.value):
        command_line.say(summary_report.describe_networks(rows))
    if _REPORT.value:
        pictures = throughput_report.draw([], pathlib.Path(_REPORT.value))
        command_line.say(f"pictures: {', '.join(map(str, pictures))}")


def write_files(result: dict | list, rows: list[dict]) -> None:
    """Writes the result as JSON and its rows as CSV, if --json and --csv are given; - is standard output."""
    for path, text in ((_JSON.value, json.dumps(result, indent=2) + "\n"), (_CSV.value, summary_report.as_csv(rows))):
        if path == "-":
            with results():
                print(text, end="")
        elif path:
            write_atomically(pathlib.Path(path), text)


def draw_effective_receptive_field() -> None:
    """Draws the effective receptive field of a workdir's newest weights, and prints its width."""
    if not (_WORKDIR.value and _FIELD.value):
        raise ValueError("give both --workdir=DIR and --effective_receptive_field=FILE.png")
    for flag in (_JSON, _CSV, _PICTURE, _REPORT, _MODELS, _LAYER, _SORT, _BACKWARD, _WIDE, _NO_BIASES):
        if flag.present:
            raise ValueError(f"--{flag.name} has no effect on --effective_receptive_field; leave it out")
    field, title = effective_receptive_field.measure_workdir(pathlib.Path(_WORKDIR.value), _IMAGES.value)
    effective_receptive_field.draw(field, title, pathlib.Path(_FIELD.value))
    share, (side, _) = 100 * effective_receptive_field.SHARE, field.influence.shape
    command_line.say(
        f"{title}: {share:g} % of the influence on the unit in the middle of the last map lies within "
        f"{field.side()} pixels a side; its theoretical field has {field.theoretical_side}, the images {side}"
    )


if __name__ == "__main__":
    command_line.run(main, default_config=BASE)
