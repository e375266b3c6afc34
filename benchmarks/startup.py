"""Measures the time before and around the steps: python benchmarks/startup.py [--json=benchmarks/results/startup.json].

From `python train.py` to the first step (ResNet-50, batch 8, 64 px; cold and with a warm compilation cache), the
initialisation of each network, the Python time of a step, and the peak memory of training on the digits.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from absl import app, flags

import models
from analysis import tables
from configs import resnet50
from training import configuration
from training.environment import describe_environment
from training.loss import zero_sums
from training.optimizer import make_optimizer
from training.state import abstract_state, create_state, make_mesh, make_model

_JSON = flags.DEFINE_string("json", None, "A file for the figures.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Starts of each process, of which the median counts.")


def seconds_to_first_step(cache: str) -> float:
    """Returns the seconds from the start of train.py to its line about the first step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--config=configs/resnet50.py", "--config.dataset=synthetic"]
        command += [
            "--config.image_size=64",
            "--config.batch_size=8",
            "--config.num_steps=1",
            f"--workdir={folder}/run",
        ]
        command += [f"--config.compilation_cache_dir={cache}", "--config.synthetic_examples=8"]
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("first step"):
                    seconds = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"train.py ended with exit code {process.returncode}")
    return seconds


def initialisation_seconds(name: str) -> float:
    """Returns the seconds to build a network and put its initial values on the device."""
    start = time.perf_counter()
    model = models.create_model(name, abstract=True)
    jax.block_until_ready(jax.device_put(models.initial_values(model, seed=0)))
    return time.perf_counter() - start


def step_overhead_ms(steps: int = 300) -> float:
    """Returns the milliseconds of Python and JAX for a step that has ResNet-50's state and computes nothing."""
    config = configuration.resolve_network(resnet50.get_config())
    mesh, model = make_mesh(), make_model(config, training=True)
    state = create_state(
        abstract_state(config, model, make_optimizer(config, lambda _: config.learning_rate), mesh), model, seed=0
    )
    sums = jax.device_put(zero_sums())
    # As in the real step every array is donated and returned; XLA forwards the buffers.
    step = jax.jit(lambda state, sums: (state | {"step": state["step"] + 1}, sums), donate_argnums=0)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        state, sums = step(state, sums)
        times.append(time.perf_counter() - start)
        jax.block_until_ready(state)
    return 1000 * statistics.median(times[10:])


def digits_memory_gb() -> float:
    """Returns the peak host memory of training LeNet-5 on the digits, gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--config=configs/lenet5_digits.py", f"--workdir={folder}/run"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(pathlib.Path(folder, "run", "summary.json").read_text())["peak_host_memory_bytes"] / 1e9


def main(_) -> None:
    """Measures, prints a table, writes JSON."""
    colds, warms = [], []
    for _ in range(_REPEATS.value):
        with tempfile.TemporaryDirectory() as cache:
            colds.append(seconds_to_first_step(cache))
            warms.append(seconds_to_first_step(cache))
    initialisation = {name: initialisation_seconds(name) for name in models.REGISTRY}
    slowest = max(initialisation, key=initialisation.get)
    figures = {
        "ResNet-50, batch 8, 64 px: first step, cold (s)": (np.median(colds), 18),
        "ResNet-50, batch 8, 64 px: first step, warm cache (s)": (np.median(warms), 9),
        "initialisation, VGG-19 (s)": (initialisation["vgg19"], 4),
        "initialisation, ResNet-152 (s)": (initialisation["resnet152"], 4),
        f"initialisation, the slowest: {slowest} (s)": (initialisation[slowest], 4),
        "Python time of a step, ResNet-50's state (ms)": (step_overhead_ms(), 1),
        "peak memory, training the digits (GB)": (digits_memory_gb(), 1.5),
    }
    lines = [[name, f"{value:.2f}", f"{goal:g}"] for name, (value, goal) in figures.items()]
    tables.print_boxed(["figure", "measured", "goal: under"], lines)
    if _JSON.value:
        pathlib.Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        content = {"command": "python benchmarks/startup.py", **describe_environment()}
        content["figures"] = {name: float(value) for name, (value, _) in figures.items()}
        pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
