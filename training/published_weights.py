"""The weights that torchvision and timm publish for our networks: their table, their files, what goes with them.

published_weights.csv has a row for each published file. Its columns:

- name: torchvision/ or timm/, then the publisher's name of the weights, as in torchvision/resnet50.IMAGENET1K_V2.
- default: yes for the file that a short name without the last part, such as torchvision/resnet50, stands for; the
  publisher chose this file as the default.
- model: the name of the network in models.REGISTRY.
- url, sha256: the address, and the first digits of the SHA-256 where the publisher states them (in the file's name).
- mebibytes: torchvision's _file_size; timm's from the sizes of its state dict, 4 bytes for each number.
- licence: as the publisher states it for these weights; empty where it states none.
- mean, std: what the network wants of pixels in [0, 1]; torchvision's transform_input is accounted for.
- image_size, resize, interpolation: the publisher's evaluation: shorter side before the centre crop, in pixels.
- top1: accuracy on ImageNet's validation set in that evaluation, in percent; test_image_size, test_resize and test_top1
  are a second evaluation at another size, if there is one.
- source: where the row is from, and when.
"""

import csv
import functools
import importlib
import os
import pathlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from configs._option import nearest_name
from input_pipeline.downloads import download, file_sha256, read_headers

HUB = "https://huggingface.co"
PUBLISHERS = ("torchvision/", "timm/")
OPTIONS = ("image_size", "eval_resize", "interpolation", "mean", "std")
"""The options that published weights bring along."""


@dataclass(frozen=True)
class PublishedWeights:
    """A row of published_weights.csv, with the columns of these names; numbers that are not known are None."""

    name: str
    model: str
    is_default: bool
    url: str
    sha256: str
    mebibytes: float | None
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    resize: int
    interpolation: str
    top1: float | None
    test_image_size: int | None
    test_resize: int | None
    test_top1: float | None
    source: str


@functools.cache
def published_weights() -> dict[str, PublishedWeights]:
    """Returns the rows of the table by their names."""

    numbers = {"mebibytes": float, "top1": float, "test_top1": float, "test_image_size": int, "test_resize": int}
    rows = {}
    with open(pathlib.Path(__file__).with_suffix(".csv"), newline="") as file:
        for texts in csv.DictReader(file):
            row: dict[str, Any] = dict(texts)
            row |= {column: kind(row[column]) if row[column] else None for column, kind in numbers.items()}
            row |= {column: tuple(map(float, row[column].split())) for column in ("mean", "std")}
            row |= {column: int(row[column]) for column in ("image_size", "resize")}
            row["is_default"] = row.pop("default") == "yes"
            rows[row["name"]] = PublishedWeights(**row)
    return rows


def is_published(name: str) -> bool:
    """Whether init_from or --weights names published weights, and not a folder or a file."""
    return name.startswith(PUBLISHERS)


def find(name: str, model: str | None = None) -> PublishedWeights:
    """Returns the published weights of a name; without its last part, as in timm/resnet50, the publisher's default.

    >>> find("torchvision/resnet50").name
    'torchvision/resnet50.IMAGENET1K_V2'

    Args:
      name: a name of the table.
      model: the network that they must be for, of models.REGISTRY; None: any.

    Raises:
      ValueError: if the name is unknown, with the nearest one, or the weights are for another network.
    """
    table = published_weights()
    defaults = {row.name.rpartition(".")[0]: row for row in table.values() if row.is_default}
    found = table.get(name) or defaults.get(name)
    if not found:
        hint = nearest_name(name, [*defaults, *table]) or "; convert.py --list prints what is known"
        raise ValueError(f"no published weights are called {name!r}{hint} (a path of this name is given as ./{name})")
    if model not in (None, found.model):
        others = [other.name for other in table.values() if other.model == model]
        known = f"for {model} there are {', '.join(others)}" if others else f"for {model} none are known"
        raise ValueError(f"{name} has the weights of {found.model}, not of {model}; {known}")
    return found


