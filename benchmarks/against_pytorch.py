"""Measures our networks beside PyTorch's on the same machine: python benchmarks/against_pytorch.py --torch_python=PATH.

Both sides run training steps and inference of the same networks, with equal parameter counts, on synthetic uint8
batches of the same size on the device, with the same loss and SGD with momentum. Ours runs as in train.py. PyTorch runs
in its own process, channels_last, eager, compiled, and on a GPU compiled into CUDA graphs. The type is bfloat16 on a
GPU and float32 on a CPU. The two sides run alternately, so that a drift of the machine's speed does not change the
ratios. Each row is written when it is measured; the rows of other networks, sizes, machines or
versions of JAX in --json are kept.
"""

import contextlib
import os
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # share of a GPU's memory; PyTorch needs the rest

import jax
from absl import flags
from pytorch_process import PyTorchProcess

from analysis import rows, tables, throughput
from analysis.rows import Row
from analysis.tables import Column
from configs import base
from training import command_line
from training.platform import prepare_platform

# PyTorch's name, its library, our name, and the weights of the auxiliary losses in training.
NETWORKS = {
    "resnet50": ("torchvision", "resnet50", ()),
    "alexnet": ("torchvision", "alexnet_owt", ()),
    "vgg16": ("torchvision", "vgg16", ()),
    "googlenet": ("torchvision", "googlenet_bn_3x3", (0.3, 0.3)),
    "inception_v3": ("torchvision", "inception_v3", (0.4,)),
    "resnet18": ("torchvision", "resnet18", ()),
    "resnet152": ("torchvision", "resnet152", ()),
    "densenet121": ("torchvision", "densenet121", ()),
    "mobilenetv1_100": ("timm", "mobilenet_v1", ()),
    "legacy_xception": ("timm", "xception", ()),
    "resnet20": ("studies", "resnet20", ()),  # of CIFAR-10: benchmarks/studies/plain_pytorch_resnet20.py
}
MODES, STYLES = ["train", "infer"], ["eager", "compiled", "cuda_graphs"]
PAUSE_SECONDS = 0.5  # between turns, because the other side's threads spin for a while; then the caches are warmed
COLUMNS = [
    Column("model", 16, "model"),
    Column("mode", 5, "mode"),
    Column("batch", 5, "batch_size"),
    Column("pixels", 6, "image_size"),
    Column("dtype", 8, "dtype"),
    Column("images/s", 8, "images_per_second", 1),
    Column("eager", 8, "eager_images_per_second", 1),
    Column("compiled", 8, "compiled_images_per_second", 1),
    Column("CUDA graphs", 11, "cuda_graphs_images_per_second", 1),
    Column("ratio", 5, "ratio", 1),
    Column("from", 5, "ratio_low", 1),
    Column("to", 5, "ratio_high", 1),
]

