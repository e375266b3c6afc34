"""Runs the commands that the documentation prints, in a copy of the repository, as after a fresh clone."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from program import COMPILE_QUICKLY, ROOT

# What makes a training short, as replacements in a command.
REDUCED = (
    (r"--config\.num_(epochs|steps)=\S+", "--config.num_steps=2"),
    (r"(train\.py --config=configs/lenet5_digits\.py)(?!.*num_)", r"\1 --config.num_steps=2"),
    (r"seed=0:\d", "seed=0:1"),
    (r"plain20,plain56,resnet20,resnet56", "plain20,resnet20"),
    (r"--reach=\S+", "--reach=1"),
    (r"benchmark\.py --models=\S+", "benchmark.py --seconds=0.1 --models=lenet5"),
    (r"--batch_sizes=\S+", "--batch_sizes=2"),
)


def copy_repository(folder: pathlib.Path) -> pathlib.Path:
    """Copies the files that git has, or would add, into a folder; returns the folder."""
    names = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(command: str, folder: pathlib.Path) -> subprocess.CompletedProcess:
    """Runs a command in the reduced size in a folder, by a shell, with this process's Python."""
    for pattern, replacement in REDUCED:
        command = re.sub(pattern, replacement, command)
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "XLA_FLAGS": COMPILE_QUICKLY}
    words = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(words, cwd=folder, env=environment, text=True, capture_output=True)
