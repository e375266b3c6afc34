"""Checkpoints: which are kept, that they are restored, and that damage is always noticed."""

import gc
import json
import shutil
import signal
import sys
import types

import jax
import numpy as np
import pytest

import train
from configs import base
from training.checkpoints import Checkpoints
from training.interruption import Interruption
from training.metrics import RunLog, best_evaluation, is_evaluation, read_rows, write_summary
from training.state import make_mesh
from training.transfer import load_weights

pytestmark = pytest.mark.smoke


def make_state(step):
    random = np.random.RandomState(step)
    layers = {index: {"kernel": random.standard_normal((40, 50)).astype(np.float32)} for index in range(2)}
    return {"step": np.int32(step), "params": {"layers": layers}, "opt_state": (np.zeros(3, np.float32), ())}


@pytest.fixture
def target():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), make_state(0))


@pytest.fixture
def workdir(tmp_path):
    """Four checkpoints were saved; the second is the best."""
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, best in [(10, 10), (20, 20), (30, 20), (40, 20)]:
            checkpoints.save(make_state(step), best)
    return tmp_path


def assert_is(state, step):
    assert jax.tree.all(jax.tree.map(np.array_equal, state, make_state(step)))


def test_the_newest_and_the_best_are_kept(workdir, target):
    with Checkpoints(workdir, keep=2) as checkpoints:
        assert checkpoints.steps() == [20, 30, 40]
        assert_is(checkpoints.restore(target), 40)
        assert_is(checkpoints.restore(target, step=20), 20)
        checkpoints.save(make_state(50), best_step=20)
        checkpoints.save(make_state(60), best_step=20)
    assert Checkpoints(workdir, read_only=True).steps() == [20, 50, 60]


def test_without_the_best_an_evaluation_saves_nothing(tmp_path):
    config = base.get_config()
    config.update({"num_steps": 6, "evaluate_every_epochs": 0.1, "checkpoint_every_steps": 4, "keep_best": False})
    config.compilation_cache_dir = ""
    train.train(config, tmp_path, Interruption())
    assert [row["step"] for row in read_rows(tmp_path) if is_evaluation(row)] == [3, 5, 6]  # 22.45 steps an epoch
    assert Checkpoints(tmp_path, read_only=True).steps() == [4, 6]


def test_keys_that_are_numbers_stay_numbers(workdir, target):
    assert set(Checkpoints(workdir, read_only=True).restore(target)["params"]["layers"]) == {0, 1}


def test_there_is_none_yet(tmp_path, target):
    assert Checkpoints(tmp_path).restore(target) is None


def test_an_unknown_step_is_named(workdir, target):
    with pytest.raises(ValueError, match=r"no checkpoint of step 35 .* \[20, 30, 40\]"):
        Checkpoints(workdir, read_only=True).restore(target, step=35)


