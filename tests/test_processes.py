"""Several processes train together, as on a cluster, with gloo's collectives between CPU processes."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
TRAIN = ("train.py", "--config=configs/lenet5_digits.py", "--config.compilation_cache_dir=", "--config.num_steps=60")
TRAIN += ("--config.log_every_steps=5", "--config.checkpoint_every_steps=25", "--config.evaluate_every_epochs=1")

pytestmark = pytest.mark.slow


def start(count, *command, devices=1):
    """Starts several processes of a program, each with the given number of devices."""
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_NUM_PROCESSES": str(count), "COLUMNS": "200"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(index)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]


def finish(processes, exit_code=0):
    """Waits for the processes; returns the output of each."""
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [exit_code] * len(processes), outputs
    return [output for output, _ in outputs]


def rows(workdir):
    clock = ("seconds", "images_per_second", "input_wait_fraction")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process with two devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(start(1, *TRAIN, f"--workdir={workdir}", devices=2))
    return workdir


def assert_same_result(workdir, expected):
    for ours, theirs in zip(rows(workdir), rows(expected), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), name


def test_two_processes_do_what_one_with_two_devices_does(alone, tmp_path):
    first, second = finish(start(2, *TRAIN, f"--workdir={tmp_path / 'run'}"))
    assert "done: " in first and "step" not in second
    assert_same_result(tmp_path / "run", alone)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints", "tensorboard"}
    files = [path for path in (tmp_path / "run" / "tensorboard").rglob("*") if path.is_file()]
    assert files and len({path.parent for path in files}) == len(files)  # one process wrote


@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_to_one_stops_all_at_the_same_step(alone, tmp_path, index):
    processes = start(2, *TRAIN, f"--workdir={tmp_path / 'run'}")
    for line in processes[0].stdout:
        if "step 5/60" in line:
            processes[index].send_signal(signal.SIGTERM)
            break
    finish(processes, exit_code=143)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(saved.name) % 5 == 0 and int(saved.name) < 60  # the processes agree at logged steps
    # One process resumes the run that two processes began.
    finish(start(1, *TRAIN, f"--workdir={tmp_path / 'run'}", devices=2))
    before = [row for row in rows(alone) if row["step"] > int(saved.name)]
    after = [row for row in rows(tmp_path / "run") if row["step"] > int(saved.name)]
    assert [row["step"] for row in after] == [row["step"] for row in before]
    assert after[-1]["accuracy_top1"] == before[-1]["accuracy_top1"]


def test_evaluation_is_exact_over_processes_that_get_unequal_shares(alone):
    """360 images in batches of 64: of the last batch the first process has 32 images and the second 8."""
    whole = json.loads(finish(start(1, "evaluate.py", f"--workdir={alone}", "--json=-"))[0])
    halves, nothing = finish(start(2, "evaluate.py", f"--workdir={alone}", "--json=-"))
    halves = json.loads(halves[halves.index("{") :])
    assert "{" not in nothing and halves["examples"] == whole["examples"] == 360
    assert halves["accuracy_top1"] == whole["accuracy_top1"] and halves["accuracy_top5"] == whole["accuracy_top5"]
    assert halves["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_an_image_that_one_process_cannot_decode_ends_all(tmp_path):
    for number in range(32):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), number, np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:40])
    options = (f"--config.dataset=image_folder:{tmp_path / 'images'}", "--config.batch_size=8")
    processes = start(2, *TRAIN, *options, f"--workdir={tmp_path / 'run'}")
    errors = [process.communicate(timeout=120)[1] for process in processes]
    exit_codes = [process.returncode for process in processes]
    assert 2 in exit_codes and 0 not in exit_codes
    assert sum(f"file {path}: cannot decode" in error for error in errors) == 1
