"""The folder of a run: its name, the run that it belongs to, its config.json, and how its files are written."""

import json
import os
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import base
from training.environment import describe_environment


def default_workdir(config_path: str, overrides: dict[str, Any]) -> pathlib.Path:
    """Returns runs/ + the config's name + the overrides that affect the result, as in runs/resnet50,model=googlenet."""
    parts = [pathlib.Path(config_path).stem]
    for option, value in overrides.items():
        if base.OPTIONS[option].affects_result:
            text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
            parts.append(f"{option}={text}".replace(os.sep, "_"))
    return pathlib.Path("runs") / ",".join(parts)


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Checks that a run of this config may write into the workdir, without writing anything.

    Raises:
      ValueError: if the workdir belongs to a run of another config.
      OSError: if it cannot be written.
    """
    nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise PermissionError(f"workdir {workdir} cannot be written ({nearest} forbids it); choose another --workdir")
    if not (workdir / "config.json").exists():
        if (workdir / "checkpoints").exists():
            raise ValueError(f"workdir {workdir} has checkpoints but no config.json; choose another --workdir")
        return
    theirs, ours = (json.loads(options.to_json()) for options in (read_config(workdir), config))
    # num_epochs only serves to compute num_steps, which convert.py leaves open: it does not know the dataset's size.
    ours |= {"num_epochs": theirs["num_epochs"]} | ({"num_steps": None} if theirs["num_steps"] is None else {})
    differing = [
        f"{option}={theirs.get(option)!r}, not {ours[option]!r}"
        for option in ours
        if base.OPTIONS[option].affects_result and theirs.get(option) != ours[option]
    ]
    if differing:
        raise ValueError(f"workdir {workdir} belongs to a run with {'; '.join(differing)}; choose another --workdir")


def write_config(workdir: pathlib.Path, config: ConfigDict, class_names: tuple[str, ...]) -> None:
    """Writes config.json: all options resolved, the classes' names, versions, hardware and git commit.

    Classes without a name, where num_classes exceeds the dataset's, are called by their number.
    """
    if (workdir / "config.json").exists() and read_config(workdir).to_dict() == config.to_dict():
        return  # a resumed run: the record says where it began
    spare = tuple(map(str, range(len(class_names), config.num_classes)))
    options, names = json.loads(config.to_json()), class_names + spare
    content = {"config": options, **describe_environment(), "class_names": names}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be made: {error.strerror}; choose another --workdir") from error
    write_atomically(workdir / "config.json", json.dumps(content, indent=2) + "\n")


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
        # Options that are newer than the run have their defaults, which change nothing.
        options = json.loads(base.get_config().to_json()) | json.loads(path.read_text())["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or choose another --workdir") from error
    return ConfigDict({name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})


def read_class_names(workdir: pathlib.Path) -> list[str]:
    """Returns the names of a workdir's classes in the order of the logits."""
    return json.loads((pathlib.Path(workdir) / "config.json").read_text())["class_names"]


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that a reader, or a kill, finds either the whole old file or the whole new one.

    Of several processes only the first writes.
    """
    if jax.process_index() > 0:
        return
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.rename(path)
