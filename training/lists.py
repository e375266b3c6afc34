"""What train.py can be given: --list_models, --list_recipes, --list_datasets, --options.

The lists import as little as possible, so that they are there at once.
"""

import ast
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence

from configs import base
from configs._option import text_of
from training.output import results

ROOT = pathlib.Path(__file__).parent.parent
WIDTH = 100  # characters of a line

DATASETS = {
    "digits": "1,437 + 360 handwritten digits, part of scikit-learn",
    "synthetic": "random images, as many as synthetic_examples says",
    "image_folder:/path": "your own images: /path/CLASS/IMAGE or /path/SPLIT/CLASS/IMAGE",
    "mnist": "60,000 + 10,000 digits; downloaded at first use, 12 MB",
    "fashion_mnist": "60,000 + 10,000 pieces of clothing; downloaded, 31 MB",
    "cifar10": "50,000 + 10,000 images of 32 pixels; downloaded, 170 MB",
    "cifar100": "the same with 100 classes; downloaded, 169 MB",
    "imagenette/160px-v2": "9,469 + 3,925 images of ten ImageNet classes; downloaded, 99 MB",
    "imagenette/320px-v2": "the same, larger; downloaded, 342 MB",
    "imagenette/full-size-v2": "the same in full size; downloaded, 1.6 GB",
    "imagenet2012": "1,281,167 + 50,000 images; python prepare.py --help says how",
}
"""Names for --config.dataset, with what they are. docs/data.md says more."""


def answer(words: Sequence[str]) -> None:
    """Prints the first list that the words of a command line ask for, and exits with code 0; returns if none is."""
    asked = [word.lstrip("-") for word in words if word.startswith("-")]
    for name, make in LISTS.items():
        if name in asked:
            with results():
                print(make())
            sys.exit(0)


def list_options() -> str:
    """Returns every option, grouped, with default, valid values, unit and meaning."""
    lines = ["Every option, as --config.NAME=VALUE. None: the default of the network or of the dataset."]
    for title, options in base.SECTIONS.items():
        lines += ["", title]
        for name, option in options.items():
            default = "''" if option.default == "" else text_of(option.default)
            needs = f"; needs {option.needs.replace('|', ' or ')}" if option.needs else ""
            lines += [f"  {name}={default}  ({option.range}{needs})", f"      {option.meaning}"]
    return "\n".join(lines)


def list_models() -> str:
    """Returns the names of all networks, a line or more for each family and paper."""
    import models  # takes a second, which the other lists need not wait for

    groups: dict[str, list[str]] = {}
    for entry in models.REGISTRY.values():
        groups.setdefault(entry.paper, []).append(entry.name)
    lines = ["The networks, for --config.model=NAME. python summarize.py has their costs and accuracies.", ""]
    return "\n".join(lines + _two_columns((paper, "  ".join(names)) for paper, names in groups.items()))


def list_recipes() -> str:
    """Returns the files of configs/, with the first line of each."""
    lines = ["The recipes. Run one: python train.py --config=configs/lenet5_digits.py", ""]
    recipes = [
        (f"configs/{path.name}", (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0])
        for path in sorted((ROOT / "configs").glob("[!_]*.py"))
    ]
    return "\n".join(lines + _two_columns(recipes))


def list_datasets() -> str:
    """Returns the names of datasets that can be downloaded, made or read, and of those that are prepared."""
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    infos = [*folder.glob("*/*/dataset_info.json"), *folder.glob("*/*/*/dataset_info.json")]
    prepared = sorted({info.parent.parent.relative_to(folder).as_posix() for info in infos})
    lines = ["The datasets, for --config.dataset=NAME: images for training + for evaluation.", ""]
    lines += _two_columns(DATASETS.items())
    lines += ["", "Any other dataset of TFDS with images and labels, once prepared: python prepare.py NAME"]
    return "\n".join([*lines, f"Prepared in {folder}: {', '.join(prepared) or 'none'}"])


def _two_columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Returns lines with the first texts on the left and the second ones, wrapped, on the right."""
    rows = list(rows)
    left = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        first, *others = textwrap.wrap(text, WIDTH - left - 2, break_on_hyphens=False) or [""]
        lines += [f"  {name:{left}}{first}", *(f"  {'':{left}}{line}" for line in others)]
    return lines


LISTS: dict[str, Callable[[], str]] = {
    "options": list_options,
    "list_models": list_models,
    "list_recipes": list_recipes,
    "list_datasets": list_datasets,
}
"""The flags that print a list, and what they print."""
