"""A run with size by epoch, repeated augmentation, LAMB and binary cross-entropy resumes to the bit."""

import json

import pytest
from interrupted import InterruptedAfter

import train
from configs import base
from training.state import make_mesh


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(1))
    config = base.get_config()
    config.update(
        {"batch_size": 16, "eval_batch_size": 16, "num_steps": 8, "log_every_steps": 3, "validation_share": 0.02}
    )
    config.update({"train_sizes": ((0, 28), (0.055, 32)), "repeated_augmentation": 3, "mixup_alpha": 0.2})
    config.update({"optimizer": "lamb", "loss": "binary_cross_entropy", "target_threshold": 0.2, "ema_decay": 0.9})
    config.update({"train_crop": "random_resized", "compilation_cache_dir": ""})
    return config


def test_interrupted_before_the_size_changes_and_resumed_it_ends_the_same_to_the_bit(config, tmp_path, capsys):
    for name, steps in (("whole", 10**6), ("cut", 4), ("cut", 10**6)):
        train.train(config, tmp_path / name, InterruptedAfter(steps))
    whole, cut = (
        json.loads((tmp_path / name / "checkpoints" / "8" / "checksums" / "metadata").read_text())
        for name in ("whole", "cut")
    )
    assert whole == cut
    assert sorted(int(path.name) for path in (tmp_path / "cut" / "checkpoints").glob("[0-9]*"))[0] < 6
    saved = json.loads((tmp_path / "cut" / "config.json").read_text())["config"]["train_sizes"]
    assert saved == [[0, 28], [0.055, 32]]
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all("total_loss" in row for row in rows if row["split"] == "train")
