"""TensorBoard's event files. Each row is written immediately, so that a killed run loses none.

Each split has its own folder, and TensorBoard draws the curves of a tag in all folders into one chart: `loss` has the
training and the evaluation. Their x axis is the optimizer step. The same curves over the epochs have the tags
`epochs_x100/loss` and so on, because TensorBoard's x axis takes whole numbers only: x is 100 times the epoch.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import hparams, scalar, text

from configs._option import text_of

HUNDREDTHS = 100


class TensorBoard:
    """Writes rows of metrics to new event files in a folder.

    It replaces tensorboardX's SummaryWriter, whose thread writes scalars up to two minutes late.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        start_step: int,
        start_epoch: float,
        options: Mapping[str, Any],
        typed: Mapping[str, Any],
    ):
        """Remembers where the run resumes: TensorBoard then hides what earlier files have after that.

        Args:
          folder: of the event files.
          start_step: the step of the checkpoint from which the run resumes, or 0.
          start_epoch: the same in epochs.
          options: all options; shown as text.
          typed: the options of the command line; shown as hyperparameters.

        Raises:
          OSError: if the folder cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._start_step = folder, start_step
        self._start_hundredth = round(HUNDREDTHS * start_epoch)
        self._options, self._typed = options, typed
        self._writers: dict[str, EventsWriter] = {}

    def add(self, split: str, values: dict[str, float], step: int, epoch: float, wall_time: float) -> None:
        """Writes each value under the tag of its name, over the steps and over the epochs.

        Args:
          split: the folder of the curves: train, validation, ...
          values: a dict from names to values.
          step: optimizer steps done.
          epoch: epochs done.
          wall_time: seconds since the epoch of Unix.

        Raises:
          OSError: if a file cannot be written.
        """
        over_steps = self._writer(split, self._start_step)
        over_epochs = self._writer(f"{split}/epochs", self._start_hundredth)
        for name, value in values.items():
            over_steps.write_event(Event(wall_time=wall_time, step=step, summary=scalar(name, value)))
            summary = scalar(f"epochs_x{HUNDREDTHS}/{name}", value)
            over_epochs.write_event(Event(wall_time=wall_time, step=round(HUNDREDTHS * epoch), summary=summary))
        over_steps.flush()
        over_epochs.flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, name: str, start: int) -> EventsWriter:
        """Returns the writer of a folder; a new one hides the events of earlier files after the start."""
        if name not in self._writers:
            folder = self._folder / name
            folder.mkdir(parents=True, exist_ok=True)
            # The name has the second; the nanoseconds keep a file of the same second from being overwritten.
            suffix = f".{time.time_ns() % 10**9:09}"
            writer = self._writers[name] = EventsWriter(str(folder / "events"), suffix)
            writer.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))
            if not self._start_step and "/" not in name:
                self._describe(writer)
            writer.flush()
        return self._writers[name]

    def _describe(self, writer: EventsWriter) -> None:
        """Writes the options as a table, and those that were typed as hyperparameters."""
        rows = (f"| {name} | {text_of(value)} |" for name, value in self._options.items())
        table = "\n".join(["| option | value |", "|---|---|", *rows])
        writer.write_event(Event(step=0, summary=text("options", table)))
        if self._typed:
            plain = {n: v if isinstance(v, (bool, int, float, str)) else text_of(v) for n, v in self._typed.items()}
            for summary in hparams(plain, dict.fromkeys(("loss", "accuracy_top1"))):
                writer.write_event(Event(step=0, summary=summary))
