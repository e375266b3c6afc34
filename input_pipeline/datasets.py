"""Datasets by name: how many records, which classes, and each record's image as bytes or pixels."""

import bisect
import dataclasses
import difflib
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.class_names import in_words

TFDS_NAMES = (
    "beans", "caltech101", "cats_vs_dogs", "cifar10", "cifar100", "fashion_mnist", "food101", "imagenet2012",
    "imagenet_a", "imagenet_r", "imagenet_v2", "imagenette", "imagewang", "kmnist", "mnist", "oxford_flowers102",
    "oxford_iiit_pet", "stanford_dogs", "svhn_cropped", "tf_flowers",
)  # fmt: skip
"""Image classification in TFDS, suggested for a misspelled name; any other of its datasets works as well."""

HELD_OUT_SPLITS = {"train": "train", "eval": "validation", "validation": "validation"}
EVAL_FOLDERS = ("val", "validation", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SYNTHETIC_IMAGES = 64


class DamagedImageError(ValueError):
    """An image cannot be decoded; the message names dataset, split, record and file."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The records of one split, readable in any order and from any thread.

    `len(dataset)` counts them; `dataset[i]` is (encoded bytes or uint8 (H, W, C), label), or a ValueError where the
    record is damaged, an OSError where its file cannot be read.

    Attributes:
      name: as the config has it.
      split: the split's own name.
      class_names: for people; a label is a position in it.
      size: number of records.
      read: from a record's index to its image and label.
      describe: from a record's index to its record or file, for error messages.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    size: int
    read: Callable[[int], tuple[bytes | np.ndarray, int]]
    describe: Callable[[int], str]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, record: int) -> tuple[bytes | np.ndarray, int]:
        if not 0 <= record < self.size:
            raise IndexError(f"record {record} of {self.size}")
        return self.read(record)


def load_dataset(config: ConfigDict, split: str) -> Dataset:
    """Opens a split of the dataset that config.dataset names.

    Names: 'digits' (scikit-learn's, in place), 'synthetic' (random pixels), 'image_folder:/path' (class folders of JPEG
    and PNG files), and every dataset that prepare.py or TFDS has prepared, as ArrayRecord or TFRecord, in
    config.data_dir ('imagenet2012', 'imagenette/160px-v2', ...). What can be downloaded is prepared at its first use.

    Args:
      config: dataset, data_dir, train_split, eval_split, validation_share, split_seed, image_size, channels,
        num_classes, synthetic_examples.
      split: 'train' or 'eval' for config's choice, or a split's own name.

    Returns:
      The dataset, with at least one record.

    Raises:
      ValueError: the name or split is unknown, or the records are not labelled images.
      OSError: the dataset is known, but not there, and cannot be fetched; or one of its files is missing.
    """
    split = {"train": config.train_split, "eval": config.eval_split}.get(split) or split
    if config.dataset == "digits":
        return _digits(config, split)
    if config.dataset == "synthetic":
        return _synthetic(config, split)
    if config.dataset.startswith("image_folder:"):
        return _image_folder(config, split)
    return _tfds(config, split)


def _held_out_split(config: ConfigDict, split: str) -> str:
    if split not in HELD_OUT_SPLITS:
        raise ValueError(f"dataset {config.dataset!r} has no split {split!r}: use 'train' or 'validation'")
    return HELD_OUT_SPLITS[split]


def _held_out_records(config: ConfigDict, split: str, size: int) -> np.ndarray:
    """Indices of the split's records among size, when a share of them is held out for validation."""
    held_out = math.ceil(config.validation_share * size)
    if not 0 < held_out < size:
        raise ValueError(
            f"validation_share={config.validation_share} holds out {held_out} of {size} records of "
            f"{config.dataset!r}: leave at least one on both sides"
        )
    # RandomState, because NumPy has frozen its stream: a new version must not mix training and validation.
    order = np.random.RandomState(config.split_seed).permutation(size)
    return np.sort(order[:held_out] if split == "validation" else order[held_out:])


def _digits(config: ConfigDict, split: str) -> Dataset:
    from PIL import Image
    from sklearn.datasets import load_digits

    split = _held_out_split(config, split)
    pixels, labels = load_digits(return_X_y=True)
    records = _held_out_records(config, split, len(labels))
    pixels = np.round(pixels[records].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    size = config.image_size, config.image_size
    images = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in pixels])
    images, labels = images[..., None], labels[records]
    return Dataset(
        name="digits",
        split=split,
        class_names=tuple("0123456789"),
        size=len(labels),
        read=lambda record: (images[record], int(labels[record])),
        describe=lambda record: f"record {record}, load_digits()[{records[record]}]",
    )


