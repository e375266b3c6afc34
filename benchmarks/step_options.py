"""Measures how an option, an option of XLA or another form of an operation changes the time of the training step.

python benchmarks/step_options.py [--json=FILE]. Each variant runs train.py's jitted step on one synthetic batch that is
on the devices already. The variant and its base run alternately, so that a drift of the machine's speed does not change
the ratios. Each row is written when it is measured; the rows of other variants in --json are kept. On a CPU the sizes
are small and only show that the program works, because most variants concern GPUs.
"""

import contextlib
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from unittest import mock

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
from absl import flags
from jax import lax
from ml_collections import ConfigDict

import training.program
import training.step
from analysis import rows, tables, throughput
from analysis.rows import Row
from analysis.tables import Column
from configs import resnet50
from models import cpu_operations, gpu_operations, operations
from training import command_line
from training.platform import compiler_options, prepare_platform
from training.state import State

MODULES = {"operations": operations, "cpu_operations": cpu_operations, "gpu_operations": gpu_operations}
MODULES |= {"program": training.program}
CONVOLVE, NORMALIZE = operations.convolve, operations.normalize


def convolve_by_products(
    x: jax.Array, kernel: jax.Array, stride: int, padding: operations.Padding, groups: int
) -> jax.Array:
    """Computes 1x1 convolutions as products on every platform, not only on a CPU."""
    if kernel.shape[:2] != (1, 1) or groups > 1:
        return CONVOLVE(x, kernel, stride, padding, groups)
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def normalize_then_activate(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
    activation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes batch normalisation and the activation after it as two operations, each with its own gradient."""
    y, mean, var = NORMALIZE(x, scale, bias, shift, epsilon)
    return operations.activate(y, activation), mean, var


def normalize_without_own_gradient(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
    activation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes batch normalisation with JAX's automatic gradient."""
    mean, var = operations.mean_and_variance(x, shift)
    y = (x.astype(scale.dtype) - mean) * (lax.rsqrt(var + epsilon) * scale) + bias
    y = operations.activate(y, activation).astype(x.dtype)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def statistics_in_two_passes(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes mean and variance of bfloat16 maps in two passes, as for float32 maps."""
    wide = x.astype(shift.dtype)
    mean = wide.mean((1, 2, 3), keepdims=True)
    return mean, jnp.square(wide - mean).mean((1, 2, 3), keepdims=True)


def statistics_in_one_reduction(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes both sums of the one pass in a single reduction of pairs, and not in two reductions that XLA fuses."""
    distance, zero = x.astype(shift.dtype) - shift, jnp.zeros((), shift.dtype)
    operands = distance, jnp.square(distance)
    sums = lax.reduce(operands, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1, 2, 3))
    mean, square = (each[:, None, None, None] * (x.shape[-1] * len(x) / x.size) for each in sums)
    return mean + shift, jnp.maximum(square - jnp.square(mean), 0)


def max_pool_by_xla(x: jax.Array, window: tuple[int, int], stride: int, padding: operations.Padding) -> jax.Array:
    """Computes max pooling with XLA's own gradient, select-and-scatter."""
    edges = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, stride, stride, 1), edges)


def layouts_of_jax(target: State) -> State:
    """Replaces program.with_layouts, so that kernels have JAX's order in memory on a GPU too."""
    return target


def plain_form(*_: object) -> None:
    """Replaces gpu_operations.find_convolution or find_attention, so that a GPU runs the plain form."""


def leave_to_xla(x: jax.Array) -> jax.Array:
    """Replaces cpu_operations.store: XLA computes block sums and depthwise results anew for each of their readers."""
    return x


@dataclasses.dataclass(frozen=True)
class Variant:
    """The differences from the recipe: options, XLA's options, functions that replace ours; and the base to compare.

    A function is named with its module, as in operations.normalize.
    """

    options: dict = dataclasses.field(default_factory=dict)
    compiler_options: dict = dataclasses.field(default_factory=dict)
    functions: dict[str, Callable] = dataclasses.field(default_factory=dict)
    base: str = "bfloat16"


