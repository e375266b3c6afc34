"""Evaluates published weights: python benchmarks/studies/stored_networks.py --weights=FILE,FILE [--dataset=NAME].

The weights are those of the CIFAR-10 ResNets of github.com/akamaster/pytorch_resnet_cifar10, in the author's files
resnet20-12fca82f.th and so on. convert.py converts them, and evaluate.py evaluates them on all test images. The errors
must equal the published ones.
"""

import json
import pathlib
import re
import subprocess
import sys
import time

import study
from absl import flags

from benchmarks.commands import own_command, portable
from training import command_line

# Test error in %, from the README of github.com/akamaster/pytorch_resnet_cifar10.
PUBLISHED = {"resnet20": 8.27, "resnet32": 7.37, "resnet44": 6.90, "resnet56": 6.61, "resnet110": 6.32}
REDUCED = {"dataset": "synthetic", "num_classes": 10, "synthetic_examples": 32, "eval_batch_size": 16}

_WEIGHTS = flags.DEFINE_list("weights", [], "Files whose names begin with the network's, or their folder.")


def main() -> int:
    """Converts and evaluates each file; returns the exit code."""
    reduced = study.SIZE.value == "reduced"
    files = study.files_of("stored_networks_reduced" if reduced else "stored_networks")
    if not study.REPORT.value:
        with command_line.refusing_bad_input():
            weights = [study.untrained_weights(files.folder)] if reduced else find_files()
        for path in weights:
            if exit_code := evaluate(path, files, REDUCED if reduced else {}):
                return exit_code
    study.show(files, make_table)
    return 0


def find_files() -> list[pathlib.Path]:
    """Returns the files of --weights.

    Raises:
      ValueError: if there is none, or one's name begins with no network's.
    """
    paths = [pathlib.Path(word) for word in _WEIGHTS.value]
    paths = [found for path in paths for found in (sorted(path.glob("resnet*.th")) if path.is_dir() else [path])]
    if not paths:
        raise ValueError("no file of weights; give --weights=resnet20-12fca82f.th,resnet56-4bfd9763.th or their folder")
    for path in paths:
        if network_of(path) not in PUBLISHED:
            raise ValueError(f"{path} begins with no network's name; rename it to one of {', '.join(PUBLISHED)}")
    return paths


def evaluate(weights: pathlib.Path, files: study.Files, overrides: dict) -> int:
    """Records the error of a file's network; returns the exit code of what failed, or 0."""
    name, dataset = network_of(weights), study.DATASET.value
    workdir, result = files.folder / weights.stem, files.folder / f"{weights.stem}.json"
    options = overrides | {"model": name} | ({"dataset": dataset} if dataset else {})
    start = time.monotonic()
    if code := study.convert_weights(weights, workdir, options):
        return code
    command = [sys.executable, "evaluate.py", f"--json={result.absolute()}", f"--workdir={workdir.absolute()}"]
    if code := subprocess.run(command, cwd=study.ROOT).returncode:
        return code
    content, measured = (json.loads(path.read_text()) for path in (workdir / "config.json", result))
    about = {key: content[key] for key in ("hardware", "versions", "git_commit")}
    row = {"name": name, "seed": None, "file": weights.name, "seconds": time.monotonic() - start} | measured | about
    study.record(files, row | {"dataset": portable(row["dataset"]), "command": own_command()})
    return 0


def make_table(rows: list[study.Row]) -> str:
    """Returns test errors here and as published."""
    return study.table(
        ["network", "file", "test images", "wrong here", "test error here, %", "published, %"],
        (
            [
                row["name"],
                f"`{row['file']}`",
                f"{row['examples']:,}",
                round((1 - row["accuracy_top1"]) * row["examples"]),
                f"{100 * (1 - row['accuracy_top1']):.2f}",
                f"{PUBLISHED[row['name']]:.2f}",
            ]
            for row in rows
        ),
    )


def network_of(path: pathlib.Path) -> str:
    """Returns the network that a file's name begins with."""
    return re.match(r"[a-z0-9_]*", path.name)[0]


if __name__ == "__main__":
    command_line.run(main)
