"""What the programs share on the command line: flags, one-line errors, exit codes."""

import contextlib
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
from absl import app, flags, logging

from configs import base
from training.configuration import nearest_name


def run(
    main: Callable[..., int | None], default_config: pathlib.Path | None = None, argument: str | None = None
) -> None:
    """Parses the flags, calls main and exits with what it returns; bad flags are one line and exit code 2.

    Args:
      main: the program.
      default_config: the recipe where no --config names one.
      argument: what the program's one argument besides the flags is called, if it takes one; main is called with it.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax and JAX tell every step they take
    try:
        parse = functools.partial(_parse, default_config=default_config, argument=argument)
        app.run(lambda argv: sys.exit(main(*argv[1:])), flags_parser=parse)
    except KeyboardInterrupt:
        sys.exit(130)  # a second SIGINT, or one before there was anything to save


def say(text: str) -> None:
    """Prints a text at once; where it goes into a pipe that is closed, nothing ends and the rest goes nowhere."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def refusing_bad_input() -> Iterator[None]:
    """Turns an error of the user's config or data into one line on standard error and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Ends the program with one line and exit code 2: the user's flags, config or data will not do."""
    _end(message, 2)


def fail(message: str) -> NoReturn:
    """Ends the program with one line and exit code 3: training failed."""
    _end(message, 3)


def step(value: str | None) -> int | str | None:
    """Returns the value of a --step flag: a number, "best", or None for the newest.

    Raises:
      ValueError: if it is none of these.
    """
    if value in (None, "best"):
        return value
    if not value.isdecimal():
        raise ValueError(f"--step={value} is no checkpoint; give a number, or best")
    return int(value)


def _end(message: str, exit_code: int) -> NoReturn:
    print(f"{pathlib.Path(sys.argv[0]).name}: error: {' '.join(message.split())}", file=sys.stderr)
    if jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(exit_code)  # an orderly end would wait for the other processes, which may wait for this one
    sys.exit(exit_code)


def _parse(argv: list[str], default_config: pathlib.Path | None, argument: str | None) -> list[str]:
    """Parses the flags as absl does, but says what is wrong in one line, with the nearest name."""
    if default_config and not any(re.match("--?config(=|$)", word) for word in argv):
        argv = [argv[0], f"--config={default_config}", *argv[1:]]
    words = [word.lstrip("-") for word in _joined(argv) if word.startswith("-")]
    for word in words:
        if word.startswith("config=") and not pathlib.Path(word.removeprefix("config=")).is_file():
            _refuse_config_file(pathlib.Path(word.removeprefix("config=")))
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        if not any(word.startswith("config=") for word in words) and "config" in str(error):
            refuse("--config is missing; give a recipe before its options, as in --config=configs/lenet5_digits.py")
        refuse(str(error))
    except (AttributeError, KeyError):
        known = list(base.get_config())
        typed = [word.split("=")[0].removeprefix("config.") for word in words if word.startswith("config.")]
        unknown = next((name for name in typed if name not in known), None)
        if unknown is None:
            raise
        refuse(f"option --config.{unknown} does not exist{nearest_name(unknown, known) or '; see configs/base.py'}")
    taken = 2 if argument else 1
    if len(rest) > taken:
        refuse(f"{rest[taken]!r} is no flag; every option begins with --")
    if len(rest) < taken:
        refuse(f"{argument} is missing; see --help")
    return rest


def _joined(argv: list[str]) -> list[str]:
    """Returns the words with `--config FILE` as `--config=FILE`."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    return [f"{word}={following}" if word in ("-config", "--config") else word for word, following in pairs]


def _refuse_config_file(path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).parent.parent
    here = "" if root == pathlib.Path.cwd() else f"{root}/"
    recipes = [f"{here}configs/{recipe.name}" for recipe in (root / "configs").glob("*.py")]
    refuse(f"config file {path} does not exist{nearest_name(f'{here}configs/{path.stem}.py', recipes)}")
