"""Several processes train together, as on a cluster, with gloo's collectives between CPU processes."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from training.processes import join_processes
from training.state import make_mesh
from training.transfer import load_weights

ROOT = pathlib.Path(__file__).parent.parent
TRAIN = ("train.py", "--config=configs/lenet5_digits.py", "--config.compilation_cache_dir=", "--config.num_steps=60")
TRAIN += ("--config.log_every_steps=5", "--config.checkpoint_every_steps=25", "--config.evaluate_every_epochs=1")

pytestmark = pytest.mark.slow


def start(count, *command, devices=1, each=(), cwd=None):
    """Starts several processes of a program.

    Args:
      count: number of processes.
      command: the program and its flags.
      devices: number of devices of each process.
      each: further flags for each process.
      cwd: folders in which the processes run.
    """
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_NUM_PROCESSES": str(count), "COLUMNS": "200"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, ROOT / command[0], *map(str, command[1:]), *map(str, each[index] if each else ())],
            cwd=cwd[index] if cwd else ROOT,
            env=environment | {"JAX_PROCESS_ID": str(index)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]


def with_recipe_path(command):
    """Returns the command with the recipe's absolute path, for a process that runs in another folder."""
    return [word.replace("=configs/", f"={ROOT}/configs/") for word in command]


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


@pytest.mark.parametrize("cache", ["device", "sharded"])
def test_two_processes_with_the_dataset_on_their_devices(tmp_path, cache):
    options = (*TRAIN, f"--config.cache={cache}", "--config.num_steps=20")
    finish(start(1, *options, f"--workdir={tmp_path / 'alone'}", devices=2))
    finish(start(2, *options, f"--workdir={tmp_path / 'run'}"))
    assert_same_result(tmp_path / "run", tmp_path / "alone")


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


def test_a_remote_workdir_of_two_processes_without_a_shared_disk(tmp_path):
    """The URL begins with file://; each process has its own local copy, and its parts of the large arrays."""
    options = (*TRAIN, "--config.num_classes=1000", "--config.shard_params=True", "--config.remote_upload_seconds=0.1")
    caches = [[f"--config.remote_cache_dir={tmp_path / name}"] for name in ("first", "second")]
    finish(start(2, *options, f"--workdir={tmp_path / 'alone'}"))
    processes = start(2, *options, f"--workdir=file://{tmp_path}/run", each=caches)
    for line in processes[0].stdout:
        if "step 30/60" in line:
            break
    for process in processes[::-1]:
        process.kill()
        process.wait()
    finish(start(2, *options, f"--workdir=file://{tmp_path}/run", each=caches))
    assert rows(tmp_path / "run") == rows(tmp_path / "alone")
    _, *ours, _ = load_weights(tmp_path / "run", make_mesh(1))
    _, *theirs, _ = load_weights(tmp_path / "alone", make_mesh(1))
    assert jax.tree.all(jax.tree.map(lambda one, other: np.array_equal(one, other), ours, theirs))


def write_images(folder, count, class_names=("cat", "dog")):
    for number in range(count):
        path = folder / class_names[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), number, np.uint8)).save(path)
    return path


def errors(processes):
    """Waits for the processes; returns the lines that each of them printed on standard error."""
    return [process.communicate(timeout=60)[1].splitlines() for process in processes]


def test_an_image_that_one_process_cannot_decode_ends_all(tmp_path):
    path = write_images(tmp_path / "images", 32)
    path.write_bytes(path.read_bytes()[:40])
    options = (f"--config.dataset=image_folder:{tmp_path / 'images'}", "--config.batch_size=8")
    processes = start(2, *TRAIN, *options, f"--workdir={tmp_path / 'run'}")
    for lines in errors(processes):
        (line,) = lines
        assert f"file {path}: cannot decode" in line
    assert [process.returncode for process in processes] == [2, 2]


def test_processes_with_other_options_or_data_are_refused(tmp_path):
    """The folder of images is on each machine's own disk: its path is relative to the folder of the process."""
    write_images(tmp_path / "first" / "images", 32)
    write_images(tmp_path / "second" / "images", 31, ("cat", "horse"))
    processes = start(
        2,
        *with_recipe_path(TRAIN),
        "--config.dataset=image_folder:images",
        f"--workdir={tmp_path / 'run'}",
        each=[(), ("--config.learning_rate=0.1",)],
        cwd=[tmp_path / "first", tmp_path / "second"],
    )
    for lines in errors(processes):
        (line,) = lines
        assert f"process 1 on {socket.gethostname()} has images of" in line
        assert "class 1='horse', not 'dog'" in line and "learning_rate=0.1, not 0.05" in line
    assert [process.returncode for process in processes] == [2, 2]
    assert not (tmp_path / "run").exists()


