"""TensorBoard's files, written at once: what metrics.jsonl has, they have too, even after a kill."""

import pathlib

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class TensorBoard:
    """Writes scalars to a new event file of a folder.

    tensorboardX's SummaryWriter would hand them to a thread, which writes them up to two minutes later.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        """Opens the file; TensorBoard then hides what earlier files hold from purge_step on.

        Raises:
          OSError: if it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._writer.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self._writer.flush()

    def add(self, group: str, values: dict[str, float], step: int, wall_time: float) -> None:
        """Writes values under the tags group/name.

        Args:
          group: of the tags: train, validation, ...
          values: by name.
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
