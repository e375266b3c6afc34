"""The training loop makes no hidden copies: none to the devices, and copies from the devices only when it logs."""

import json

import jax
import numpy as np
import pytest

import train
from configs import base
from training import program
from training.interruption import Interruption


@pytest.fixture
def config():
    config = base.get_config()
    config.num_steps, config.log_every_steps, config.checkpoint_every_steps = 12, 4, 6
    config.compilation_cache_dir, config.log_gradient_norms = "", True
    return config


@pytest.mark.parametrize("cache", ["", "device", "sharded"])
def test_no_implicit_copy_in_the_whole_run(config, tmp_path, cache):
    """The guard raises an error on every implicit copy in any thread; on a CPU it only notices copies to the device."""
    config.cache = cache
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jax.jit(lambda x: x + 1)(np.ones(3))  # the guard works
        train.train(config, tmp_path / "run", Interruption())
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 12


class Watched:
    """An array on the devices that records when it is read."""

    def __init__(self, array, step, reads):
        self.array, self.step, self.reads = array, step, reads

    def block_until_ready(self):
        return self

    def __array__(self, *arguments, **options):
        self.reads.append(self.step)
        return np.asarray(self.array)

    def __float__(self):
        self.reads.append(self.step)
        return float(self.array)

    def __bool__(self):
        raise AssertionError("the loop branches on a value of the devices")


def test_metrics_are_read_when_they_are_logged_and_never_else(config, tmp_path, monkeypatch):
    reads, make_train_step = [], program.make_train_step

    def make_watched_step(*arguments):
        step = make_train_step(*arguments)

        def watched(state, sums, batch):
            number = next(numbers)
            plain = {name: value.array if isinstance(value, Watched) else value for name, value in sums.items()}
            state, sums = step(state, plain, batch)
            return state, {name: Watched(value, number, reads) for name, value in sums.items()}

        numbers = iter(range(1, 100))
        watched.trace = step.trace
        return watched

    monkeypatch.setattr(program, "make_train_step", make_watched_step)
    train.train(config, tmp_path / "run", Interruption())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(reads)) == [row["step"] for row in rows if row["split"] == "train"] == [4, 6, 8, 12]
    parts = "conv1", "conv3", "conv5", "dense6", "head"
    assert all(row["gradient_norm"] > row[f"gradient_norm/{part}"] > 0 for row in rows[:2] for part in parts)