def test_a_workdir_on_the_disk_of_each_machine_is_refused(tmp_path):
    """One path is another folder in each process, as on a disk that the machines do not share."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    processes = start(2, *with_recipe_path(TRAIN), "--workdir=/proc/self/cwd/run", cwd=folders)
    for lines in errors(processes):
        (line,) = lines
        assert "give a --workdir on a file system that all processes share" in line
    assert [process.returncode for process in processes] == [2, 2]
    assert not [*folders[0].iterdir(), *folders[1].iterdir()]


@pytest.mark.parametrize(
    ("sent", "message"), [("SIGKILL", "process 1 on .* is lost"), ("SIGSTOP", "process 1 on .* has not answered")]
)
def test_a_process_that_is_killed_or_hangs_ends_the_others(tmp_path, sent, message):
    options = ("--config.num_steps=100000", "--config.process_timeout_seconds=15")
    processes = start(2, *TRAIN, *options, f"--workdir={tmp_path / 'run'}")
    for line in processes[0].stdout:
        if "step 5/" in line:
            processes[1].send_signal(signal.Signals[sent])
            break
    ((line,),) = errors(processes[:1])
    assert re.search(message, line) and processes[0].returncode == 4
    processes[1].kill()
    processes[1].communicate()


def test_a_process_waits_a_limited_time_for_the_others_to_start(tmp_path):
    environment = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "127.0.0.1:9"}
    process = subprocess.run(
        [sys.executable, *TRAIN, "--config.process_timeout_seconds=2", f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        capture_output=True,
        timeout=60,
    )
    (line,) = process.stderr.splitlines()
    assert "not all processes have started: process 1 of 2 at 127.0.0.1:9 waited for 2 s" in line
    assert process.returncode == 4


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID="),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "JAX_COORDINATOR_ADDRESS="),
    ],
)
def test_wrong_variables_are_refused(variables, message, monkeypatch):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{message} is invalid"):
        join_processes(1.0)


def test_a_sharded_run_writes_its_shards_in_parallel_and_goes_on_elsewhere(tmp_path):
    """LeNet-5 has no array of 65,536 numbers, but with 1,000 classes its last layer is one."""
    options = (*TRAIN, "--config.num_classes=1000", "--config.num_steps=30", "--config.evaluate_every_epochs=0")
    finish(start(1, *options, f"--workdir={tmp_path / 'whole'}", devices=4))
    processes = start(2, *options, "--config.shard_params=True", f"--workdir={tmp_path / 'run'}")
    for line in processes[0].stdout:
        if "step 10/30" in line:
            processes[1].send_signal(signal.SIGTERM)
            break
    finish(processes, exit_code=143)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert {path.name for path in (saved / "state").glob("ocdbt.process_*")} == {"ocdbt.process_0", "ocdbt.process_1"}
    checksums = json.loads((saved / "checksums" / "metadata").read_text())
    assert isinstance(checksums["['params']['head']['kernel']"], list)
    finish(start(1, *options, "--config.shard_params=True", f"--workdir={tmp_path / 'run'}", devices=4))
    assert_same_result(tmp_path / "run", tmp_path / "whole")
    (line,) = finish(start(1, "evaluate.py", f"--workdir={tmp_path / 'run'}", "--json=-"))
    assert '"examples": 360' in line

    # A damaged shard sends both processes back to the checkpoint before, although only one of them may read it.
    (tmp_path / "run" / "summary.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "30" / "state"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    finish(start(2, *options, "--config.shard_params=True", f"--workdir={tmp_path / 'run'}"))
    assert (tmp_path / "run" / "damaged" / "30").is_dir()
    assert_same_result(tmp_path / "run", tmp_path / "whole")


def test_other_versions_of_a_library_are_refused(tmp_path):
    program = tmp_path / "train.py"
    program.write_text(f"""
import importlib.metadata, os, runpy, sys
found = importlib.metadata.version
if os.environ["JAX_PROCESS_ID"] == "1":
    importlib.metadata.version = lambda name: "0.1" if name == "optax" else found(name)
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
""")
    processes = start(2, program, *TRAIN[1:], f"--workdir={tmp_path / 'run'}")
    for lines in errors(processes):
        (line,) = lines
        assert "process 1 on" in line and "runs optax 0.1, not" in line and "install the same versions" in line
    assert [process.returncode for process in processes] == [2, 2]
    assert not (tmp_path / "run").exists()


def test_a_bad_option_is_one_line_and_exit_code_2_on_every_process(tmp_path):
    for option in ("--config.batch_size=33", "--config.optimizer=sdg", "--config.dataset=image_folder:/nowhere"):
        processes = start(2, *TRAIN, option, f"--workdir={tmp_path / 'run'}")
        assert [len(lines) for lines in errors(processes)] == [1, 1]
        assert [process.returncode for process in processes] == [2, 2]
    assert not (tmp_path / "run").exists()
