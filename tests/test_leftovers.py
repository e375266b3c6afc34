"""However a run ends, it leaves no threads, processes or shared memory; and it reports images that it left out."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import threading

import numpy as np
import pytest
from PIL import Image

import train
from configs import base
from training.interruption import Interruption


def small_config():
    config = base.get_config()
    config.num_steps, config.log_every_steps, config.compilation_cache_dir = 6, 2, ""
    return config


def child_processes():
    return {child for file in pathlib.Path("/proc/self/task").glob("*/children") for child in file.read_text().split()}


def shared_memory():
    return {path.name for path in pathlib.Path("/dev/shm").glob("*")}


ERRORS = {
    "a loader's error": (RuntimeError, "a bug in a loader's thread"),
    "no folder for a checkpoint": (OSError, "the checkpoint of step 6 .* cannot be written .*: Read-only file system"),
    "the workdir vanishes": (OSError, "metrics.jsonl cannot be written .*: No such file or directory"),
}


@pytest.mark.parametrize("ending", ["done", "SIGTERM", *ERRORS])
def test_no_threads_processes_or_shared_memory_are_left(ending, tmp_path, monkeypatch):
    threads, children, memory = set(threading.enumerate()), child_processes(), shared_memory()
    load_dataset, mkdir = train.input_pipeline.load_dataset, os.mkdir

    def refusing_mkdir(path, *arguments, **options):
        if "orbax" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *arguments, **options)

    if ending == "no folder for a checkpoint":
        monkeypatch.setattr(os, "mkdir", refusing_mkdir)

    def load_failing_dataset(config, split):
        dataset = load_dataset(config, split)

        def read(record):
            number = next(reads)
            if ending == "SIGTERM" and number == 200:
                signal.raise_signal(signal.SIGTERM)
            if ending == "a loader's error" and number > 200:
                raise RuntimeError("a bug in a loader's thread")
            if ending == "the workdir vanishes" and number == 200:
                shutil.rmtree(tmp_path / "run")
            return dataset.read(record)

        reads = iter(range(10**9))
        return dataclasses.replace(dataset, read=read)

    monkeypatch.setattr(train.input_pipeline, "load_dataset", load_failing_dataset)
    with Interruption() as interruption:
        if ending in ERRORS:
            kind, message = ERRORS[ending]
            with pytest.raises(kind, match=message):
                train.train(small_config(), tmp_path / "run", interruption)
        else:
            train.train(small_config(), tmp_path / "run", interruption)
    assert interruption.exit_code == (143 if ending == "SIGTERM" else 0)
    assert (tmp_path / "run" / "summary.json").exists() == (ending == "done")
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)  # Grain's end by themselves
        assert not thread.is_alive(), thread
    assert child_processes() <= children and shared_memory() <= memory


def test_images_that_were_left_out_are_counted(tmp_path, capsys):
    for number in range(24):
        split = "train" if number < 16 else "val"
        path = tmp_path / "images" / split / f"class{number % 2}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(path)
        if number in (3, 5, 20):
            path.write_bytes(path.read_bytes()[:-100])
    config = small_config()
    config.dataset, config.batch_size, config.on_bad_image = f"image_folder:{tmp_path / 'images'}", 8, "skip"
    train.train(config, tmp_path / "run", Interruption())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bad_images"] == 2 and summary["examples"] == 7
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert sorted(line.split("file ")[1].split(":")[0][-6:] for line in said) == ["03.jpg", "05.jpg", "20.jpg"]
