"""The command line of all programs: flags, one-line errors and exit codes."""

import ast
import contextlib
import difflib
import functools
import pathlib
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import models
from configs import base
from configs._option import nearest_name
from configs._other_names import OTHER_NAMES
from input_pipeline.files import is_remote, local_path, printable
from input_pipeline.remote import check_url
from training import configuration, lists
from training.output import messages
from training.platform import out_of_memory, prepare_process
from training.processes import end_process, is_lost_connection, is_one_of_several, leave_processes

ROOT = pathlib.Path(__file__).parent.parent


def run(
    main: Callable[..., int | None], default_config: pathlib.Path | None = None, argument: str | None = None
) -> None:
    """Parses the flags, calls main and exits with its exit code; for bad flags, prints one line and exits with code 2.

    Args:
      main: the program.
      default_config: the recipe if --config is not given.
      argument: the name of the program's positional argument, which main is called with; "NAME ..." for one or more;
        None if it takes none.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs set another one for their imports
    prepare_process()
    # Orbax logs every step that it takes, and logs a traceback of each error in addition to raising it.
    logging.set_verbosity(logging.FATAL)
    register_parsers()
    try:
        parse = functools.partial(_parse, default_config=default_config, argument=argument)
        app.run(functools.partial(_call, main), flags_parser=parse)
    except KeyboardInterrupt:  # either a second SIGINT, or a SIGINT before there was anything to save
        if is_one_of_several():
            end_process("interrupted", 130)
        sys.exit(130)
    except Exception as error:
        if is_lost_connection(error):
            reason = f"a connection broke ({str(error).strip().splitlines()[0][:200]})"
            advice = "start all processes again; training resumes from its newest checkpoint"
            end_process(f"{reason}; {advice}", 4, lost=True)
        if reason := out_of_memory(error):
            advice = "; give a smaller --batch_size" if "batch_size" in flags.FLAGS else ""
            refuse(f"the program does not fit into memory ({reason}){advice}")
        if is_one_of_several():
            traceback.print_exc()
            end_process(f"{type(error).__name__}: {error}", 1)
        raise


def register_parsers() -> None:
    """Makes absl parse --config.NAME=None as None, and 0.3,0.4 or names with commas as a tuple."""
    parsers: dict[type, Any] = {int: flags.IntegerParser(), float: flags.FloatParser(), str: flags.ArgumentParser()}
    for kind, parser in parsers.items():
        config_flags.register_flag_parser_for_type(kind, _OptionalParser(parser))
    config_flags.register_flag_parser_for_type(tuple, _TupleParser())


def parse_option(name: str, text: str) -> Any:
    """Returns the value of an option that is typed as --config.NAME=TEXT.

    Raises:
      ValueError: if the text is no value of the option's type.
    """
    option = base.OPTIONS[name]
    if isinstance(option.default, tuple):
        return _TupleParser().parse(text)
    parsers: dict[type, flags.ArgumentParser] = {int: flags.IntegerParser(), float: flags.FloatParser()}
    parsers |= {bool: flags.BooleanParser(), str: flags.ArgumentParser()}
    try:
        return _OptionalParser(parsers[option.type]).parse(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}={text} is invalid; give {option.range}") from error


def say(text: str) -> None:
    """Prints lines at once; if that fails, at a closed pipe or a full disk, the program goes on and prints no more."""
    with messages():
        print(printable(text, kept="\n"), flush=True)


@contextlib.contextmanager
def refusing_bad_input(kinds: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Turns an error of the user's config or data into one line on standard error and exit code 2.

    Args:
      kinds: the types of these errors; errors of other types are not caught.
    """
    try:
        yield
    except kinds as error:
        if is_lost_connection(error):  # JAX raises a ValueError for it
            raise
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Ends the program with one line and exit code 2: the user's flags, config or data are invalid."""
    end_process(message, 2)


def fail(message: str) -> NoReturn:
    """Ends the program with one line and exit code 3: training failed."""
    end_process(message, 3)


def machine_failed(message: str) -> NoReturn:
    """Ends the program with one line and exit code 4: the machine failed, as with a full disk or a missing folder."""
    end_process(message, 4)


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


def _call(main: Callable[..., int | None], argv: list[str]) -> NoReturn:
    exit_code = main(*argv[1:])
    leave_processes()
    with messages():
        sys.stdout.flush()
    sys.exit(exit_code)