BFLOAT16 = {"dtype": "bfloat16"}
BY_DEFAULT = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL"  # the operations that XLA puts into command buffers by default
VARIANTS = {
    "bfloat16": Variant(BFLOAT16),
    "command buffers without convolutions": Variant(BFLOAT16, {"xla_gpu_enable_command_buffer": BY_DEFAULT}),
    "max pooling by select-and-scatter": Variant(BFLOAT16, functions={"gpu_operations.max_pool": max_pool_by_xla}),
    "stem with its stride": Variant(BFLOAT16, functions={"gpu_operations.find_convolution": plain_form}),
    "batch norm and ReLU apart": Variant(BFLOAT16, functions={"operations.normalize": normalize_then_activate}),
    "batch statistics in two passes": Variant(
        BFLOAT16, functions={"operations.mean_and_variance": statistics_in_two_passes}
    ),
    "all four": Variant(
        BFLOAT16,
        functions={
            "gpu_operations.max_pool": max_pool_by_xla,
            "gpu_operations.find_convolution": plain_form,
            "operations.normalize": normalize_then_activate,
            "operations.mean_and_variance": statistics_in_two_passes,
        },
    ),
    "kernels in the order of JAX": Variant(BFLOAT16, functions={"program.with_layouts": layouts_of_jax}),
    "batch statistics in one reduction": Variant(
        BFLOAT16, functions={"operations.mean_and_variance": statistics_in_one_reduction}
    ),
    "attention by XLA": Variant(BFLOAT16, functions={"gpu_operations.find_attention": plain_form}),
    "batch norm differentiated by JAX": Variant(
        BFLOAT16, functions={"operations.normalize": normalize_without_own_gradient}
    ),
    "1x1 convolutions as products": Variant(BFLOAT16, functions={"operations.convolve": convolve_by_products}),
    "no command buffers": Variant(BFLOAT16, {"xla_gpu_enable_command_buffer": ""}),
    "latency-hiding scheduler": Variant(BFLOAT16, {"xla_gpu_enable_latency_hiding_scheduler": True}),
    "no Triton products": Variant(BFLOAT16, {"xla_gpu_enable_triton_gemm": False}),
    "exhaustive tiling search": Variant(BFLOAT16, {"xla_gpu_exhaustive_tiling_search": True}),
    "cuDNN products": Variant(BFLOAT16, {"xla_gpu_cudnn_gemm_fusion_level": 3}),
    "cuDNN fused convolutions": Variant(BFLOAT16, {"xla_gpu_experimental_enable_conv_fusion": True}),
    "cuDNN runtime fusion": Variant(BFLOAT16, {"xla_gpu_use_runtime_fusion": True}),
    "fusion autotuner": Variant(BFLOAT16, {"xla_gpu_experimental_enable_fusion_autotuner": True}),
    "convolutions NHWC": Variant(BFLOAT16, {"xla_gpu_force_conv_nhwc": True}),
    "convolutions NCHW": Variant(BFLOAT16, {"xla_gpu_force_conv_nchw": True}),
    "deterministic": Variant({**BFLOAT16, "deterministic": True}),
    "statistics over 32 images": Variant({**BFLOAT16, "bn_virtual_batch_size": 32}),
    "average of the weights": Variant({**BFLOAT16, "ema_decay": 0.9999}),
    "float32": Variant(),  # on a GPU by TF32
    "float32 without TF32": Variant({"tf32": False}, base="float32"),
    # On a CPU, from JAX 0.12 on: convolutions by oneDNN in place of Eigen.
    "oneDNN convolutions": Variant(
        compiler_options={
            "xla_cpu_experimental_onednn_custom_call": True,
            "xla_cpu_experimental_ynn_fusion_type": "",
        },
        base="float32",
    ),
    "results with several readers not stored": Variant(
        functions={"cpu_operations.store": leave_to_xla}, base="float32"
    ),
}
COLUMNS = [
    Column("variant", max(map(len, VARIANTS)), "variant"),
    Column("images/s", 8, "images_per_second", 1),
    Column("time, relative", 14, "time_ratio", 1),
    Column("from", 6, "time_ratio_low", 1),
    Column("to", 6, "time_ratio_high", 1),
    Column("compared with", 13, "base"),
]

