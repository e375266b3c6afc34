"""The folder of a run: its name, the run that it belongs to, its config.json, and how its files are written."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from configs import base
from input_pipeline.files import printable
from training.environment import describe_environment
from training.output import messages

LONGEST_NAME = 120  # characters of a folder's name; file systems allow 255 bytes


def default_workdir(config_path: str, overrides: Mapping[str, Any]) -> pathlib.Path:
    """Returns runs/ + the recipe's name + the overrides that affect the result: runs/googlenet/aux_weight=0.3,seed=1.

    The overrides are in the order of configs/base.py, so that the order on the command line does not matter. A value
    has no colon, comma or slash: a tuple's numbers are joined by +, and a path is its last part and a short digest. A
    run of an earlier version, which has another name, is found under that name.
    """
    recipe, folder = pathlib.Path(config_path).stem, pathlib.Path("runs")
    typed = {name: value for name, value in overrides.items() if base.OPTIONS[name].affects_result}
    old_texts = {n: ",".join(map(str, v)) if isinstance(v, (tuple, list)) else str(v) for n, v in typed.items()}
    old = folder / ",".join([recipe, *(f"{name}={text}".replace(os.sep, "_") for name, text in old_texts.items())])
    parts = [f"{name}={_short(typed[name])}" for name in base.OPTIONS if name in typed]
    name = ",".join(parts)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{_digest(name)}"
    new = folder / recipe / name
    return old if os.path.exists(old / "config.json") and not os.path.exists(new / "config.json") else new


def run_name(workdir: pathlib.Path) -> str:
    """Returns a short name of a run for pictures: its folder with the one above, as in googlenet/aux_weight=0.3."""
    return "/".join(workdir.absolute().parts[-2:]).removeprefix("runs/")


def _short(value: Any) -> str:
    """Returns a value for the name of a folder; different values give different texts."""
    text = "+".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    last = pathlib.PurePath(text).name if os.sep in text else text
    plain = re.sub(r"[^\w.+-]", "_", last)[:40]
    return plain if plain == text else f"{plain}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:6]


FOLDERS, FILES = ("checkpoints", "tensorboard"), ("config.json", "metrics.jsonl", "curves.png", "summary.json")
"""The folders and files of a workdir."""


def nearest_folder(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the workdir, or the nearest folder above it that exists."""
    return next(path for path in (workdir, *workdir.absolute().parents) if path.exists())


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Checks that a run of this config may write into the workdir, without writing anything.

    Raises:
      ValueError: if the workdir belongs to a run of another config.
      OSError: if it cannot be written.
    """
    nearest = nearest_folder(workdir)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise PermissionError(f"workdir {workdir} cannot be written ({nearest} forbids it); choose another --workdir")
    for names, is_right, kind in ((FOLDERS, pathlib.Path.is_dir, "folder"), (FILES, pathlib.Path.is_file, "file")):
        for path in (workdir / name for name in names):
            if path.exists() and not is_right(path):
                raise ValueError(f"workdir {workdir} is damaged: {path} is no {kind}; move it away")
    if not (workdir / "config.json").exists():
        if (workdir / "checkpoints").exists():
            raise ValueError(f"workdir {workdir} has checkpoints but no config.json; choose another --workdir")
        return
    # num_epochs only serves to compute num_steps. In a workdir of convert.py num_steps is None: the dataset's size is
    # unknown there.
    unknown = ["num_epochs"] + ["num_steps"] * (read_config(workdir).num_steps is None)
    check_options(workdir, config, unknown)


def check_options(workdir: pathlib.Path, config: ConfigDict, unknown: Collection[str]) -> None:
    """Checks that the workdir's run has the options of a config.

    Args:
      workdir: a folder with a config.json.
      config: with the options of the network resolved.
      unknown: names of the options that are not compared.

    Raises:
      ValueError: if an option differs that affects the result.
    """
    theirs, ours = (json.loads(options.to_json()) for options in (read_config(workdir), config))
    differing = [
        f"{option}={theirs.get(option)!r}, not {ours[option]!r}"
        for option in ours
        if base.OPTIONS[option].affects_result and option not in unknown and theirs.get(option) != ours[option]
    ]
    if differing:
        raise ValueError(f"workdir {workdir} belongs to a run with {'; '.join(differing)}; choose another --workdir")


@contextlib.contextmanager
def exclusive_run(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the workdir and locks it for this process; the operating system releases the lock if the process dies.

    If several processes train together, only the first one holds the lock.

    Raises:
      ValueError: if another process holds the lock; the message names its host and process id.
      OSError: if the workdir cannot be made or written.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() > 0:
        yield
        return
    path, holder = workdir / ".lock", f"process {os.getpid()} on {socket.gethostname()}"
    with open(path, "a+") as file:
        _lock(file, workdir)
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise ValueError(
                f"workdir {workdir} was in use until now; start again"
            )  # the other run has just ended and removed the lock file
        try:
            file.truncate(0)
            with naming_failure(path, len(holder)):
                file.write(holder)
                file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)


def check_not_in_use(workdir: pathlib.Path) -> None:
    """Raises ValueError, with host and process id, if another process trains in the workdir."""
    if (workdir / ".lock").exists():
        with open(workdir / ".lock", "a+") as file:
            _lock(file, workdir)


def _lock(file: Any, workdir: pathlib.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read() or "another process"
        raise ValueError(f"workdir {workdir} is in use by {holder}; wait for it, or choose another --workdir") from None
    except OSError as error:  # a file system without locks
        with messages():
            print(printable(f"note: workdir {workdir} cannot be locked ({error.strerror}); start no second run there"))


def write_config(workdir: pathlib.Path, config: ConfigDict, class_names: tuple[str, ...]) -> None:
    """Writes config.json: all options resolved, `all_class_names`, versions, hardware and git commit."""
    if (workdir / "config.json").exists() and read_config(workdir).to_dict() == config.to_dict():
        return  # a resumed run: the record says where it began
    options, names = json.loads(config.to_json()), all_class_names(class_names, config.num_classes)
    content = {"config": options, **describe_environment(), "class_names": names}
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", json.dumps(content, indent=2) + "\n")


def discard_unstarted(workdir: pathlib.Path) -> None:
    """Removes the files of a run that has neither a checkpoint nor a row of metrics; another run may then use its name.

    If several processes train together, only the first one removes them.
    """
    metrics = workdir / "metrics.jsonl"
    has_rows = metrics.exists() and metrics.stat().st_size
    if jax.process_index() > 0 or has_rows or any((workdir / "checkpoints").glob("[0-9]*")):
        return
    for name in FOLDERS:
        shutil.rmtree(workdir / name, ignore_errors=True)
    for name in FILES:
        (workdir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        workdir.rmdir()


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Returns the resolved options of a workdir.

    Raises:
      FileNotFoundError: if the folder is no workdir.
      ValueError: if its config.json is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} is no workdir: it has no config.json; give the folder that train.py made")
    try:
        # Options that did not exist when the run began get their defaults, which do not change its result.
        options = json.loads(base.get_config().to_json()) | json.loads(path.read_text())["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or choose another --workdir") from error
    return ConfigDict({name: _with_tuples(value) for name, value in options.items()})


def _with_tuples(value: Any) -> Any:
    """Returns a value from JSON with a tuple for each list."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def all_class_names(class_names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """Returns a dataset's class names, and for the classes that num_classes has beyond them their numbers."""
    return class_names + tuple(map(str, range(len(class_names), num_classes)))


