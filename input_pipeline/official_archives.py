"""Reads the archives of well-known datasets; files, labels and keys are the same as with TFDS's own builders."""

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums

from input_pipeline import class_names
from input_pipeline.archives import Member, tar_members
from input_pipeline.decoding import open_image
from input_pipeline.downloads import download
from input_pipeline.record_files import Example, Split, encode, shuffled

EXAMPLES = {
    "imagenet2012": {"train": 1281167, "validation": 50000},
    "imagenette/full-size-v2": {"train": 9469, "validation": 3925},
    "imagenette/320px-v2": {"train": 9469, "validation": 3925},
    "imagenette/160px-v2": {"train": 9469, "validation": 3925},
    "cifar10": {"train": 50000, "test": 10000},
    "cifar100": {"train": 50000, "test": 10000},
    "mnist": {"train": 60000, "test": 10000},
    "fashion_mnist": {"train": 60000, "test": 10000},
}
"""The number of examples in the official archives, from TFDS's catalog."""


Found = tuple[str, str, Member]
"""The name of an image file, its label, and the file."""


def find_archives(builder: tfds.core.DatasetBuilder, downloads: Path) -> list[Path]:
    """Returns the paths of a dataset's official archives, and downloads them if they are missing.

    Raises:
      FileNotFoundError: if ImageNet's archives are missing, because the user must download them.
      OSError: if the archives cannot be downloaded.
    """
    if builder.name == "imagenet2012":
        manual = downloads / "manual"
        there = [path for part in ("train", "val") if (path := manual / f"ILSVRC2012_img_{part}.tar").exists()]
        if not there:
            raise FileNotFoundError(
                "ImageNet is downloaded by hand, from image-net.org: give --archive=ILSVRC2012_img_train.tar "
                f"--archive=ILSVRC2012_img_val.tar, or put both into {manual}"
            )
        return there
    listed = tfds.core.tfds_path(f"url_checksums/{builder.name}.txt")
    if not listed.exists():
        listed = tfds.core.tfds_path(f"datasets/{builder.name}/checksums.tsv")
    urls = checksums.load_url_infos(listed)
    if builder.name == "imagenette":
        urls = {url: info for url, info in urls.items() if info.filename == f"{builder.builder_config.dirname}.tgz"}
    targets = {url: downloads / builder.name / info.filename for url, info in urls.items()}
    for url, target in targets.items():
        if not target.exists():
            otherwise = "get the file another way and give it to `prepare.py NAME --archive=FILE`"
            download(url, target, urls[url].checksum, urls[url].size, otherwise)
    return list(targets.values())


def _imagenet(builder: tfds.core.DatasetBuilder, files: Sequence[Member]) -> dict[str, Split]:
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

    validation_labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    not_rgb_jpeg = {*official.CMYK_IMAGES, *official.PNG_IMAGES}
    found: dict[str, list[Found]] = {"train": [], "validation": []}
    for file in _flat(files):
        name = PurePosixPath(file.name).name
        if match := re.fullmatch(r"(n\d{8})_\d+\.JPEG", name):
            found["train"].append((name, match[1], file))
        elif match := re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name):
            found["validation"].append((name, validation_labels[int(match[1]) - 1], file))

    def example(name: str, label: str, file: Member) -> Example:
        image = file.read()
        if name in not_rgb_jpeg:
            with open_image(image) as opened:
                image = encode(opened.convert("RGB"), "JPEG", quality=100)
        return {"file_name": name, "image": image, "label": label}

    return _splits_of_files(builder, found, example)


def _flat(files: Iterable[Member]) -> Iterator[Member]:
    """Yields the files; in place of a tar file, the files in it."""
    for file in files:
        if file.name.endswith(".tar"):
            yield from tar_members(file)
        else:
            yield file


def _imagenette(builder: tfds.core.DatasetBuilder, files: Sequence[Member]) -> dict[str, Split]:
    found: dict[str, list[Found]] = {"train": [], "validation": []}
    for file in files:
        *_, folder, label, name = "", "", *PurePosixPath(file.name).parts
        split = {"train": "train", "val": "validation"}.get(folder)
        if split and name.endswith(".JPEG") and not name.startswith("."):
            found[split].append((name, label, file))
    return _splits_of_files(builder, found, lambda name, label, file: {"image": file.read(), "label": label})


