"""Trains the same configs on several numbers of devices and processes, and compares their metrics.

python benchmarks/devices.py [--only=CASE,CASE] [--json=FILE] [--docs]

Each run is real: train.py in its own processes, connected over loopback, each with as many virtual devices of the CPU
as its layout says. The first layout, one process with one device, is what the others are compared with. A chain stops a
run with SIGTERM after some steps on each layout, and continues it on the next one, in the middle of an epoch.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from program import COMPILE_QUICKLY, TIMEOUT, Program

from benchmarks.page import put_table
from training.environment import describe_environment

Layout = tuple[int, int]  # processes, devices of each
LAYOUTS: list[Layout] = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1), (4, 2)]
CHAIN: list[Layout] = [(1, 8), (2, 1), (1, 1), (4, 2), (1, 4)]

COMMON = "--config=configs/base.py --config.dataset=synthetic --config.synthetic_examples=17 --config.num_classes=10 "
COMMON += (
    "--config.batch_size=32 --config.learning_rate=0.001 --config.log_every_steps=1 --config.evaluate_every_epochs=8"
)
RESNET = "model=resnet20 image_size=16 bn_virtual_batch_size=2 aux_weight=0.3 aux_heads=stage1,stage2 "
RESNET += "stochastic_depth_rate=0.2 ema_decay=0.9"
AUGMENTED = "model=lenet5 channels=3 dropout_rate=0.5 train_crop=random_resized random_flip=True auto_augment=rand "
AUGMENTED += "color_jitter=0.2,0.2,0.2,0.1 random_erasing=0.5 mixup_alpha=0.2 cutmix_alpha=1.0 accumulation_steps=2 "
AUGMENTED += "repeated_augmentation=2 ema_decay=0.9"
ALEXNET = "model=alexnet image_size=67 shard_params=True"
KINDS = "training loss", "evaluation loss", "accuracy"
CASES = {
    "virtual batches, auxiliary heads, stochastic depth, average": RESNET,
    "the same in float64": f"{RESNET} dtype=float64",
    "dropout, every augmentation, mixup and cutmix, accumulation, average": AUGMENTED,
    "the same with cache=device": f"{AUGMENTED} cache=device",
    "the same with cache=sharded": f"{AUGMENTED} cache=sharded",
    "AlexNet with shard_params, adamw": f"{ALEXNET} optimizer=adamw",
    "AlexNet with shard_params, adamw in float64": f"{ALEXNET} optimizer=adamw dtype=float64",
    "AlexNet with shard_params, sgd": ALEXNET,
}


class Processes:
    """A run of train.py on a layout."""

    def __init__(self, layout: Layout, *arguments: str):
        """Starts the processes."""
        count, devices = layout
        variables = {"XLA_FLAGS": f"{COMPILE_QUICKLY} --xla_force_host_platform_device_count={devices}"}
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                variables["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
            variables["JAX_NUM_PROCESSES"] = str(count)
        self.programs = [
            Program("train.py", *arguments, **variables, JAX_PROCESS_ID=str(index)) for index in range(count)
        ]

    def end(self, number: int | None = None) -> list[int | None]:
        """Sends a signal to the last process, if one is given, and waits; returns the exit codes."""
        if number and self.programs[-1].process.is_alive():
            os.kill(self.programs[-1].process.pid, number)
        for program in self.programs:
            program.process.join(10 * TIMEOUT)  # a large network on many devices takes minutes
        return [program.end() for program in self.programs]


def arguments(options: str, workdir: pathlib.Path, steps: int) -> list[str]:
    """Returns the flags of train.py."""
    words = [f"--config.{option}" for option in options.split()]
    return [*COMMON.split(), *words, f"--config.num_steps={steps}", f"--workdir={workdir}"]


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics without those of the clock."""
    clock = ("seconds", "images_per_second", "input_wait_fraction")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def compare(rows: list[dict], expected: list[dict]) -> dict[str, float]:
    """Returns the largest relative difference of losses, in training and in evaluation, and of accuracies.

    Raises:
      ValueError: if the rows are of other steps, or the evaluations counted other numbers of images.
    """
    largest = dict.fromkeys(KINDS, 0.0)
    for row, other in zip(rows, expected, strict=True):
        if any(row.get(name) != other.get(name) for name in ("step", "split", "examples")):
            raise ValueError(f"{row} is no row like {other}")
        for name in (name for name in other if "loss" in name or "accuracy" in name):
            kind = (
                "accuracy" if "accuracy" in name else f"{'training' if row['split'] == 'train' else 'evaluation'} loss"
            )
            difference = abs(row[name] - other[name]) / (1 if kind == "accuracy" else other[name])
            largest[kind] = max(largest[kind], difference)
    return largest


