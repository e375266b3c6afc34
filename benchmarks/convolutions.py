"""Measures every convolution of the networks by itself: python benchmarks/convolutions.py --models=resnet50,resnet20.

Is JAX slower for my convolution, and in which direction? Each distinct convolution is computed forward, for the
gradient of its input and for the gradient of its kernel, three times: as our networks compute it, as
lax.conv_general_dilated with XLA's default options, and, with --torch_python=PATH, by PyTorch (oneDNN on a CPU,
channels_last). The three take turns, so that a drift of the machine's speed does not change the ratios. The last column
is the share of the machine's peak, the rate of a product of two large matrices. At the end the times of each network's
convolutions are added up. Rows of other convolutions or machines in --json are kept.
"""

import contextlib
import functools
import json
import pathlib
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx
from jax import lax
from pytorch_process import PyTorchProcess

import models
from analysis import rows as row_files
from analysis import tables, throughput
from analysis.rows import Row
from analysis.tables import Column
from configs import base
from models import operations
from training import command_line, configuration
from training.platform import compiler_options, prepare_platform

NETWORKS = ["resnet50", "resnet20", "vgg16", "googlenet_bn_3x3", "inception_v3", "densenet121", "mobilenet_v1"]
DIRECTIONS = ["forward", "input gradient", "kernel gradient"]
SIDES = ["ours", "jax", "pytorch"]
COLUMNS = [
    Column("maps", 17, "maps"),
    Column("kernel", 15, "kernel"),
    Column("stride", 6, "stride"),
    Column("groups", 6, "groups"),
    Column("direction", 15, "direction"),
    Column("ours, ms", 9, "ours_seconds", 1e-3),
    Column("JAX, ms", 9, "jax_seconds", 1e-3),
    Column("PyTorch, ms", 11, "pytorch_seconds", 1e-3),
    Column("GFLOP/s", 8, "flops_per_second", 1e9),
    Column("% of peak", 9, "share_of_peak", 0.01),
]

_MODELS = flags.DEFINE_list("models", NETWORKS, "Names of models.REGISTRY.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images; default: 256 on a GPU, 8 on a CPU.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels a side; default: the network's own.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Data type of maps and kernels.")
_TORCH_PYTHON = flags.DEFINE_string("torch_python", None, "A Python that has torch; default: without PyTorch.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each side has its turn.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 0.05, "Length of a turn; at least one computation.")
_JSON = flags.DEFINE_string("json", None, "A file for the rows, and of those of other convolutions.")


class Convolution(NamedTuple):
    """The arguments of operations.convolve, with the shapes of its arrays."""

    maps: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    stride: int
    padding: operations.Padding
    groups: int

    def flops(self, shape: tuple[int, ...]) -> int:
        """Returns the floating-point operations of any of the directions, given the shape of the result."""
        height, width, features, _ = self.kernel
        return 2 * height * width * features * shape[0] * shape[1] * shape[2] * shape[3]


def convolutions_of(model: str) -> Counter[Convolution]:
    """Returns the convolutions of a network in training, auxiliary heads included, and how often it has each."""
    config = base.get_config()
    config.update({"model": model, "num_classes": models.get_entry(model).num_classes})
    config.update({"image_size": _IMAGE_SIZE.value})
    config = configuration.resolve_network(config)
    found: Counter[Convolution] = Counter()
    convolve = operations.convolve

    def recorded(x: jax.Array, kernel: jax.Array, stride: int, padding: operations.Padding, groups: int) -> jax.Array:
        found[Convolution(x.shape, kernel.shape, stride, padding, groups)] += 1
        return convolve(x, kernel, stride, padding, groups)

    batch_size = _BATCH_SIZE.value or (8 if jax.default_backend() == "cpu" else 256)
    size, channels = config.image_size, config.channels
    network = models.create_model(model, image_size=size, aux_heads=config.aux_heads, abstract=True)
    graph, state = nnx.split(network)
    images = jax.ShapeDtypeStruct((batch_size, size, size, channels), jnp.float32)
    with mock.patch.object(operations, "convolve", recorded):
        jax.eval_shape(lambda state, images: nnx.merge(graph, state)(images), nnx.to_pure_dict(state), images)
    return found


def plain(x: jax.Array, kernel: jax.Array, stride: int, padding: operations.Padding, groups: int) -> jax.Array:
    """Computes a convolution as JAX has it."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def make_turn(case: Convolution, direction: str, convolve: Callable, options: dict) -> Callable[[int], float]:
    """Returns a function that computes a convolution several times and returns the seconds."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], case.maps), jax.random.normal(keys[1], case.kernel)
    x, kernel = (array.astype(_DTYPE.value) for array in (x, kernel))

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel, case.stride, case.padding, case.groups)

    gradient = jax.random.normal(keys[2], jax.eval_shape(forward, x, kernel).shape).astype(_DTYPE.value)
    work: dict[str, Callable] = {
        "forward": lambda x, kernel, gradient: forward(x, kernel),
        "input gradient": lambda x, kernel, gradient: jax.vjp(lambda x: forward(x, kernel), x)[1](gradient),
        "kernel gradient": lambda x, kernel, gradient: jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](gradient),
    }
    compute = jax.jit(work[direction], compiler_options=options)

    return lambda steps: seconds_of(compute, (x, kernel, gradient), steps)


def seconds_of(compute: Callable, arguments: tuple, steps: int) -> float:
    """Computes several times; returns the seconds. On a GPU the host waits once, at the end, as PyTorch's side does."""
    start = time.perf_counter()
    for _ in range(steps):
        result = compute(*arguments)
        if jax.default_backend() == "cpu":
            jax.block_until_ready(result)
    jax.block_until_ready(result)
    return time.perf_counter() - start