def read_class_names(workdir: pathlib.Path) -> list[str]:
    """Returns the names of a workdir's classes in the order of the logits."""
    return json.loads((pathlib.Path(workdir) / "config.json").read_text())["class_names"]


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file atomically: at any moment the file has either its whole old content or its whole new content.

    If several processes work together, only the first one writes.

    Raises:
      OSError: if the file cannot be written; the old file is unchanged.
    """
    if jax.process_index() > 0:
        return
    encoded = content.encode() if isinstance(content, str) else content
    with naming_failure(path, len(encoded)), _replacing(path) as temporary:
        temporary.write_bytes(encoded)


@contextlib.contextmanager
def open_atomically(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a text file for writing; it appears under its name at the end of the `with` block, and not after an error.

    If several processes work together, only the first one writes. What UTF-8 lacks, in names of files, is written as
    the bytes that it stands for.
    """
    if jax.process_index() > 0:
        with open(os.devnull, "w") as nothing:
            yield nothing
        return
    with _replacing(path) as temporary:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary file, which replaces the file at the end, and is removed after an error.

    A device or a pipe, such as /dev/stdout, is not replaced: its own path is yielded.
    """
    if path.absolute().is_relative_to("/dev") or (path.exists() and not path.is_file()):
        yield path
        return
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def naming_failure(path: pathlib.Path, num_bytes: int) -> Iterator[None]:
    """Turns an OSError into one that names the file that cannot be written, the room that it needs, and the reason.

    The errors of `write` and `flush` name no file.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written ({num_bytes:,} bytes): {error.strerror or error}") from error
