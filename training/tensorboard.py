"""TensorBoard's event files. Each row is written immediately, so that a killed run loses none."""

import pathlib

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class TensorBoard:
    """Writes scalars to a new event file in a folder.

    It replaces tensorboardX's SummaryWriter, whose thread writes scalars up to two minutes late.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        """Opens the file; TensorBoard then hides the events of earlier files from purge_step on.

        Raises:
          OSError: if the file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._writer.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self._writer.flush()

    def add(self, group: str, values: dict[str, float], step: int, wall_time: float) -> None:
        """Writes each value under the tag group/name.

        Args:
          group: the first part of the tags: train, validation, ...
          values: a dict from names to values.
          step: optimizer steps done.
          wall_time: seconds since the epoch.
        """
        for name, value in values.items():
            summary = scalar(f"{group}/{name}", value)
            self._writer.write_event(Event(wall_time=wall_time, step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
