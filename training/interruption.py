"""SIGINT and SIGTERM: noted when they come, acted on between two steps."""

import signal
from types import FrameType

from rich.console import Console


class Interruption:
    """A context in which the first SIGINT or SIGTERM is only noted; a second one acts as without us.

    Attributes:
      signal: the number of the signal that came, or None.
    """

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program: 130 after SIGINT, 143 after SIGTERM, 0 without a signal."""
        return 128 + self.signal if self.signal else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._previous[number])
        Console(stderr=True).print(f"{signal.Signals(number).name}: saving and stopping")
