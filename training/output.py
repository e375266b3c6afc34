"""What the programs print. A program goes on if a message cannot be printed, and ends if a result cannot be."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def messages(stream: IO[str] | None = None) -> Iterator[None]:
    """Lets the program go on when a message cannot be printed, at a closed pipe or a full disk; it prints no more then.

    Args:
      stream: what the messages are printed to; default: standard output.
    """
    try:
        yield
    except (OSError, SystemExit):  # Rich leaves the program when a pipe is closed
        _discard(stream or sys.stdout)


@contextlib.contextmanager
def results() -> Iterator[None]:
    """Writes to standard output what the user asked for.

    If the reader of a pipe has seen enough, as head does, nothing more is printed. If the results cannot be written for
    another reason, as on a full disk, the program ends with one line and exit code 4.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        from training.processes import end_process  # imports JAX, which --help and the lists do not wait for

        _discard(sys.stdout)  # otherwise Python would try to write the rest when it ends
        end_process(f"the result cannot be written: {error}", 4)


def _discard(stream: IO[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