def _synthetic(config: ConfigDict, split: str) -> Dataset:
    """Random images, few and reused; up to SYNTHETIC_IMAGES classes each has its own, so that they can be learnt."""
    num_classes = config.num_classes or 1000
    shape = min(num_classes, SYNTHETIC_IMAGES), config.image_size, config.image_size, config.channels
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Dataset(
        name="synthetic",
        split=_held_out_split(config, split),
        class_names=tuple(str(label) for label in range(num_classes)),
        size=config.synthetic_examples,
        read=lambda record: (images[record % num_classes % len(images)], record % num_classes),
        describe=lambda record: f"record {record}",
    )


def _image_folder(config: ConfigDict, split: str) -> Dataset:
    name = config.dataset
    root = Path(name.removeprefix("image_folder:")).expanduser()
    if name == "image_folder:" or not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}: dataset=image_folder:/path needs a folder of class folders")
    splits = {path.name: path for path in _subfolders(root) if path.name in ("train", *EVAL_FOLDERS)}
    splits = {split: path for split, path in splits.items() if _subfolders(path)}  # a class may be called 'train'
    eval_split = next((folder for folder in EVAL_FOLDERS if folder in splits), None)
    if split == "eval" and eval_split:
        split = eval_split

    if split in splits and eval_split:
        folder, held_out = splits[split], False
    elif eval_split:
        raise ValueError(f"{str(root)!r} has no folder {split}/ of class folders: there are {', '.join(splits)}")
    else:
        folder, held_out = splits.get("train", root), True
        split = _held_out_split(config, split)

    class_folders = [path.name for path in _subfolders(folder)]
    if not class_folders:
        raise ValueError(f"{str(folder)!r} has no class folders: put each class's images into a folder of its name")
    for other in splits.values():
        different = sorted(set(class_folders) ^ {path.name for path in _subfolders(other)})
        if different:
            raise ValueError(
                f"class folders of {str(folder)!r} and {str(other)!r} differ: {', '.join(different[:5])} "
                f"({len(different)} in all) must be in both or in neither"
            )
    files, labels = [], []
    for label, class_folder in enumerate(class_folders):
        found = _image_files(folder / class_folder)
        if not found:
            raise ValueError(f"no JPEG or PNG file in {str(folder / class_folder)!r}: add images or remove the folder")
        files += found
        labels += [label] * len(found)
    if held_out:
        records = _held_out_records(config, split, len(files))
        files, labels = [files[record] for record in records], [labels[record] for record in records]
    return Dataset(
        name=name,
        split=split,
        class_names=in_words(class_folders),
        size=len(files),
        read=lambda record: (Path(files[record]).read_bytes(), labels[record]),
        describe=lambda record: f"record {record}, file {files[record]}",
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, file)
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")
    )


def default_data_dir(data_dir: str | None) -> Path:
    """Returns where TFDS's datasets lie: data_dir, or $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _tfds(config: ConfigDict, split: str) -> Dataset:
    import tensorflow_datasets as tfds

    name, data_dir = config.dataset, default_data_dir(config.data_dir)
    builder = open_builder(name, data_dir)
    if not builder:
        from input_pipeline import preparation

        if not preparation.fetchable(name):
            raise not_prepared(name, data_dir)
        print(f"dataset {name} is not in {data_dir} yet", flush=True)
        preparation.prepare(name, data_dir=str(data_dir))
        builder = open_builder(name, data_dir)
    features, splits = builder.info.features, sorted(builder.info.splits)
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kind) for key, kind in kinds.items()):
        raise ValueError(f"dataset {name!r} has features {', '.join(features)}: 'image' and a class 'label' are needed")
    if split == "eval":
        split = "validation" if "validation" in splits else "test"
    records = open_records(builder, split)
    class_names = in_words(features["label"].names)
    decoders = {"image": tfds.decode.SkipDecoding()}

    def example(record: int) -> dict:
        return features.deserialize_example_np(records[record], decoders=decoders)

    def read(record: int) -> tuple[bytes, int]:
        found = example(record)
        return found["image"], int(found["label"])

    def describe(record: int) -> str:
        try:
            file = example(record).get("file_name", b"")
        except (ValueError, OSError):  # it is described because it is damaged
            file = b""
        return records.describe(record) + (f", file {file.decode()}" if file else "")

    try:
        labelled = len(records) > 0 and 0 <= read(0)[1] < len(class_names)
    except ValueError:
        labelled = True  # a damaged record is named when its turn comes
    if not labelled:
        raise ValueError(f"split {split!r} of dataset {name!r} has no labelled images: choose one of {splits}")
    return Dataset(name, split, class_names, len(records), read, describe)


def open_builder(name: str, data_dir: Path) -> Any:
    """Returns TFDS's builder of a dataset that is prepared in data_dir, in any version; None if it is not."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        # From the files, not from the dataset's code: any version that was prepared is good.
        return read_only_builder.builder_from_files(name, data_dir=str(data_dir))
    except (tfds.core.DatasetNotFoundError, ValueError):
        return None


