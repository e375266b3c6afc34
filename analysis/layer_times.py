"""The time of each kind of layer: a profile of some steps, in which each operation has the name of its layer.

In the profile of JAX operations have their names in the compiled program, copy.451 or fusion.12. The text of the
compiled program has the layer of each operation. Both together give a trace with the names of the layers, for Perfetto
(ui.perfetto.dev) or Chrome (chrome://tracing), and the time of each kind of layer.
"""

import collections
import gzip
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from analysis.summary import summarize

STEPS = 3
# Kinds of work, in the order of the picture.
KINDS = (
    "convolution",
    "depthwise or grouped convolution",
    "dense",
    "normalisation",
    "pooling",
    "activation, sum, loss",
    "optimizer, input",
    "copy",
    "unknown",
)


def measure(
    step: Callable[[], Any], compiled: jax.stages.Compiled, config: ConfigDict, folder: pathlib.Path
) -> dict[str, float | None]:
    """Profiles some steps and returns the share of the device's time that each kind of layer took.

    Writes into the folder the files of JAX's profiler, for xprof, and layers.json.gz, the same trace with the names of
    the layers. Shares are None if the profiler failed, which is logged, or did not record single operations.

    Args:
      step: runs the compiled program once more, and returns an array to wait for.
      compiled: the program.
      config: of the network.
      folder: where to write the profile.
    """
    try:
        with jax.profiler.trace(str(folder)):
            for _ in range(STEPS):
                jax.block_until_ready(step())
        newest = max(folder.glob("plugins/profile/*/*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
        trace = json.loads(gzip.decompress(newest.read_bytes()))
    except (RuntimeError, OSError, ValueError) as error:  # without a profile the row still has its other figures
        logging.error("no profile in %s: %s", folder, error)
        return {column(kind): None for kind in KINDS}
    origins = read_origins(compiled.as_text() or "")
    kinds = {layer.name: _kind_of_layer(layer.kind) for layer in summarize(config).layers}
    seconds: collections.Counter[str] = collections.Counter()
    for event in trace["traceEvents"]:
        operation = event.get("args", {}).get("hlo_op")
        # The operations in the body of a loop have their own events.
        if operation is None or re.match("while|conditional", operation):
            continue
        origin = origins.get(operation, "")
        scope, kind = classify(operation, origin, kinds)
        seconds[kind] += event["dur"]
        event["name"] = f"{scope or kind}: {operation}"
        event["args"] |= {"layer": scope, "kind": kind, "origin": origin}
    (folder / "layers.json.gz").write_bytes(gzip.compress(json.dumps(trace).encode()))
    total = seconds.total()
    return {column(kind): seconds[kind] / total if total else None for kind in KINDS}


def column(kind: str) -> str:
    """Returns the name of the column with the share of the time of a kind."""
    return "time_share_" + re.sub(r"\W+", "_", kind)


def read_origins(text: str) -> dict[str, str]:
    """Returns the traced operation that each operation of a compiled program's text came from.

    A fusion without an origin gets the most frequent one of its parts. The origin of a convolution that the compiler
    rewrote, on a CPU the gradient of a kernel, is unknown: it is "convolution".
    """
    origins: dict[str, str] = {}
    calls: dict[str, str] = {}
    computations: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    computation = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            computation = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
        name = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line)
        if not name:
            continue
        # Other values of op_name are names of arguments, or of a primitive alone.
        origin = re.search(r'op_name="(jit\([^"]*)"', line) or re.search(r" (convolution)\(", line)
        if origin:
            origins[name[1]] = origin[1]
            computations[computation][origin[1]] += 1
        elif called := re.search(r"(?:calls|to_apply)=%?([\w.-]+)", line):
            calls[name[1]] = called[1]
    for name, called in calls.items():
        if computations[called]:
            origins[name] = computations[called].most_common(1)[0][0]
    return origins


def classify(operation: str, origin: str, kinds: dict[str, str]) -> tuple[str, str]:
    """Returns the layer of an operation, or "", and its kind of work.

    Args:
      operation: its name in the compiled program.
      origin: from read_origins, as in jit(train_step)/transpose(jvp(stage1.0))/conv1/conv_general_dilated; or "".
      kinds: of the layers, by name.
    """
    # Without the names of transformations, of the function and of the primitive: stage1.0/conv1.
    parts = [part for part in re.sub(r"\w+\(|\)", "", origin.split(";")[0]).split("/") if part][1:-1]
    paths = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    scope = next((path for path in paths if any(f"{name}/".startswith(f"{path}/") for name in kinds)), "")
    if re.match(r"copy|transpose", operation):
        return scope, "copy"
    if scope in kinds:
        return scope, kinds[scope]
    if re.search("reduce_window|select_and_scatter", origin):
        return scope, "pooling"
    if origin == "convolution":
        return scope, origin
    if scope or "jvp(" in origin or "relu" in origin:
        return scope, "activation, sum, loss"
    return scope, "optimizer, input" if origin else "unknown"


def _kind_of_layer(kind: str) -> str:
    """The one of KINDS that a kind of analysis.Layer belongs to."""
    words = {"conv": "convolution", "dense": "dense", "batch norm": "normalisation"}
    words |= {"local response norm": "normalisation", "layer norm": "normalisation", "product": "dense"}
    words |= {f"{word} conv": "depthwise or grouped convolution" for word in ("depthwise", "grouped")}
    return words.get(kind, "pooling" if "pool" in kind else "activation, sum, loss")