class _PathParser(flags.ArgumentParser):
    """Parses the path of a file or folder: `~` and environment variables are replaced, remote paths refused."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return str(local_path(argument)) if argument else argument

    def flag_type(self) -> str:
        return "path"


class _PathOrUrlParser(_PathParser):
    """Parses a path, or the URL of a folder in an object store."""

    syntactic_help = "a path, s3://bucket/folder or gs://bucket/folder"

    def parse(self, argument: str) -> str:
        if not is_remote(argument or ""):
            return super().parse(argument)
        check_url(argument)
        return argument


PATH, PATH_OR_URL = _PathParser(), _PathOrUrlParser()
"""The parsers of every flag that is a path, or may also be a URL: flags.DEFINE(PATH, name, default, help)."""


class _OptionalParser(flags.ArgumentParser):
    """Parses None, and everything else with another parser; the table of options says which options take None."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


class _TupleParser(flags.ArgumentParser):
    """Parses tuples: 0.3 or 0.3,0.4 or (0.3,0.4) or () or names with commas, or pairs: ((0,128),(30,160))."""

    def parse(self, argument: Any) -> tuple:
        if not isinstance(argument, str):
            return tuple(argument)
        if re.match(r"\s*\(\s*\(", argument) and isinstance(pairs := _parse_item(argument.strip()), tuple):
            return pairs if not pairs or isinstance(pairs[0], tuple) else (pairs,)  # ((0,128)) is (0,128) in Python
        (inner,) = re.findall(r"\A\s*[(\[]?(.*?)[)\]]?\s*\Z", argument, re.DOTALL)
        return tuple(_parse_item(item) for part in inner.split(",") if (item := part.strip()))

    def flag_type(self) -> str:
        return "tuple"