def median_seconds(sides: dict[str, Callable[[int], float]]) -> dict[str, float]:
    """Runs the sides alternately; returns the median seconds of one computation of each."""
    steps = {}
    for side, run in sides.items():
        run(1)  # compiles
        steps[side] = max(round(_SECONDS.value / max(run(1), 1e-9)), 1)
    turns = [{side: run(steps[side]) / steps[side] for side, run in sides.items()} for _ in range(_ROUNDS.value)]
    return {side: statistics.median(turn[side] for turn in turns) for side in sides}


def measure_peak() -> float:
    """Returns the rate of a product of two large square matrices, in floating-point operations a second."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix, product = jax.random.normal(jax.random.key(0), (side, side), _DTYPE.value), jax.jit(jnp.dot)
    run = functools.partial(seconds_of, product, (matrix, matrix))
    return 2 * side**3 / median_seconds({"product": run})["product"]


def measure(case: Convolution, options: dict, torch: PyTorchProcess | None, peak: float) -> Iterator[Row]:
    """Yields a row for each direction of a convolution; the gradient of an image is never needed."""
    shape = jax.eval_shape(
        lambda x, kernel: plain(x, kernel, case.stride, case.padding, case.groups),
        jax.ShapeDtypeStruct(case.maps, jnp.float32),
        jax.ShapeDtypeStruct(case.kernel, jnp.float32),
    ).shape
    for direction in DIRECTIONS:
        if direction == "input gradient" and case.maps[-1] <= 3:
            continue
        sides = {
            "ours": make_turn(case, direction, operations.convolve, options),
            "jax": make_turn(case, direction, plain, {}),
        }
        (above, below), (left, right) = case.padding
        if torch and above == below and left == right:  # PyTorch's convolution has no other padding
            sides["pytorch"] = lambda steps, direction=direction: torch.seconds(json.dumps([*case, direction, steps]))
        row = {"maps": "x".join(map(str, case.maps)), "kernel": "x".join(map(str, case.kernel))}
        padding = [list(pair) for pair in case.padding]  # as JSON has it
        row |= {"stride": case.stride, "padding": padding, "groups": case.groups, "direction": direction}
        seconds = median_seconds(sides)
        row |= {f"{side}_seconds": value for side, value in seconds.items()}
        rate = case.flops(shape) / seconds["ours"]
        yield row | {"dtype": _DTYPE.value, "flops_per_second": rate, "share_of_peak": rate / peak}
        jax.clear_caches()


def add_up(uses: dict[str, Counter[Convolution]], measured: dict[Convolution, list[Row]]) -> list[list[str]]:
    """Returns lines of a table: the milliseconds of all convolutions of each network, by direction and side."""
    lines = []
    for model, counts in uses.items():
        for direction in DIRECTIONS:
            own = [
                (row, count)
                for case, count in counts.items()
                for row in measured[case]
                if row["direction"] == direction
            ]
            # Only convolutions that all sides have, so that the sums can be compared.
            own = [(row, count) for row, count in own if _TORCH_PYTHON.value is None or "pytorch_seconds" in row]
            totals = [
                1e3 * sum(count * row[f"{side}_seconds"] for row, count in own)
                for side in SIDES
                if own and f"{side}_seconds" in own[0][0]
            ]
            ratios = [f"{total / totals[0]:.2f}" for total in totals[1:]]
            lines.append([model, direction, *(f"{total:.1f}" for total in totals), *ratios])
    return lines


def main() -> None:
    """Measures, prints tables, writes JSON."""
    with command_line.refusing_bad_input():
        if _JSON.value:
            row_files.check_file("json", _JSON.value)
        if _TORCH_PYTHON.value and not shutil.which(_TORCH_PYTHON.value):
            raise FileNotFoundError(f"--torch_python={_TORCH_PYTHON.value} is no program; give a Python that has torch")
        config = base.get_config()
        config.update({"dtype": _DTYPE.value, "compilation_cache_dir": ""})
        prepare_platform(config)
        uses = {model: convolutions_of(model) for model in _MODELS.value}
    options, peak = compiler_options(config), measure_peak()
    machine = throughput.describe_machine() | {"peak_flops_per_second": peak}
    command_line.say(tables.heading(COLUMNS))
    measured: dict[Convolution, list[Row]] = {}
    with contextlib.ExitStack() as stack:
        torch = None
        if _TORCH_PYTHON.value:
            torch = PyTorchProcess(_TORCH_PYTHON.value, "convolutions_worker.py", _DTYPE.value)
            stack.callback(torch.close)
        for case in dict.fromkeys(case for counts in uses.values() for case in counts):
            measured[case] = []
            for row in measure(case, options, torch, peak):
                row |= {"networks": [model for model, counts in uses.items() if case in counts]} | machine
                row |= torch.about if torch else {}
                measured[case].append(row)
                command_line.say(tables.line(COLUMNS, row))
                if _JSON.value:
                    same = "maps kernel stride padding groups direction dtype device processor".split()
                    row_files.record(pathlib.Path(_JSON.value), row, same)
    sides = ["ours, ms", "JAX, ms", "PyTorch, ms"][: 3 if _TORCH_PYTHON.value else 2]
    ratios = ["JAX / ours", "PyTorch / ours"][: len(sides) - 1]
    command_line.say(f"\npeak: {peak / 1e9:,.0f} GFLOP/s\n")
    command_line.say(tables.markdown(["network", "direction", *sides, *ratios], add_up(uses, measured)))


if __name__ == "__main__":
    command_line.run(main)
