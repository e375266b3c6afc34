"""Opens datasets in TFDS's format, of any version, and reads ArrayRecord and TFRecord files without TensorFlow."""

import bisect
import difflib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input_pipeline.class_names import in_words
from input_pipeline.dataset import Dataset
from input_pipeline.files import local_path, printable

TFDS_NAMES = (
    "beans", "caltech101", "cats_vs_dogs", "cifar10", "cifar100", "fashion_mnist", "food101", "imagenet2012",
    "imagenet_a", "imagenet_r", "imagenet_v2", "imagenette", "imagewang", "kmnist", "mnist", "oxford_flowers102",
    "oxford_iiit_pet", "stanford_dogs", "svhn_cropped", "tf_flowers",
)  # fmt: skip
"""TFDS's image classification datasets that are suggested for a misspelled name; its other datasets work as well."""


def default_data_dir(data_dir: str | None) -> Path:
    """Returns where TFDS's datasets lie: data_dir, or $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return local_path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def open_stored_dataset(builder: Any, name: str, split: str) -> Dataset:
    """Opens a split of a prepared dataset.

    Args:
      builder: from `open_builder`.
      name: the value of config.dataset.
      split: name of the split, a slice such as 'train[:90%]', or 'eval' for validation (test if there is none).

    Returns:
      The dataset, with at least one record.

    Raises:
      FileNotFoundError: if a file of the split is missing.
      ValueError: if the split does not exist, a file is damaged, or the records are not labelled images.
    """
    import tensorflow_datasets as tfds

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
        except (ValueError, OSError):  # expected, because damaged records are described
            file = b""
        return records.describe(record) + (f", file {printable(os.fsdecode(file))}" if file else "")

    try:
        labelled = len(records) > 0 and 0 <= read(0)[1] < len(class_names)
    except ValueError:
        labelled = True  # if this record is damaged, the error is raised when the record is read
    if not labelled:
        raise ValueError(f"split {split!r} of dataset {name!r} has no labelled images: choose one of {splits}")
    return Dataset(name, split, class_names, len(records), read, describe)


def open_builder(name: str, data_dir: Path) -> Any:
    """Returns TFDS's builder for a dataset that is prepared in data_dir, in any version; None if there is none."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        # Opened by its files and not by the dataset's code, so that every version works.
        return read_only_builder.builder_from_files(name, data_dir=str(data_dir))
    except (tfds.core.DatasetNotFoundError, ValueError):
        return None


def open_records(builder: Any, split: str) -> "Records":
    """Opens a split of a prepared dataset, stored as ArrayRecord or TFRecord.

    Args:
      builder: from `open_builder`.
      split: name of the split, or a slice such as 'train[:90%]'.

    Returns:
      The serialized examples.

    Raises:
      ValueError: if the split does not exist, has another format, or a file is damaged.
      FileNotFoundError: if a file of the split is missing.
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


class Records:
    """The serialized examples of a split, and the files that hold them."""

    def __init__(self, source: Any, files: Sequence[Any]):
        self._source = source
        self._files = files
        self._ends = list(itertools.accumulate(file.take for file in files))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, record: int) -> bytes:
        """Returns a record's bytes.

        Raises:
          ValueError: if the record is damaged.
          OSError: if the file cannot be read.
        """
        try:
            return self._source[record]
        except RuntimeError as error:  # ArrayRecord raises it for all failures, except TypeError for truncated files
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
    """Returns the error for a dataset that is not in data_dir; it says how to get it, or suggests similar names."""
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