def open_records(builder: Any, split: str) -> "Records":
    """Opens a split of a prepared dataset, stored as ArrayRecord or TFRecord.

    Args:
      builder: as `open_builder` returns it.
      split: its name, or a slice of it, such as 'train[:90%]'.

    Returns:
      Its serialized examples.

    Raises:
      ValueError: there is no such split, it is stored in another format, or a file of it is damaged.
      FileNotFoundError: a file of it is missing.
    """
    name, stored = builder.info.full_name, {file_format.value for file_format in builder.info.available_file_formats()}
    try:
        files = builder.info.splits[split].file_instructions
    except (ValueError, KeyError):
        raise ValueError(
            f"dataset {name!r} has no split {split!r} but {', '.join(sorted(builder.info.splits))}: set train_split "
            "and eval_split (for example 'train[:90%]' and 'train[90%:]')"
        ) from None
    for file in files:
        path = Path(file.filename)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: copy it there, or remove {path.parent} and prepare it again")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty: copy it again, or remove {path.parent} and prepare it again")
    if "array_record" in stored:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return Records(ArrayRecordDataSource(files), files)
    if "tfrecord" in stored:
        from input_pipeline.tfrecords import TFRecords

        return Records(TFRecords(files), files)
    raise ValueError(f"dataset {name!r} is stored as {', '.join(stored)}: prepare it as array_record or tfrecord")


class Records(Sequence):
    """The serialized examples of a split, and where they lie."""

    def __init__(self, source: Sequence[bytes], files: Sequence[Any]):
        self._source = source
        self._files = files
        self._ends = list(itertools.accumulate(file.take for file in files))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, record: int) -> bytes:
        """Returns a record.

        Raises:
          ValueError: it is damaged.
          OSError: the file cannot be read.
        """
        try:
            return self._source[record]
        except RuntimeError as error:  # ArrayRecord's readers know no other, but for a TypeError at a file's early end
            raise (OSError if "() failed" in str(error) else ValueError)(str(error)) from error
        except TypeError as error:
            raise ValueError("its file is truncated") from error

    def describe(self, record: int) -> str:
        """Returns the record's number in the split, the file that holds it, and its place there."""
        number = bisect.bisect_right(self._ends, record)
        file = self._files[number]
        place = file.skip + file.take - (self._ends[number] - record)
        return f"record {record} ({os.path.basename(file.filename)}, place {place})"


def not_prepared(name: str, data_dir: Path) -> Exception:
    """Returns the error for a dataset that is not in data_dir: how to get it, or what it may be called."""
    import tensorflow_datasets as tfds

    infos = [*data_dir.glob("*/*/dataset_info.json"), *data_dir.glob("*/*/*/dataset_info.json")]
    prepared = sorted({info.parent.parent.relative_to(data_dir).as_posix() for info in infos})
    there = f"{str(data_dir)!r} (there: {', '.join(prepared) or 'none'})"
    if shrunk := re.fullmatch(r"(\w+)_max_side_(\d+)((/.*)?)", name):
        command = f"python prepare.py {shrunk[1]}{shrunk[3]} --max_side={shrunk[2]}"
        return FileNotFoundError(f"dataset {name!r} is not prepared in {there}: run `{command}`, or set data_dir")
    if name.split("/")[0].split(":")[0] not in tfds.list_builders(with_community_datasets=False):
        known = ["digits", "synthetic", "image_folder:/path", *prepared, *TFDS_NAMES]
        nearest = [other for other in known if other.startswith(name)] or difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(nearest[:3])}?" if nearest else f"use {', '.join(known[:3])} or one of TFDS."
        return ValueError(f"unknown dataset {name!r}: {hint} TFDS datasets are read from {there}")
    if name.startswith("imagenet2012"):
        return FileNotFoundError(
            f"dataset {name!r} is not prepared in {there}: get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar "
            "from image-net.org and run `python prepare.py imagenet2012 --archive=ILSVRC2012_img_train.tar "
            "--archive=ILSVRC2012_img_val.tar`, or use --config.dataset=image_folder:/path"
        )
    return FileNotFoundError(
        f"dataset {name!r} is not prepared in {there}: run `python prepare.py {name}`, or set data_dir"
    )
