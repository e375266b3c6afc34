"""The folder of a run: its name, the run that it belongs to, and its config.json."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from configs import base, resnet50
from training.configuration import resolve_network, resolve_run
from training.workdir import (
    check_not_in_use,
    check_workdir,
    default_workdir,
    discard_unstarted,
    exclusive_run,
    open_atomically,
    read_config,
    write_atomically,
    write_config,
)


def resolve(config=None, dataset_classes=10, **options):
    config = config or base.get_config()
    config.update(options)
    return resolve_run(resolve_network(config), dataset_classes, num_images=1000)


def test_the_workdir_names_what_changes_the_result():
    overrides = {"model": "googlenet", "aux_weight": (0.3,), "data_dir": "/data", "log_every_steps": 5}
    assert str(default_workdir("configs/resnet50.py", overrides)) == "runs/resnet50/model=googlenet,aux_weight=0.3"
    assert str(default_workdir("configs/resnet50.py", {})) == "runs/resnet50"
    turned = dict(reversed(overrides.items()))
    assert default_workdir("configs/resnet50.py", turned) == default_workdir("configs/resnet50.py", overrides)


def test_values_in_the_name_of_a_workdir_are_short_and_unambiguous():
    def name(**overrides):
        folder = default_workdir("configs/resnet50.py", overrides)
        assert len(folder.parts) == 3 and len(folder.name) < 200 and not set(folder.name) & set(":/\\ '*")
        return folder.name

    assert name(crop_area=(0.25, 1.0)) == "crop_area=0.25+1.0"
    birds = [name(dataset=f"image_folder:{path}") for path in ("/data/birds", "/other/birds", "/data/bir ds")]
    assert birds[0].startswith("dataset=birds-") and len(set(birds)) == 3
    assert name(train_split="train[:80%]") != name(train_split="train[:90%]")
    assert name(train_split="a,seed=1").count(",") == 0
    long = [name(init_from="/" + 300 * "x" + end, train_split=200 * "y", eval_split=100 * "z") for end in "ab"]
    assert long[0] != long[1]


def test_a_run_of_an_earlier_version_is_found_under_its_old_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = {"seed": 1, "model": "googlenet", "aux_weight": (0.3, 0.4)}
    old = pathlib.Path("runs/resnet50,seed=1,model=googlenet,aux_weight=0.3,0.4")
    write_config(old, resolve(), ("a", "b"))
    assert default_workdir("configs/resnet50.py", overrides) == old
    new = default_workdir("configs/resnet50.py", overrides | {"seed": 2})
    assert str(new) == "runs/resnet50/model=googlenet,aux_weight=0.3+0.4,seed=2"


def test_a_workdir_belongs_to_one_config(tmp_path):
    write_config(tmp_path, resolve(), ("a", "b"))
    check_workdir(tmp_path, resolve())
    check_workdir(tmp_path, resolve(log_every_steps=7, prefetch_batches=5, steps_per_dispatch=3))
    with pytest.raises(ValueError, match=r"belongs to a run with learning_rate=0.05, not 0.1"):
        check_workdir(tmp_path, resolve(learning_rate=0.1))
    with pytest.raises(ValueError, match=r"belongs to a run with cache="):
        check_workdir(tmp_path, resolve(cache="device"))


def test_the_config_comes_back_whole(tmp_path):
    config = resolve(resnet50.get_config(), dataset_classes=1000, bn_virtual_batch_size=32)
    write_config(tmp_path, config, ("a",) * 1000)
    assert read_config(tmp_path).to_dict() == config.to_dict()
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["versions"]["jax"] and content["hardware"]["platform"] == "cpu"


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        check_workdir(tmp_path / "file" / "run", resolve())


HOLD = """
import pathlib, sys
from training.workdir import exclusive_run
with exclusive_run(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_run_in_a_workdir_and_a_lock_that_dies_with_its_process(tmp_path):
    root = pathlib.Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", HOLD, tmp_path / "run"]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        holder = f"in use by process {process.pid} on {socket.gethostname()}; wait for it"
        with pytest.raises(ValueError, match=holder), exclusive_run(tmp_path / "run"):
            pass
        with pytest.raises(ValueError, match=holder):
            check_not_in_use(tmp_path / "run")
        os.kill(process.pid, signal.SIGKILL)
    assert (tmp_path / "run" / ".lock").exists()
    check_not_in_use(tmp_path / "run")
    with exclusive_run(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "metrics.jsonl", "curves.png", "summary.json"])
def test_parts_of_the_wrong_kind_are_named(tmp_path, name):
    write_config(tmp_path, resolve(), ("a", "b"))
    (tmp_path / name).mkdir() if "." in name else (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=f"is damaged: .*{name} is no (file|folder); move it away"):
        check_workdir(tmp_path, resolve())


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    workdir = tmp_path / "run"
    for rows in ("", "{}\n"):
        write_config(workdir, resolve(), ("a", "b"))
        (workdir / "checkpoints").mkdir()
        (workdir / "metrics.jsonl").write_text(rows)
        discard_unstarted(workdir)
        assert workdir.exists() == bool(rows)
    (workdir / "metrics.jsonl").unlink()
    (workdir / "checkpoints" / "3").mkdir()
    discard_unstarted(workdir)
    assert (workdir / "checkpoints" / "3").exists()


def test_a_config_of_brackets_is_damaged(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is damaged"):
        read_config(tmp_path)


def test_a_device_or_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As for --csv=/dev/stdout, or a shell's >(command)."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", "whole ")
    with open_atomically(tmp_path / "pipe") as file:
        file.write("text")
    assert os.read(reader, 100) == b"whole text" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_a_file_that_is_not_finished_does_not_appear(tmp_path):
    (tmp_path / "rows.csv").write_text("old")
    with pytest.raises(KeyboardInterrupt), open_atomically(tmp_path / "rows.csv") as file:
        file.write("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"] and (tmp_path / "rows.csv").read_text() == "old"