def test_what_is_not_finite_is_not_saved(workdir):
    state = make_state(50)
    state["params"]["layers"][1]["kernel"][3, 4] = np.nan
    with Checkpoints(workdir, keep=2) as checkpoints, pytest.raises(FloatingPointError, match="after step 50"):
        checkpoints.save(state)
    assert Checkpoints(workdir, read_only=True).steps() == [20, 30, 40]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", [flip_a_bit, truncate, lambda path: path.unlink()], ids=["bit", "truncated", "missing"]
)
@pytest.mark.parametrize(
    "victim", ["the largest file", "state/manifest.ocdbt", "state/_METADATA", "checksums/metadata"]
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_taken(workdir, target, capfd, victim, damage):
    newest = workdir / "checkpoints" / "40"
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    damage(largest if victim == "the largest file" else newest / victim)
    with Checkpoints(workdir, keep=2) as checkpoints:
        assert_is(checkpoints.restore(target), 30)
        assert checkpoints.steps() == [20, 30]
    assert "checkpoint 40" in capfd.readouterr().err
    assert (workdir / "damaged" / "40").is_dir()


def test_a_checkpoint_of_an_older_version_stored_its_metrics_too(workdir, target):
    path = workdir / "checkpoints" / "40" / "metrics" / "metrics"
    for content in ('{"accuracy_top1": 0.5}', "{", "[" * 100_000):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        with Checkpoints(workdir, keep=2) as checkpoints:
            assert_is(checkpoints.restore(target), 40)


def evaluate_at(log, step, accuracy):
    log.evaluation(step, "validation", {"loss": 1.0, "accuracy_top1": accuracy, "accuracy_top5": 1.0, "examples": 1})


def test_the_best_is_the_same_everywhere_even_if_it_was_evaluated_after_its_save(tmp_path):
    """A signal came before the evaluation of step 20: the step was saved without it, and the resumed run evaluates."""
    config = base.get_config()
    config.num_steps = 50
    with RunLog(tmp_path, config, 1000, 0) as log, Checkpoints(tmp_path) as checkpoints:
        evaluate_at(log, 10, 0.5)
        checkpoints.save(make_state(10), log.best_step)
        checkpoints.save(make_state(20), log.best_step)
    with RunLog(tmp_path, config, 1000, 20) as log, Checkpoints(tmp_path) as checkpoints:
        evaluate_at(log, 20, 0.9)
        for step, accuracy in [(30, 0.4), (40, 0.9), (50, 0.3)]:
            evaluate_at(log, step, accuracy if step != 40 else 0.8)
            checkpoints.save(make_state(step), log.best_step)
        summary = write_summary(tmp_path, config, log, 1, 1, 0)
    assert summary["best"]["step"] == 20 and Checkpoints(tmp_path, read_only=True).steps() == [20, 50]


def test_a_signal_before_the_best_evaluation_does_not_lose_its_checkpoint(tmp_path, monkeypatch):
    """After step 136 the learning rate is far too high, so the evaluation of step 135 is the best."""
    config = base.get_config()
    config.update({"num_steps": 200, "keep_checkpoints": 1, "evaluate_every_epochs": 3.0, "log_every_steps": 1000})
    config.update({"schedule": "step", "step_steps": (136,), "step_factor": 40.0, "learning_rate": 0.1})
    config.compilation_cache_dir = ""
    log_training = RunLog.training

    def log_and_interrupt(log, step, *arguments):
        log_training(log, step, *arguments)
        if step == 135:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, Interruption() as interruption:
        patch.setattr(RunLog, "training", log_and_interrupt)
        train.train(config, tmp_path, interruption)
    assert interruption.exit_code == 143
    assert [row["step"] for row in read_rows(tmp_path) if is_evaluation(row)] == [68]
    train.train(config, tmp_path, Interruption())
    best = best_evaluation(read_rows(tmp_path))
    assert best["step"] == 135 and best["accuracy_top1"] > 0.7
    assert json.loads((tmp_path / "summary.json").read_text())["best"]["step"] == 135
    assert Checkpoints(tmp_path, read_only=True).steps() == [135, 200]
    assert load_weights(tmp_path, make_mesh(1), "best")[-1] == 135


def test_a_best_that_is_gone_is_an_error(tmp_path):
    config = base.get_config()
    config.update({"num_steps": 4, "evaluate_every_epochs": 0.1, "compilation_cache_dir": ""})
    train.train(config, tmp_path, Interruption())
    best = best_evaluation(read_rows(tmp_path))["step"]
    assert load_weights(tmp_path, make_mesh(1), "best")[-1] == best
    shutil.rmtree(tmp_path / "checkpoints" / str(best))
    with pytest.raises(ValueError, match=f"best evaluation of .* is that of step {best}, whose checkpoint is gone"):
        load_weights(tmp_path, make_mesh(1), "best")


def test_reading_changes_nothing(workdir, target):
    flip_a_bit(workdir / "checkpoints" / "40" / "checksums" / "metadata")
    before = sorted(workdir.rglob("*"))
    assert_is(Checkpoints(workdir, read_only=True).restore(target), 30)
    assert sorted(workdir.rglob("*")) == before


def test_the_reads_that_orbax_abandons_print_nothing(workdir, target, monkeypatch):
    """One array is damaged, and the coroutine that reads another one raises an error when it is destroyed."""
    printed, checkpoints = [], Checkpoints(workdir, read_only=True)
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: printed.append(problem.exc_value))

    def abandon_a_read(*_):
        @types.coroutine
        def suspended():
            yield

        async def read():
            try:
                await suspended()
            except GeneratorExit as ended:
                raise RuntimeError("many lines") from ended

        cycle = [read()]
        cycle.append(cycle)  # only the garbage collector destroys it
        cycle[0].send(None)
        raise ValueError("the array is damaged")

    monkeypatch.setattr(checkpoints, "_read", abandon_a_read)
    with pytest.raises(ValueError, match="the array is damaged"):
        checkpoints.restore(target)
    gc.collect()
    assert printed == []


def test_all_are_damaged(workdir, target, capfd):
    for step in (20, 30, 40):
        (workdir / "checkpoints" / str(step) / "checksums" / "metadata").unlink()
    for _ in range(2):  # a checkpoint may be intact on a disk that is missing, so it is not moved
        with Checkpoints(workdir) as checkpoints, pytest.raises(ValueError, match="no sound checkpoint is left"):
            checkpoints.restore(target)
    assert not (workdir / "damaged").exists() and capfd.readouterr().err == ""
