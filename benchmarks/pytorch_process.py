"""PyTorch in its own process, for benchmarks that run under a Python without torch."""

import json
import pathlib
import subprocess
from typing import Any


class PyTorchProcess:
    """A worker of this folder, which answers each line on its standard input with a line of JSON.

    Attributes:
      about: the worker's first line, which describes PyTorch and the device.
    """

    def __init__(self, python: str, worker: str, *arguments: Any):
        """Starts the worker, a file of this folder, under a Python that has torch."""
        words = [python, "-W", "ignore", pathlib.Path(__file__).parent / worker, *arguments]
        self._python = python
        self._process = subprocess.Popen(
            list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def seconds(self, question: str) -> float:
        """Returns the seconds of what a line asks for; raises RuntimeError with PyTorch's message if it fails."""
        print(question, file=self._process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._python} ended; it must have torch, torchvision and timm: --torch_python")
        return json.loads(line)
