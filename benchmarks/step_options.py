"""Measures what an option costs or gains in the training step: python benchmarks/step_options.py [--json=FILE].

Each variant runs the product's own jitted step on one synthetic batch that is on the devices already; the variants take
turns, so that the ratios hold when the machine's speed drifts. On a GPU: --batch_size=256 --image_size=224, the default
there. On a CPU it runs small, and only shows that it works: TF32 and deterministic kernels are a GPU's.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from configs import resnet50  # noqa: E402
from training import configuration  # noqa: E402
from training.loss import zero_sums  # noqa: E402
from training.optimizer import make_optimizer  # noqa: E402
from training.platform import prepare_platform  # noqa: E402
from training.state import abstract_state, create_state, make_mesh, make_model  # noqa: E402
from training.step import make_train_step  # noqa: E402

VARIANTS = {
    "float32, TF32": {},
    "float32, full precision": {"tf32": False},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, deterministic": {"dtype": "bfloat16", "deterministic": True},
    "bfloat16, statistics over 32 images": {"dtype": "bfloat16", "bn_virtual_batch_size": 32},
    "bfloat16, average of the weights": {"dtype": "bfloat16", "ema_decay": 0.9999},
}
BASES = {"float32, full precision": "float32, TF32"}  # what a variant is compared with, where not with bfloat16

_MODEL = flags.DEFINE_string("model", "resnet50", "A name of models.REGISTRY.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images a step; default: 256 on a GPU, 32 on a CPU.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels a side; default: 224 on a GPU, 32 on a CPU.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "How often each variant has its turn.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps a turn; default: 10 on a GPU, 1 on a CPU.")
_JSON = flags.DEFINE_string("json", None, "A file for the figures.")


def make_turn(options: dict, batch_size: int, image_size: int, steps: int) -> Callable[[], float]:
    """Returns a function that runs some steps of a variant and returns the seconds of one."""
    config = resnet50.get_config()
    config.update({"model": _MODEL.value, "batch_size": batch_size, "image_size": image_size, "num_classes": 1000})
    config.update(options)
    config = configuration.resolve_network(config)
    prepare_platform(config)
    mesh, model = make_mesh(), make_model(config, training=True)
    optimizer = make_optimizer(config, lambda _: config.learning_rate)
    step = make_train_step(config, model, optimizer, mesh)
    state = create_state(abstract_state(config, model, optimizer, mesh), model, seed=0)
    random, split = np.random.RandomState(0), NamedSharding(mesh, PartitionSpec("data"))
    images = random.randint(0, 256, (batch_size, image_size, image_size, config.channels)).astype(np.uint8)
    batch = jax.device_put({"image": images, "label": np.arange(batch_size, dtype=np.int32) % 1000}, split)
    sums = jax.device_put(zero_sums(len(config.aux_heads)), NamedSharding(mesh, PartitionSpec()))
    # Compiled now: the precision of products is a setting of the process at the time of tracing.
    step = step.lower(state, sums, batch).compile()

    def turn() -> float:
        nonlocal state, sums
        start = time.perf_counter()
        for _ in range(steps):
            state, sums = step(state, sums, batch)
        jax.block_until_ready((state, sums))
        return (time.perf_counter() - start) / steps

    turn()
    return turn


def main(_) -> None:
    """Measures, prints a table, writes JSON."""
    on_cpu = jax.default_backend() == "cpu"
    batch_size = _BATCH_SIZE.value or (32 if on_cpu else 256)
    image_size = _IMAGE_SIZE.value or (32 if on_cpu else 224)
    steps = _STEPS.value or (1 if on_cpu else 10)
    turns = {name: make_turn(options, batch_size, image_size, steps) for name, options in VARIANTS.items()}
    seconds = {name: [] for name in turns}
    for _ in range(_ROUNDS.value):
        for name, turn in turns.items():
            seconds[name].append(turn())

    rows = []
    for name, times in seconds.items():
        base = BASES.get(name, "bfloat16" if name.startswith("bfloat16") else name)
        ratios = sorted(own / other for own, other in zip(times, seconds[base], strict=True))
        rows.append(
            {
                "variant": name,
                "images_per_second": batch_size / statistics.median(times),
                "compared_with": base,
                "time_ratio_median": statistics.median(ratios),
                "time_ratio_range": [ratios[0], ratios[-1]],
            }
        )
    device = jax.devices()[0].device_kind
    table = Table("variant", "images/s", "time, relative", "range", "to", title=f"{_MODEL.value} on {device}")
    for row in rows:
        low, high = row["time_ratio_range"]
        figures = f"{row['images_per_second']:,.0f}", f"{row['time_ratio_median']:.3f}", f"{low:.3f} to {high:.3f}"
        table.add_row(row["variant"], *figures, row["compared_with"])
    Console().print(table)
    if _JSON.value:
        pathlib.Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        setting = {"model": _MODEL.value, "batch_size": batch_size, "image_size": image_size, "rows": rows}
        content = {"command": " ".join(["python", *sys.argv]), **configuration.describe_environment(), **setting}
        pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