_MODEL = flags.DEFINE_string("model", "resnet50", "A name of models.REGISTRY.")
_VARIANTS = flags.DEFINE_list("variants", list(VARIANTS), f"Of {', '.join(VARIANTS)}.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images a step; default: 256 on a GPU, 32 on a CPU.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels a side; default: 224 on a GPU, 32 on a CPU.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "How often each of the two has its turn.")
_SECONDS = flags.DEFINE_float("seconds", 0.3, "Length of a turn; at least one step.")
_JSON = flags.DEFINE_string("json", None, "A file for the rows, and of those measured before.")


def make_config(variant: Variant, batch_size: int, image_size: int) -> ConfigDict:
    """Returns the resolved config of a variant; raises ValueError if the flags' values are invalid."""
    config = resnet50.get_config()
    config.update({"model": _MODEL.value, "batch_size": batch_size, "image_size": image_size})
    config.update({"compilation_cache_dir": "", **variant.options})
    return throughput.resolve(config, "train")


def make_turn(variant: Variant, batch_size: int, image_size: int) -> Callable[[], float]:
    """Returns a function that runs some steps of a variant and returns the seconds of one."""
    config = make_config(variant, batch_size, image_size)
    prepare_platform(config)
    xla = compiler_options(config) | variant.compiler_options
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(training.step, "compiler_options", lambda _: xla))
        for name, function in variant.functions.items():
            module, attribute = name.split(".")
            stack.enter_context(mock.patch.object(MODULES[module], attribute, function))
        jax.clear_caches()  # otherwise JAX would reuse its traces of models.operations
        step, _ = throughput.make_step(config, "train")
    jax.clear_caches()

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            running = step()
        jax.block_until_ready(running)
        return (time.perf_counter() - start) / steps

    run(2)
    steps = max(round(_SECONDS.value / run(2)), 1)
    return lambda: run(steps)


def measure(name: str, turns: dict[str, Callable[[], float]], batch_size: int, image_size: int) -> Row:
    """Measures a variant; `turns` holds the functions of the variants so far, which may be bases of others."""
    variant = VARIANTS[name]
    row = {"model": _MODEL.value, "variant": name, "base": variant.base if variant.base != name else None}
    row |= {"batch_size": batch_size, "image_size": image_size}
    try:
        for needed in dict.fromkeys((variant.base, name)):
            if needed not in turns:
                turns[needed] = make_turn(VARIANTS[needed], batch_size, image_size)
        own, base = turns[name], turns[variant.base]
        pairs = [(own(), base()) for _ in range(_ROUNDS.value)]
    except jax.errors.JaxRuntimeError as error:  # this version or this platform lacks the option
        return row | {"status": "error", "error": " ".join(str(error).split())[:200]}
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    row |= {"status": "ok", "images_per_second": batch_size / statistics.median(mine for mine, _ in pairs)}
    return row | {"time_ratio": statistics.median(ratios), "time_ratio_low": ratios[0], "time_ratio_high": ratios[-1]}


def main() -> None:
    """Measures, prints a table, writes JSON."""
    for name in _VARIANTS.value:
        if name not in VARIANTS:
            command_line.refuse(f"--variants={name} is unknown; choose of {', '.join(VARIANTS)}")
    on_cpu = jax.default_backend() == "cpu"
    sizes = _BATCH_SIZE.value or (32 if on_cpu else 256), _IMAGE_SIZE.value or (32 if on_cpu else 224)
    with command_line.refusing_bad_input():
        make_config(VARIANTS["float32"], *sizes)
    kept = {}
    command_line.say(tables.heading(COLUMNS))
    for name in _VARIANTS.value:
        turns = dict(kept)
        row = measure(name, turns, *sizes) | throughput.describe_machine()
        kept |= {base: turns[base] for base in {variant.base for variant in VARIANTS.values()} & turns.keys()}
        command_line.say(tables.line(COLUMNS, row))
        if _JSON.value:
            rows.record(pathlib.Path(_JSON.value), row, ("model", "variant", "batch_size", "image_size", "device"))


if __name__ == "__main__":
    command_line.run(main)
