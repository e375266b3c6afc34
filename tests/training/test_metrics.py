"""The metrics of a run without matplotlib and tensorboardX."""

import sys

import pytest

from configs import base
from training.metrics import RunLog, read_rows


def test_without_tensorboardx_and_matplotlib_the_rows_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "training.tensorboard", raising=False)
    for name in ("tensorboardX.event_file_writer", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # makes the import fail
    config = base.get_config()
    config.update({"num_steps": 2, "batch_size": 8})
    with RunLog(tmp_path, config, num_images=16, start_step=0) as log:
        log.evaluation(2, "test", {"loss": 1.5, "accuracy_top1": 0.25, "accuracy_top5": 0.75})
    log.farewell()
    assert [row["loss"] for row in read_rows(tmp_path)] == [pytest.approx(1.5)]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}
    output = capsys.readouterr().out
    assert "tensorboardX is not installed" in output and "matplotlib is not installed" in output
    assert f"{tmp_path}: metrics.jsonl\n" in output
