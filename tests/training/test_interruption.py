"""The first signal is noted, the second one ends the program; Ctrl-C during the imports prints nothing."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from training.interruption import Interruption

ROOT = pathlib.Path(__file__).parent.parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SecondSignalError(Exception):
    """Raised by the handlers that were set before the Interruption."""


@pytest.fixture
def handlers_before(monkeypatch):
    def end(number, frame):
        raise SecondSignalError(number)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_the_program_whichever_it_is(handlers_before, capfd, first, second):
    with Interruption() as interruption:
        assert not interruption and interruption.exit_code == 0
        signal.raise_signal(first)
        assert interruption and interruption.exit_code == 128 + first
        with pytest.raises(SecondSignalError, match=str(int(second))):
            signal.raise_signal(second)
    assert capfd.readouterr().err == f"{first.name}: saving and stopping\n"


@pytest.mark.parametrize("program", sorted(path.name for path in ROOT.glob("*.py")))
def test_ctrl_c_during_the_imports_prints_nothing(program, tmp_path):
    """A package that sends the signal takes the place of absl, which every program imports."""
    (tmp_path / "absl.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "jax.py").write_text("import absl\n")
    code = "import runpy, sys; sys.argv = [sys.argv[1]]; runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.run(
        [sys.executable, "-c", code, ROOT / program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, "", "")