def _splits_of_files(
    builder: tfds.core.DatasetBuilder,
    found: dict[str, list[Found]],
    example: Callable[[str, str, Member], Example],
) -> dict[str, Split]:
    """Returns the splits of image files; the keys for TFDS's order are the names of the files."""

    def split_of_files(split: str, files: list[Found]) -> Split:
        names, num_bytes = [name for name, *_ in files], sum(file.size for *_, file in files)
        return shuffled(builder, split, names, lambda position: example(*files[position]), num_bytes)

    return {split: split_of_files(split, files) for split, files in found.items() if files}


def _cifar(builder: tfds.core.DatasetBuilder, files: Sequence[Member]) -> dict[str, Split]:
    """Reads the binary version: for each image a byte for each label, then 3 x 32 x 32 bytes of pixels."""
    if builder.name == "cifar10":
        parts = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
        labels = {"label": ("batches.meta.txt", class_names.CIFAR10)}
    else:
        parts = {"train": ["train.bin"], "test": ["test.bin"]}
        labels = {
            "coarse_label": ("coarse_label_names.txt", class_names.CIFAR100_COARSE),
            "label": ("fine_label_names.txt", class_names.CIFAR100),
        }
    by_name = {PurePosixPath(file.name).name: file for file in files}
    for label, (file, names) in labels.items():
        builder.info.features[label].names = by_name[file].read().decode().split() if file in by_name else names
    splits = {}
    for split, names in parts.items():
        missing = [name for name in names if name not in by_name]
        if missing:
            raise ValueError(f"the archive of {builder.name} has no {', '.join(missing)}: give the binary version")
        pixels = np.frombuffer(b"".join(by_name[name].read() for name in names), np.uint8)
        if len(pixels) % (len(labels) + 3072):
            raise ValueError(f"{', '.join(names)} of {builder.name} do not hold whole images: get the archive again")
        rows = pixels.reshape(-1, len(labels) + 3072)
        images = rows[:, len(labels) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = _pixel_split(
            builder,
            split,
            images,
            {label: rows[:, column] for column, label in enumerate(labels)}
            | {"id": [f"{split}_{number:05d}" for number in range(len(rows))]},
        )
    return splits


def _mnist(builder: tfds.core.DatasetBuilder, files: Sequence[Member]) -> dict[str, Split]:
    """Reads LeCun's idx files: a magic number, the sizes, then the bytes."""
    arrays: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    for file in files:
        split = "train" if PurePosixPath(file.name).name.startswith("train") else "test"
        data = file.read()
        magic, count = struct.unpack(">II", data[:8].ljust(8))
        if magic == 0x803:
            arrays[split]["image"] = np.frombuffer(data, np.uint8, offset=16).reshape(count, 28, 28)
        elif magic == 0x801:
            arrays[split]["label"] = np.frombuffer(data, np.uint8, offset=8)
    if any(part.keys() != {"image", "label"} or len(part["image"]) != len(part["label"]) for part in arrays.values()):
        raise ValueError(f"{builder.name} needs four files: train and t10k, each with images and labels (idx-ubyte)")
    return {
        split: _pixel_split(builder, split, part["image"], {"label": part["label"]}) for split, part in arrays.items()
    }


def _pixel_split(builder: tfds.core.DatasetBuilder, split: str, images: np.ndarray, others: dict[str, Any]) -> Split:
    """Returns a split of uint8 images (N, H, W, 3) or (N, H, W); the keys for TFDS's order are their positions."""
    encoded = [encode(Image.fromarray(image), "PNG") for image in images]

    def example(position: int) -> Example:
        return {"image": encoded[position]} | {name: values[position] for name, values in others.items()}

    return shuffled(builder, split, range(len(encoded)), example, sum(map(len, encoded)))


READERS = {
    "imagenet2012": _imagenet,
    "imagenette": _imagenette,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "mnist": _mnist,
    "fashion_mnist": _mnist,
}
"""Maps a dataset's name to the function that reads its splits from the files of its archives."""