def _parse_item(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _parse(argv: list[str], default_config: pathlib.Path | None, argument: str | None) -> list[str]:
    """Parses the flags as absl does, but reports an error in one line that suggests the nearest valid name."""
    if {"-h", "-help", "--help", "-helpshort", "--helpshort"} & set(argv):
        say(describe_program())
        sys.exit(0)
    if default_config and not any(re.match("--?config(=|$)", word) for word in argv):
        argv = [argv[0], f"--config={default_config}", *argv[1:]]
    with refusing_bad_input():
        argv = [argv[0], *_with_config_path(argv[1:])]
    words = [word.lstrip("-") for word in argv if word.startswith("-")]
    _check_flags(words)
    if not argument:
        _check_positional(argv[1:])
    path = next((word.removeprefix("config=") for word in words if word.startswith("config=")), None)
    if "config" in flags.FLAGS:
        _check_typed_names(words)
        if path is not None:
            _check_config_file(pathlib.Path(path))
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        if path is None and "config" in str(error):
            refuse("--config is missing; give a recipe before its options, as in --config=configs/lenet5_digits.py")
        refuse(str(error))
    except Exception as error:  # the code of a config file may raise any error
        if path is None:
            raise
        refuse(f"config file {path} is invalid: {type(error).__name__}: {error}")
    if path is not None and "config" in flags.FLAGS:
        with refusing_bad_input():
            _check_config(path)
    if argument and len(rest) < 2:
        refuse(f"{argument} is missing; see --help")
    if len(rest) > (2 if argument else 1) and not (argument or "").endswith("..."):
        refuse(f"{rest[-1]!r} is no flag; every option begins with --")
    return rest


def describe_program() -> str:
    """Returns the text of --help: what the program does, its flags, and where to begin."""
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    for flag in _flags_of_ours():
        name = f"--[no]{flag.name}" if flag.boolean and not flag.name.startswith("no_") else f"--{flag.name}"
        value = flag.default_as_str if flag.default not in (None, False, "", []) else ""
        name += f"={value}".replace("'", "") if value else ""
        left = f"  {name:19} " if len(name) < 20 else f"  {name}  "
        meaning = " ".join(flag.help.replace(";\n    repeat this option to specify a list of values", "").split())
        lines += textwrap.wrap(f"{left}{meaning}", lists.WIDTH, subsequent_indent=" " * 22, break_on_hyphens=False)
    if "config" in flags.FLAGS:
        lines += ["  --config.NAME=VALUE an option; python train.py --options lists all, with units and meanings"]
    lines += ["", "To begin: python train.py --config=configs/lenet5_digits.py"]
    return "\n".join([*lines, "Lists:    python train.py --list_models, --list_recipes, --list_datasets, --options"])


def _flags_of_ours() -> list[flags.Flag]:
    """Returns the flags that the program and our own modules define, without those of libraries."""
    found: list[flags.Flag] = []
    for name, defined in flags.FLAGS.flags_by_module_dict().items():
        path = getattr(sys.modules.get(name), "__file__", None)
        path = pathlib.Path(path or name).absolute()
        if name == sys.argv[0] or (ROOT in path.parents and "site-packages" not in path.parts and path.exists()):
            found += [flag for flag in defined if flag not in found]
    return found


def _check_flags(words: list[str]) -> None:
    """Refuses a flag that is an option without its config. or another library's name for one, and says what to give."""
    for word in words:
        name, _, value = word.partition("=")
        name = name.replace("-", "_")
        option = OTHER_NAMES.get(name, name)
        if "config" in flags.FLAGS and name not in flags.FLAGS and option in base.OPTIONS:
            refuse(f"--{word.partition('=')[0]} is no flag; give --config.{option}={value or 'VALUE'}")


def _check_positional(words: list[str]) -> None:
    """Refuses words without a flag, and says which flag they probably belong to."""
    after_flag = False
    for word in words:
        if word == "--":
            return
        if not word.startswith("-") and not after_flag:
            refuse(f"{word!r} has no flag; {_suggest_flag(word)}")
        name = word.lstrip("-")
        takes_value = name not in flags.FLAGS or not flags.FLAGS[name].boolean
        takes_value &= not (name.startswith("config.") and getattr(base.OPTIONS.get(name[7:]), "type", None) is bool)
        after_flag = word.startswith("-") and "=" not in word and takes_value


def _suggest_flag(word: str) -> str:
    known, path = flags.FLAGS, pathlib.Path(word)
    if "workdir" in known and (path / "config.json").exists():
        return f"did you mean --workdir={word}?"
    if "config" in known and (path.suffix == ".py" or (ROOT / "configs" / f"{word}.py").exists()):
        return f"did you mean --config={word if path.suffix else f'configs/{word}.py'}?"
    if "images" in known and path.suffix and path.exists():
        return f"did you mean --images={word}?"
    if "config" in known and "=" in word and word.partition("=")[0] in base.OPTIONS:
        return f"did you mean --config.{word}?"
    if "config" in known and word in models.REGISTRY:
        return f"did you mean --config.model={word}?"
    return "every option begins with --; see --help"


def _with_config_path(argv: list[str]) -> list[str]:
    """Returns the words with `--config FILE` as `--config=FILE`, and `~` and environment variables in FILE replaced."""
    words, result = iter(argv), []
    for word in words:
        if word in ("-config", "--config"):
            word += f"={next(words, '')}"
        flag, _, path = word.partition("=")
        result.append(f"{flag}={local_path(path)}" if path and flag in ("-config", "--config") else word)
    return result


def _check_typed_names(words: list[str]) -> None:
    for word in words:
        if typed := re.match(r"(no)?config\.([^=]*)", word, re.DOTALL):
            name = typed[2]
            if name not in base.OPTIONS:
                plain = name.replace("-", "_")
                if plain in OTHER_NAMES:
                    refuse(f"option --config.{name} does not exist; here it is --config.{OTHER_NAMES[plain]}")
                hint = nearest_name(plain, base.OPTIONS)
                refuse(f"option --config.{name} does not exist{hint or '; train.py --options lists all'}")
            if typed[1] and base.OPTIONS[name].type is not bool:
                refuse(f"--noconfig.{name} is invalid, as {name} is not a switch; give --config.{name}=VALUE")


def _check_config_file(path: pathlib.Path) -> None:
    if path.is_file() and path.suffix == ".py":
        return
    if path.exists():
        refuse(f"config file {path} is no recipe; give a Python file with get_config(), as configs/resnet50.py")
    here = "" if ROOT == pathlib.Path.cwd() else f"{ROOT}/"
    stems = [recipe.stem for recipe in (ROOT / "configs").glob("[!_]*.py")]
    nearest = difflib.get_close_matches(path.stem.lower(), stems, n=1)
    hint = f"did you mean {here}configs/{nearest[0]}.py?" if nearest else "python train.py --list_recipes lists all"
    refuse(f"config file {path} does not exist; {hint}")


def _check_config(path: str) -> None:
    """Checks that the recipe has every option, and applies the typed options to it."""
    flag = flags.FLAGS["config"]
    if not isinstance(flag.value, ConfigDict):
        raise ValueError(f"config file {path} is invalid: its get_config() returns no ConfigDict")
    surplus, missing = sorted(set(flag.value) - set(base.OPTIONS)), sorted(set(base.OPTIONS) - set(flag.value))
    if surplus:
        raise ValueError(
            f"config file {path} has an unknown option {surplus[0]}{nearest_name(surplus[0], base.OPTIONS)}"
        )
    if missing:
        raise ValueError(f"config file {path} lacks {', '.join(missing)}; let it start from base.get_config()")
    if "vary" not in flags.FLAGS:  # sweep.py checks the options of each of its runs
        configuration.apply_typed(flag.value, config_flags.get_override_values(flag))
