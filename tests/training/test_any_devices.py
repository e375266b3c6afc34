"""A run that goes from eight devices to two, in the middle of an epoch, has the metrics of a run on one device."""

import pytest
from interrupted import InterruptedAfter

import train
from configs import base
from training.metrics import read_rows
from training.state import make_mesh

OPTIONS = {
    "dataset": "synthetic",
    "synthetic_examples": 17,  # an odd number, and less than a batch: epochs end within batches
    "num_classes": 10,
    "batch_size": 32,
    "num_steps": 8,
    "log_every_steps": 1,
    "evaluate_every_epochs": 4.0,
    "learning_rate": 1e-3,
    "compilation_cache_dir": "",
    "dropout_rate": 0.5,
    "random_flip": True,
    "random_erasing": 0.5,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "accumulation_steps": 2,
    "ema_decay": 0.9,
}


@pytest.mark.parametrize("cache", ["", pytest.param("sharded", marks=pytest.mark.slow)])
def test_metrics_do_not_depend_on_the_devices(tmp_path, monkeypatch, cache):
    def run(name, devices, steps):
        config = base.get_config()
        config.update(OPTIONS | {"cache": cache, "shard_params": devices > 1})
        monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(devices))
        train.train(config, tmp_path / name, InterruptedAfter(steps))

    run("one", 1, 10**6)
    run("several", 8, 6)
    stopped = read_rows(tmp_path / "several")[-1]["step"]
    assert 0 < stopped < 8 and stopped * 32 % 17  # in the middle of an epoch
    run("several", 2, 10**6)
    expected, found = read_rows(tmp_path / "one"), read_rows(tmp_path / "several")
    names = ("step", "split", "loss", "total_loss", "accuracy_top1", "accuracy_top5", "examples")
    assert [row["examples"] for row in found if row["split"] != "train"] == [17] * 4
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs.keys() & set(names):
            assert ours[name] == (pytest.approx(theirs[name], rel=1e-5) if name != "split" else theirs[name]), name
