"""SIGINT and SIGTERM: noted when they come, acted on between two steps."""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console


class Interruption:
    """A context in which the first SIGINT or SIGTERM is only noted; a second one acts as without us.

    It is true once the run is to stop: as soon as a signal has come, or, where several processes work together, once
    they have agreed that one came to any of them.

    Attributes:
      signal: the number of the signal that the run stops for, or None.
    """

    def __init__(self):
        self.signal: int | None = None
        self._noted = 0

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

    def agree(self) -> None:
        """Tells every process of a signal that came to any; all of them call it after the same step."""
        if jax.distributed.is_initialized():
            self.signal = int(multihost_utils.process_allgather(np.int32(self._noted)).max()) or None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        if not jax.distributed.is_initialized():
            self.signal = number
        signal.signal(number, self._previous[signal.Signals(number)])
        Console(stderr=True).print(f"{signal.Signals(number).name}: saving and stopping")
