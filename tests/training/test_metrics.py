"""The metrics of a run without matplotlib and tensorboardX, and on a full disk."""

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
    """Returns tag and step of every scalar in TensorBoard's files: records of length, checksum, event, checksum."""
    scalars = []
    for path in folder.iterdir():
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            scalars += [(value.tag, event.step) for value in event.summary.value]
            content = content[16 + length :]
    return scalars


def test_a_killed_run_leaves_no_row_out_of_tensorboard(tmp_path):
    """The log is read before it is closed: a killed process leaves the same files."""
    config, metrics = base.get_config(), {"loss": 1.0, "accuracy_top1": 0.5, "accuracy_top5": 1.0}
    config.num_steps = 9
    log = RunLog(tmp_path, config, 64, 0)
    for step in (1, 2, 3):
        log.evaluation(step, "test", metrics)
        rows = [(f"test/{name}", row["step"]) for row in read_rows(tmp_path) for name in metrics]
        assert len(rows) == 3 * step and read_events(tmp_path / "tensorboard") == rows


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
                log._tensorboard._writer._py_recordio_writer._writer = open_file("/dev/full", "wb")
            log.evaluation(2, "test", metrics)
    monkeypatch.undo()
    assert [row["step"] for row in read_rows(tmp_path)] == ([1, 2] if victim == ".curves.png" else [1])
    assert (tmp_path / "curves.png").read_text() == "of an earlier start"
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard", "curves.png"}
