"""Opens datasets by name. A dataset that can be downloaded automatically is downloaded and prepared at first use."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.dataset import Dataset, held_out_records, held_out_split
from input_pipeline.files import is_remote, printable
from input_pipeline.image_folder import open_image_folder
from input_pipeline.remote import copied_folder
from input_pipeline.stored_datasets import default_data_dir, not_prepared, open_builder, open_stored_dataset

SYNTHETIC_IMAGES = 64


def load_dataset(config: ConfigDict, split: str) -> Dataset:
    """Opens a split of the dataset that config.dataset names.

    Names: 'digits' (part of scikit-learn), 'synthetic' (random pixels), 'image_folder:/path' (a folder of images for
    each class), and every dataset that prepare.py or TFDS has prepared, as ArrayRecord or TFRecord, in config.data_dir
    ('imagenet2012', 'imagenette/160px-v2', ...). Datasets that can be downloaded are prepared at first use. What lies
    in an object store (s3://bucket/folder for /path or data_dir) is copied to config.remote_cache_dir at first use.

    Args:
      config: dataset, data_dir, remote_cache_dir, remote_timeout_seconds, train_split, eval_split, validation_share,
        split_seed, image_size, channels, num_classes, synthetic_examples.
      split: 'train' or 'eval' for the split that the config chooses, or the name of a split.

    Returns:
      The dataset, with at least one record.

    Raises:
      ValueError: if the name or the split is unknown, or the records are not labelled images.
      OSError: if the dataset is neither prepared nor can be downloaded, or one of its files is missing.
    """
    split = {"train": config.train_split, "eval": config.eval_split}.get(split) or split
    if config.dataset == "digits":
        return _digits(config, split)
    if config.dataset == "synthetic":
        return _synthetic(config, split)
    if config.dataset.startswith("image_folder:"):
        return open_image_folder(
            image_folder(config),
            split,
            validation_share=config.validation_share,
            split_seed=config.split_seed,
            max_image_pixels=config.max_image_pixels,
        )
    if is_remote(config.dataset):
        raise ValueError(
            f"dataset {config.dataset!r} is remote; give dataset=image_folder:{config.dataset} for class folders, or "
            "the name of a dataset of TFDS, with data_dir=URL for the folder that has it"
        )
    remote = config.data_dir or os.environ.get("TFDS_DATA_DIR") or ""
    if is_remote(remote):
        name = config.dataset.replace(":", "/")
        data_dir = copied_folder(remote, config.remote_cache_dir, config.remote_timeout_seconds, name)
        if builder := open_builder(config.dataset, data_dir):
            return open_stored_dataset(builder, config.dataset, split)
        raise not_prepared(config.dataset, data_dir)
    data_dir = default_data_dir(config.data_dir)
    folder = Path(config.dataset).expanduser()
    if folder.is_dir() and (folder.is_absolute() or not (data_dir / folder).is_dir()):
        raise ValueError(f"dataset {config.dataset!r} is a folder; give --config.dataset=image_folder:{config.dataset}")
    builder = open_builder(config.dataset, data_dir) or _fetch(config.dataset, data_dir)
    return open_stored_dataset(builder, config.dataset, split)


def image_folder(config: ConfigDict) -> str:
    """Returns the path of dataset=image_folder:/path; of a URL the path of its copy, which is made at first use."""
    place = config.dataset.removeprefix("image_folder:")
    if is_remote(place):
        return str(copied_folder(place, config.remote_cache_dir, config.remote_timeout_seconds))
    return place


def _fetch(name: str, data_dir: Path) -> Any:
    """Downloads and prepares a dataset and returns its builder, or raises an error that says how to get it."""
    from input_pipeline import preparation  # imported only here, because it imports all of TFDS

    if not preparation.fetchable(name):
        raise not_prepared(name, data_dir)
    print(printable(f"dataset {name} is not in {data_dir} yet"), flush=True)
    preparation.prepare(name, data_dir=str(data_dir))
    return open_builder(name, data_dir)


def _digits(config: ConfigDict, split: str) -> Dataset:
    from PIL import Image

    split = held_out_split("digits", split)
    pixels, labels = _read_digits()
    records = held_out_records("digits", split, len(labels), config.validation_share, config.split_seed)
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


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns what sklearn.datasets.load_digits returns: pixels from 0 to 16, (N, 64), and labels, (N,).

    The file is read without importing scikit-learn, because the import takes as long as several epochs.
    """
    package = importlib.util.find_spec("sklearn")
    if not (package and package.submodule_search_locations):
        raise ModuleNotFoundError("the dataset digits is part of scikit-learn; run pip install scikit-learn")
    table = np.loadtxt(Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz", delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)


def _synthetic(config: ConfigDict, split: str) -> Dataset:
    """Returns a dataset that repeats SYNTHETIC_IMAGES random images.

    With at most that many classes each class has its own image, so that a network can learn them.
    """
    num_classes = config.num_classes or 1000
    shape = min(num_classes, SYNTHETIC_IMAGES), config.image_size, config.image_size, config.channels
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Dataset(
        name="synthetic",
        split=held_out_split("synthetic", split),
        class_names=tuple(str(label) for label in range(num_classes)),
        size=config.synthetic_examples,
        read=lambda record: (images[record % num_classes % len(images)], record % num_classes),
        describe=lambda record: f"record {record}",
        needs_transform=False,
    )
