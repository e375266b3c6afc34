"""SIGINT and SIGTERM: the handler only notes the signal, and the training loop stops between two steps."""

import contextlib
import os
import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

STANDARD_ERROR = 2  # its file descriptor


class Interruption:
    """A context in which the first SIGINT or SIGTERM is only noted; a second signal ends the program.

    The object is true once the run must stop. With one process that is as soon as it receives a signal; with several
    processes it is once `agree` has told all of them that one received a signal.

    Attributes:
      signal: the number of the signal for which the run stops, or None.
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
        """The exit code by the shell's convention: 130 after SIGINT, 143 after SIGTERM, 0 without a signal."""
        return 128 + self.signal if self.signal else 0

    def stop(self) -> None:
        """Makes the run stop as after a SIGTERM; another thread of the program may call it."""
        self._noted = signal.SIGTERM
        if not jax.distributed.is_initialized():
            self.signal = self._noted

    def agree(self) -> None:
        """Tells every process whether any process received a signal; all of them must call it after the same step."""
        if jax.distributed.is_initialized():
            self.signal = int(multihost_utils.process_allgather(np.int32(self._noted)).max()) or None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        if not jax.distributed.is_initialized():
            self.signal = number
        for handled, handler in self._previous.items():
            signal.signal(handled, handler)
        with contextlib.suppress(OSError):  # standard error may be a closed pipe
            # print would fail if the signal came in the middle of another print.
            os.write(STANDARD_ERROR, f"{signal.Signals(number).name}: saving and stopping\n".encode())