_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "A Python that has torch, torchvision and timm.")
_MODELS = flags.DEFINE_list("models", list(NETWORKS), f"Of {', '.join(NETWORKS)}: PyTorch's names.")
_MODES = flags.DEFINE_list("mode", MODES, "train, infer or both.")
_STYLES = flags.DEFINE_list("styles", STYLES, f"How PyTorch runs: {', '.join(STYLES)}, which only a GPU has.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images a step; default: 256 on a GPU, 8 on a CPU, or 128 of CIFAR-10."
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels a side; default: the network's own.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each side has its turn.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Length of a turn; at least one step.")
_JSON = flags.DEFINE_string("json", None, "A file for the rows, and of those measured before.")


def main() -> int:
    """Measures, prints a table, writes JSON; returns the exit code."""
    for flag, known in ((_MODELS, NETWORKS), (_MODES, MODES), (_STYLES, STYLES)):
        for word in flag.value:
            if word not in known:
                command_line.refuse(f"--{flag.name}={word} is unknown; choose of {', '.join(known)}")
    if not shutil.which(_TORCH_PYTHON.value):
        command_line.refuse(f"--torch_python={_TORCH_PYTHON.value} is no program; give a Python that has torch")
    command_line.say(tables.heading(COLUMNS))
    exit_code = 0
    for name in _MODELS.value:
        try:
            for row in compare(name):
                command_line.say(tables.line(COLUMNS, row))
                if _JSON.value:
                    same = ("model", "mode", "batch_size", "image_size", "dtype", "device", "processor", "jax_version")
                    rows.record(pathlib.Path(_JSON.value), row, same)
        except RuntimeError as error:  # the other networks are still measured
            print(f"{name}: {error}", file=sys.stderr)
            exit_code = 1
    return exit_code


def compare(name: str) -> Iterator[Row]:
    """Yields a row for each mode of a network."""
    on_cpu = jax.default_backend() == "cpu"
    library, ours, aux_weights = NETWORKS[name]
    batch_size = 256 if not on_cpu else 128 if name == "resnet20" else 8
    config = base.get_config()
    config.update({"model": ours, "batch_size": _BATCH_SIZE.value or batch_size, "weight_decay": 1e-4})
    config.update({"image_size": _IMAGE_SIZE.value, "dtype": "float32" if on_cpu else "bfloat16"})
    config.update({"aux_weight": aux_weights or (0.0,), "compilation_cache_dir": ""})
    config = throughput.resolve(config, "train")
    prepare_platform(config)
    sizes = {"batch_size": config.batch_size, "image_size": config.image_size, "dtype": config.dtype}
    torch = PyTorchProcess(
        _TORCH_PYTHON.value, "against_pytorch_worker.py", name, library, *sizes.values(), *aux_weights
    )
    with contextlib.closing(torch):
        if (torch.about["torch_device"] == "cpu") != on_cpu:
            raise RuntimeError(f"PyTorch runs on {torch.about['torch_device']}, we on {jax.default_backend()}")
        for mode in _MODES.value:
            step, parameters = throughput.make_step(config, mode)
            if mode == "infer" and parameters != torch.about["parameters"]:
                raise RuntimeError(
                    f"{name}: PyTorch counts {torch.about['parameters']:,} parameters, we {parameters:,}"
                )

            def run(steps: int, step: Callable = step) -> float:
                start = time.perf_counter()
                for _ in range(steps):
                    running = step()
                    if on_cpu:  # else JAX would run several inferences at once, unlike PyTorch
                        jax.block_until_ready(running)
                jax.block_until_ready(running)
                return time.perf_counter() - start

            identity = {"model": name, "mode": mode, **sizes, "our_name": ours}
            sides = {"ours": run} | {
                style: lambda steps, mode=mode, style=style: torch.seconds(f"{mode} {style} {steps}")
                for style in _STYLES.value
                if not (on_cpu and style == "cuda_graphs")
            }
            yield identity | take_turns(sides, config.batch_size) | throughput.describe_machine() | torch.about


def take_turns(sides: dict[str, Callable[[int], float]], batch_size: int) -> Row:
    """Runs both sides alternately; returns the rates, and for each round our rate over the higher one of PyTorch."""
    row, steps = {}, {}
    for side, run in list(sides.items()):
        try:
            run(1), run(1)  # the first run compiles; after the second the speed is steady
            steps[side] = max(round(_SECONDS.value / run(1)), 1)
        except RuntimeError as error:
            row[f"{side}_error"] = str(error)
            del sides[side]
    rates = {side: [] for side in sides}
    for _ in range(_ROUNDS.value):
        for side, run in sides.items():
            time.sleep(PAUSE_SECONDS)
            run(1)
            rates[side].append(steps[side] * batch_size / run(steps[side]))
    for side, values in rates.items():
        row["images_per_second" if side == "ours" else f"{side}_images_per_second"] = statistics.median(values)
    others = [rates[side] for side in sides if side != "ours"]
    if others and "ours" in sides:
        best = max(others, key=statistics.median)
        ratios = [own / other for own, other in zip(rates["ours"], best, strict=True)]
        row |= {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
    return row | {"rounds": _ROUNDS.value, "turn_seconds": _SECONDS.value}


if __name__ == "__main__":
    command_line.run(main)