def list_weights() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the headings and the rows, as text, of a table of all published weights."""

    def protocol(top1: float | None, size: int | None, resize: int | None, interpolation: str) -> str:
        accuracy = f"{top1:.2f} %" if top1 is not None else "not stated"
        return f"{accuracy} at {size} px of {resize} ({interpolation})" if size else ""

    rows: list[tuple[str, ...]] = []
    for row in published_weights().values():
        first = protocol(row.top1, row.image_size, row.resize, row.interpolation)
        second = protocol(row.test_top1, row.test_image_size, row.test_resize, row.interpolation)
        size = f"{row.mebibytes:.0f} MiB" if row.mebibytes is not None else "not stated"
        name = f"{row.name} (default)" if row.is_default else row.name
        rows.append((name, row.model, first, second, row.licence or "not stated", size))
    return ("name", "network", "ImageNet top-1", "at another size", "licence", "size"), rows


def apply_settings(config: ConfigDict, weights: PublishedWeights, typed: Collection[str]) -> None:
    """Gives a config the size, interpolation and normalisation of the images that the weights were published with.

    Args:
      config: changed in place.
      weights: the published weights.
      typed: names of the options that the user typed; they keep their values. If image_size is among them, and
        eval_resize is not, eval_resize keeps its ratio to image_size.

    Raises:
      ValueError: if the config asks for grey images.
    """
    if config.channels not in (None, len(weights.mean)):
        raise ValueError(f"channels={config.channels} does not fit {weights.name}, which wants colour; leave it out")
    size = config.image_size if "image_size" in typed and config.image_size else weights.image_size
    settings = {
        "image_size": size,
        "eval_resize": round(weights.resize * size / weights.image_size),
        "interpolation": weights.interpolation,
        "mean": weights.mean,
        "std": weights.std,
    }
    assert settings.keys() == set(OPTIONS)
    with config.unlocked():
        config.update({option: value for option, value in settings.items() if option not in typed})


def fetch(weights: PublishedWeights) -> pathlib.Path:
    """Returns the path of the weights' file, which is downloaded if it is not in the cache, and verified.

    Files of the Hugging Face hub are in its own cache, which timm uses too: HF_HUB_CACHE, or hub/ in HF_HOME, which is
    ~/.cache/huggingface by default; they come from HF_ENDPOINT if that is set. Other files are in torch's cache:
    hub/checkpoints/ in TORCH_HOME, which is ~/.cache/torch by default.

    Raises:
      OSError: if the file cannot be downloaded, or is damaged; one line with what to do.
    """
    if weights.url.startswith(HUB):
        return _fetch_from_hub(weights.url)
    path = _cache_home("TORCH_HOME", "torch") / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    if path.exists():
        return _verified(path, weights.sha256)
    download(weights.url, path, weights.sha256, otherwise=_by_hand(path))
    return path


def _fetch_from_hub(url: str) -> pathlib.Path:
    """Returns the path of a file of the Hugging Face hub, by huggingface_hub if that is installed."""
    repository, name = url.removeprefix(f"{HUB}/").split("/resolve/main/")
    cache = pathlib.Path(os.environ.get("HF_HUB_CACHE") or _cache_home("HF_HOME", "huggingface") / "hub").expanduser()
    folder = cache / f"models--{repository.replace('/', '--')}"
    if cached := _find_in_hub_cache(folder, name):
        return cached
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    url, otherwise = endpoint + url.removeprefix(HUB), _by_hand(folder / "snapshots" / "main" / name)
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        return _download_from_hub(url, folder, name, otherwise)
    try:
        path = pathlib.Path(hub.hf_hub_download(repository, name, cache_dir=cache, endpoint=endpoint))
    except Exception as error:  # huggingface_hub raises errors of many libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConnectionError(f"cannot download {url}: {reason}; {otherwise}") from error
    return _verified(path, path.resolve().name)


def _download_from_hub(url: str, folder: pathlib.Path, name: str, otherwise: str) -> pathlib.Path:
    """Downloads a file into the hub's cache, where it is called by its checksum, and its commit has a link to it."""
    headers = read_headers(url, otherwise)
    sha256 = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ConnectionError(f"{url} comes without a checksum, so it is not used; {otherwise}")
    size, commit = headers.get("X-Linked-Size", ""), headers.get("X-Repo-Commit", "")
    blob = folder / "blobs" / sha256
    if blob.exists():
        _verified(blob, sha256)
    else:
        download(url, blob, sha256, int(size) if size.isdecimal() else None, otherwise)
    if not re.fullmatch("[0-9a-f]{40}", commit):
        commit = "main"
    path, reference = folder / "snapshots" / commit / name, folder / "refs" / "main"
    for file in (path, reference):
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        if file == path:
            new.symlink_to(os.path.relpath(blob, path.parent))
        else:
            new.write_text(commit)
        new.replace(file)
    return path


def _find_in_hub_cache(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns the path of a file in the hub's cache, that of the branch main first, or None."""
    reference = folder / "refs" / "main"
    commits = [reference.read_text().strip()] if reference.is_file() else []
    snapshots = [folder / "snapshots" / commit for commit in commits] + sorted((folder / "snapshots").glob("*"))
    path = next((snapshot / name for snapshot in snapshots if (snapshot / name).is_file()), None)
    return path and _verified(path, path.resolve().name)


def _verified(path: pathlib.Path, sha256: str) -> pathlib.Path:
    """Returns the path of a cached file; raises OSError if its content does not have the checksum.

    A file that a person put into the hub's cache is not called by its checksum and is taken as it is.
    """
    if re.fullmatch("[0-9a-f]{8,64}", sha256) and not (found := file_sha256(path)).startswith(sha256):
        raise OSError(
            f"{path.resolve()} is damaged: its SHA-256 is {found} instead of {sha256}; remove it to download it again"
        )
    return path


def _cache_home(variable: str, name: str) -> pathlib.Path:
    """Returns the folder that an environment variable names, or NAME in the folder of all caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(os.path.expandvars(os.environ.get(variable) or f"{caches}/{name}")).expanduser()


def _by_hand(path: pathlib.Path) -> str:
    return f"get the file another way and put it into {path.parent} as {path.name}"