def name_of(layout: Layout) -> str:
    """Returns a layout in words."""
    count, devices = layout
    return f"{count} process{'es' * (count > 1)} with {devices} device{'s' * (devices > 1)}"


def run_case(options: str, folder: pathlib.Path, steps: int = 8) -> dict[str, Any]:
    """Runs a config on all layouts; returns for each of them how far it is from the first."""
    found: dict[str, Any] = {}
    expected: list[dict] = []
    for layout in LAYOUTS:
        workdir = folder / "x".join(map(str, layout))
        run = Processes(layout, *arguments(options, workdir, steps))
        if any(codes := run.end()):
            found[name_of(layout)] = f"exit codes {codes}: {' / '.join(p.errors[-300:] for p in run.programs)}"
            continue
        expected = expected or read(workdir)
        found[name_of(layout)] = compare(read(workdir), expected)
    return found


def run_chain(options: str, folder: pathlib.Path, steps: int = 200) -> dict[str, Any]:
    """Continues one run on one layout after the other; returns where it stopped, and how far it is from a whole one."""
    flags, stops = arguments(options, folder / "chain", steps), []
    for layout in CHAIN:
        run, last = Processes(layout, *flags), layout == CHAIN[-1]
        if not last:
            run.programs[0].prints(rf"(?s)(step \d+/{steps} loss.*?){{3}}")  # three logged steps
        codes = run.end(None if last else signal.SIGTERM)
        stops.append(f"{name_of(layout)}: exit codes {codes}, to step {read(folder / 'chain')[-1]['step']}")
        if not last and not any(codes):
            raise RuntimeError(f"{stops[-1]}: it ended before the signal came; give the chain more steps")
    if any(Processes((1, 1), *arguments(options, folder / "whole", steps)).end()):
        raise RuntimeError("the whole run failed")
    return {"stops": stops} | compare(read(folder / "chain"), read(folder / "whole"))


def main() -> None:
    """Runs the cases, prints a table in Markdown, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="parts of the names of cases, with commas between them")
    parser.add_argument("--json", type=pathlib.Path, help="a file for the figures")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/reliability.md")
    flags = parser.parse_args()
    chosen = [name for name in [*CASES, "chain"] if any(word in name for word in flags.only.split(","))]
    results: dict[str, Any] = json.loads(flags.json.read_text())["cases"] if flags.json and flags.json.exists() else {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            results[name] = run_chain(AUGMENTED, path) if name == "chain" else run_case(CASES[name], path)
        print(name, json.dumps(results[name], indent=1), flush=True)
        if flags.json:
            content = {"command": "python benchmarks/devices.py", **describe_environment(), "cases": results}
            flags.json.write_text(json.dumps(content, indent=2) + "\n")
    lines = ["| config | layout | training losses | evaluation losses | accuracies |", "|---|---|---|---|---|"]
    for name in [name for name in [*CASES, "chain"] if name in results]:
        found = results[name]
        chain = "one after the other: " + ", ".join(map(name_of, CHAIN))
        rows = {chain: found} if name == "chain" else {key: found[key] for key in list(found)[1:]}
        for layout, figures in rows.items():
            failed = isinstance(figures, str)
            cells = ["failed" if failed else f"{figures[kind]:.1e}" if figures[kind] else "equal" for kind in KINDS]
            lines.append(f"| {name} | {layout} | {' | '.join(cells)} |")
    print("", *lines, sep="\n")
    if flags.docs:
        put_table(ROOT / "docs" / "reliability.md", "devices", "\n".join(lines))


if __name__ == "__main__":
    main()
