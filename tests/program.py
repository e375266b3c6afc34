"""Runs a program as a user does: a process with its own output, environment, memory and exit code.

The process is a fork of a server that has imported the libraries, but has not started JAX. That saves seconds.
"""

import importlib.metadata
import itertools
import multiprocessing
import os
import pathlib
import re
import resource
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 300  # seconds
# These flags take two thirds off the time of compiling; the tests compile a lot and compute little.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions have no such flag
    COMPILE_QUICKLY += " --xla_cpu_use_fusion_emitters=false"

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["training.metrics", "training.tensorboard", "training.program", "training.checkpoints", "training.transfer"]
    + ["training.conversion", "training.prediction", "training.evaluation", "training.command_line"]
    + ["input_pipeline.preparation", "matplotlib.figure", "analysis.tables"]
)
_OUTPUTS = tempfile.TemporaryDirectory()
_NUMBERS = itertools.count()


class Program:
    """A process of one of the programs, with its output in files."""

    def __init__(
        self,
        program: str,
        *arguments: object,
        cwd: pathlib.Path = ROOT,
        imports: bool = False,
        file_limit: int = 0,
        **variables: str,
    ):
        """Starts the program.

        Args:
          program: such as train.py.
          arguments: its flags.
          cwd: the folder that it starts in.
          imports: start Python anew, so that the process imports the libraries itself.
          file_limit: the most bytes of a file that the process may write; 0: no limit.
          variables: environment variables.
        """
        self._folder = pathlib.Path(_OUTPUTS.name) / str(next(_NUMBERS))
        self._folder.mkdir()
        # One device: other tests use eight virtual devices, which each of these processes would have to start.
        variables = {"XLA_FLAGS": COMPILE_QUICKLY, "JAX_PLATFORMS": "cpu"} | variables
        words = list(map(str, arguments))
        self.process = _PROCESSES.Process(
            target=_main, args=(program, words, self._folder, cwd, imports, file_limit, variables)
        )
        self.process.start()

    def reaches(self, happened: Callable[[], object]) -> bool:
        """Waits until something has happened; returns False if the process ended, or hung, before that."""
        end = time.monotonic() + TIMEOUT
        while not happened():
            if not self.process.is_alive() or time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def prints(self, pattern: str) -> bool:
        """Waits for a line; returns False if the process ended before it."""
        return self.reaches(lambda: re.search(pattern, self.output))

    def end(self, number: int | None = None) -> int | None:
        """Sends a signal, if one is given, and waits; returns the exit code, or None if the process hung."""
        if number and self.process.is_alive():
            os.kill(self.process.pid, number)
        self.process.join(TIMEOUT)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        return code

    @property
    def output(self) -> str:
        """What the process wrote to stdout so far."""
        return self._read("stdout")

    @property
    def errors(self) -> str:
        """What the process wrote to stderr so far."""
        return self._read("stderr")

    @property
    def peak_memory(self) -> int:
        """The most memory that the process had, bytes; 0 if it was killed."""
        return int(self._read("peak") or 0)

    def _read(self, name: str) -> str:
        path = self._folder / name
        return path.read_text(errors="surrogateescape") if path.exists() else ""


def run(program: str, *arguments: object, exit_code: int = 0, **how: Any) -> str:
    """Returns what a program prints, or what it writes to stderr if it is to end with an exit code other than 0."""
    process = Program(program, *arguments, **{"COLUMNS": "120"} | how)
    assert process.end() == exit_code, process.output + process.errors
    return process.output if exit_code == 0 else process.errors


def _main(
    program: str,
    arguments: list[str],
    folder: pathlib.Path,
    cwd: pathlib.Path,
    imports: bool,
    file_limit: int,
    variables: dict[str, str],
) -> None:
    """The new process: connects its output to files, and becomes the program."""
    os.chdir(cwd)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(variables)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = str(ROOT / program)
    sys.argv = [path, *arguments]
    if imports:
        os.execv(sys.executable, [sys.executable, *sys.argv])
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        (folder / "peak").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
