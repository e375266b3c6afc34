"""Runs the commands of docs/tour.md and puts their outputs below them: python benchmarks/tour.py [--only=WORD].

A block ```console of the page has lines that begin with "$ ", each a command, and below it what it printed. The program
runs the commands in the order of the page, in the folder of the repository, and replaces what is below them. The
pictures of the page are written by the same commands. On two cores it takes less than an hour.

Outputs are kept in runs/tour/outputs.json as soon as a command ends, so that the same command continues after a stop,
and runs only what is new or changed on the page. --page=README.md does the same for the README, whose runs are in
runs/readme. `make tour` does both. To run all again, remove the folders runs/tour and runs/readme.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from absl import flags

from training import command_line
from training.metrics import format_seconds
from training.workdir import write_atomically

OUTPUTS = ROOT / "runs" / "tour" / "outputs.json"

_PAGE = flags.DEFINE(command_line.PATH, "page", str(ROOT / "docs" / "tour.md"), "The page.")
_ONLY = flags.DEFINE_string("only", None, "Run again only the commands that contain this text, even if they are done.")


class Part(NamedTuple):
    """Consecutive lines of a page.

    Attributes:
      kind: command, output (of the command before it; it may be empty) or text.
      lines: of the page; those of a command begin with "$ ".
    """

    kind: str
    lines: list[str]

    @property
    def command(self) -> str:
        """The command, as a shell takes it."""
        return "\n".join(self.lines).removeprefix("$ ")


def main() -> int:
    """Runs the program; returns 1 if a command failed."""
    page = pathlib.Path(_PAGE.value)
    with command_line.refusing_bad_input():
        if not any(part.kind == "command" for part in split(page.read_text())):
            raise ValueError(f"--page={page} has no block ```console with a command")
    return update(page, _ONLY.value)


def update(page: pathlib.Path, only: str | None = None) -> int:
    """Runs the commands of a page that have no output yet, and writes all outputs into it.

    Args:
      page: in Markdown.
      only: if given, the commands that contain it are run, and no others.

    Returns:
      0, or 1 if a command failed; those after it are not run.
    """
    outputs = json.loads(OUTPUTS.read_text()) if OUTPUTS.exists() else {}
    OUTPUTS.parent.mkdir(parents=True, exist_ok=True)
    commands = [part.command for part in split(page.read_text()) if part.kind == "command"]
    for command in commands:
        if command in outputs if only is None else only not in command:
            continue
        command_line.say(f"$ {command}")
        start = time.monotonic()
        try:
            outputs[command] = run(command)
        except subprocess.CalledProcessError as error:
            print(f"{error.stdout}\nexit code {error.returncode} of: {command}", file=sys.stderr)
            return 1
        command_line.say(f"{outputs[command]}\n({format_seconds(time.monotonic() - start)})\n")
        write_atomically(OUTPUTS, json.dumps(outputs, indent=2) + "\n")
        write_atomically(page, with_outputs(page.read_text(), outputs))
    write_atomically(page, with_outputs(page.read_text(), outputs))
    command_line.say(
        f"{page} has the outputs of its {len(commands)} commands; to run all again: rm -r runs/tour runs/readme"
    )
    return 0


def run(command: str) -> str:
    """Returns what a command prints, run in the folder of the repository by this process's Python.

    Raises:
      subprocess.CalledProcessError: if it fails, or any program of a pipe does.
    """
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = ["bash", "-o", "pipefail", "-c", command]
    result = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout.rstrip()


def split(page: str) -> list[Part]:
    """Returns the parts of a page in Markdown, in order.

    A command goes on in the next line after a backslash, and after <<'END' as far as the line END.

    >>> split("See:\\n```console\\n$ echo a\\na\\n```\\n")[1:3]
    [Part(kind='command', lines=['$ echo a']), Part(kind='output', lines=['a'])]
    """
    parts, inside, goes_on = [Part("text", [])], False, False
    for line in page.removesuffix("\n").split("\n"):
        if goes_on:
            parts[-1].lines.append(line)
            goes_on = line != "END" if "<<'END'" in parts[-1].lines[0] else line.endswith("\\")
            parts += [] if goes_on else [Part("output", [])]
        elif inside and line.startswith("$ "):
            parts.append(Part("command", [line]))
            goes_on = line.endswith("\\") or "<<'END'" in line
            parts += [] if goes_on else [Part("output", [])]
        elif inside and line == "```":
            inside = False
            parts.append(Part("text", [line]))
        else:
            inside = inside or bool(re.match("```console", line))
            parts[-1].lines.append(line)
    return parts


def with_outputs(page: str, outputs: Mapping[str, str]) -> str:
    """Returns the page with the outputs of commands in the place of the lines below them."""
    lines, command = [], ""
    for part in split(page):
        known = part.kind == "output" and command in outputs
        lines += outputs[command].splitlines() if known else part.lines
        command = part.command if part.kind == "command" else ""
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command_line.run(main)
