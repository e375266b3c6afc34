"""The metrics of a run: TensorBoard's files, a run without matplotlib and tensorboardX, and a full disk."""

import builtins
import io
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event

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


def read_events(folder):
    """Returns the (step, tag, value) of the scalars in the event files of a folder, later files hiding what they redo.

    TensorBoard does the same: a session that starts at a step hides the events of earlier files from that step on.
    """
    events = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # a record: its length in 8 bytes, a checksum in 4, the data, a checksum in 4
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):
                events = [(step, tag, value) for step, tag, value in events if step < event.step]
            for value in event.summary.value:
                number = value.simple_value if value.HasField("simple_value") else None
                events.append((event.step, value.tag, number))
    return events


def test_tensorboard_has_one_chart_for_all_splits_epochs_and_the_options(tmp_path):
    config = base.get_config()
    config.update({"num_steps": 4, "batch_size": 8, "learning_rate": 0.3, "aux_weight": (0.3, 0.4)})
    sums = {"loss": 16.0, "accuracy_top1": 4.0, "accuracy_top5": 8.0, "examples": 8.0}
    with RunLog(tmp_path, config, num_images=16, start_step=0, typed=("learning_rate", "aux_weight")) as log:
        for step in (1, 2):
            log.training(step, sums, 0.3, 0.0)
        log.evaluation(2, "test", {"loss": 1.5, "accuracy_top1": 0.25, "accuracy_top5": 0.75})
    with RunLog(tmp_path, config, num_images=16, start_step=1) as log:  # the second step is done again
        log.training(2, sums | {"loss": 8.0}, 0.3, 0.0)
    train, test = (read_events(tmp_path / "tensorboard" / split) for split in ("train", "test"))
    assert [event for event in train if event[1] == "loss"] == [(1, "loss", 2.0), (2, "loss", 1.0)]
    assert (2, "loss", 1.5) in test and (2, "accuracy_top1", 0.25) in test
    over_epochs = read_events(tmp_path / "tensorboard" / "train" / "epochs")
    assert [event for event in over_epochs if event[1] == "epochs_x100/loss"] == [
        (50, "epochs_x100/loss", 2.0),
        (100, "epochs_x100/loss", 1.0),
    ]
    tags = {tag for _, tag, _ in test}
    assert {"options/text_summary", "_hparams_/session_start_info"} <= tags
    (file,) = (tmp_path / "tensorboard" / "test").glob("events*")
    content = file.read_bytes()
    assert b"| learning_rate | 0.3 |" in content and b"aux_weight" in content and b"0.3,0.4" in content


@pytest.mark.parametrize("victim", ["metrics.jsonl", "events.out", ".curves.png"])
def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_the_rows_before(tmp_path, monkeypatch, victim):
    """/dev/full replaces a file on a full disk."""
    config, metrics, open_file = base.get_config(), {"loss": 1.0, "accuracy_top1": 0.5, "accuracy_top5": 1.0}, open
    config.num_steps = 2

    def open_on_full_disk(path, mode="r", *arguments, **options):
        full = victim in str(path) and mode != "r"
        return open_file("/dev/full" if full else path, mode, *arguments, **options)

    (tmp_path / "curves.png").write_text("of an earlier start")
    name = "tensorboard" if victim == "events.out" else victim.removeprefix(".")
    with pytest.raises(OSError, match=rf"{name} cannot be written \([\d,]+ bytes\): No space left on device"):
        with RunLog(tmp_path, config, 64, 0) as log:
            log.evaluation(1, "test", metrics)
            for module in (builtins, io):
                monkeypatch.setattr(module, "open", open_on_full_disk)
            if victim == "events.out":
                log._tensorboard._writers["test"]._py_recordio_writer._writer = open_file("/dev/full", "wb")
            log.evaluation(2, "test", metrics)
    monkeypatch.undo()
    assert [row["step"] for row in read_rows(tmp_path)] == ([1, 2] if victim == ".curves.png" else [1])
    assert (tmp_path / "curves.png").read_text() == "of an earlier start"
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard", "curves.png"}
