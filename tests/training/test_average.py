"""The average of the weights in a whole run: in a short run it is nearly as accurate as the weights themselves."""

import json

import jax
import pytest

import train
from configs import base
from training.checkpoints import Checkpoints
from training.interruption import Interruption
from training.metrics import is_evaluation, read_rows
from training.program import make_program
from training.state import make_mesh
from training.transfer import load_weights


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(1))
    config = base.get_config()
    config.update({"model": "resnet20", "image_size": 8, "crop_padding": 1, "compilation_cache_dir": ""})
    return config


@pytest.mark.slow
def test_a_short_run_with_a_long_average(config, tmp_path, capsys):
    config.update({"num_steps": 240, "ema_decay": 0.9999, "evaluate_every_epochs": 0.0})
    train.train(config, tmp_path / "run", Interruption())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy_top1_raw"] > 0.9
    assert summary["accuracy_top1"] >= summary["accuracy_top1_raw"] - 0.02
    row = next(row for row in read_rows(tmp_path / "run") if is_evaluation(row))
    assert row["accuracy_top1"] == summary["accuracy_top1"] and row["loss_raw"] == summary["loss_raw"]
    assert f"without averaging top-1 {100 * summary['accuracy_top1_raw']:.2f} %" in capsys.readouterr().out


def test_a_checkpoint_without_averaged_statistics_starts_their_average(config, tmp_path):
    """Older versions averaged only the weights, and evaluated them with the running statistics."""
    config.update({"num_steps": 2, "ema_decay": 0.9})
    train.train(config, tmp_path / "run", Interruption())
    resolved, *_ = load_weights(tmp_path / "run", make_mesh(1))
    program = make_program(resolved, make_mesh(1), steps_per_epoch=1)
    state = Checkpoints(tmp_path / "run", read_only=True).restore(program.target)
    del state["ema_batch_stats"]
    with Checkpoints(tmp_path / "old") as checkpoints:
        checkpoints.save(state)
    restored = Checkpoints(tmp_path / "old", read_only=True).restore(program.target)
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail(), restored["ema_batch_stats"], state["batch_stats"])
