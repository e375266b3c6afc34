"""Writes datasets from their archives as ArrayRecord files in TFDS's layout, without TensorFlow.

TFDS's own builders need TensorFlow to read archives and to shuffle more than a gigabyte. Here they only give the name,
the version, the features and the folder. The records, their order and the files are the same as TFDS's.
"""

import contextlib
import fcntl
import io
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming, registered

from input_pipeline.archives import MAX_BYTES, members
from input_pipeline.files import MAX_IMAGE_PIXELS, local_path, printable, read_file
from input_pipeline.image_folder import FolderSplit, find_images
from input_pipeline.official_archives import EXAMPLES, READERS, find_archives
from input_pipeline.record_files import Example, Split, prepared_split, shrunk, shuffled, write
from input_pipeline.stored_datasets import default_data_dir, not_prepared, open_builder, open_records


def fetchable(name: str) -> bool:
    """Whether a dataset can be downloaded and prepared automatically, without an account or an archive."""
    return re.split("[/:]", name)[0] in set(READERS) - {"imagenet2012"}


def prepare(
    name: str,
    archives: Sequence[str] = (),
    data_dir: str | None = None,
    max_side: int = 0,
    quality: int = 90,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> None:
    """Writes a dataset into data_dir, and prints its progress.

    The dataset's folder appears only when it is complete. Downloads are kept, and interrupted ones are continued.

    Args:
      name: name of the dataset in TFDS ('cifar10', 'imagenette/160px-v2'), or a folder of images in class folders.
      archives: the dataset's archives, files or folders; if empty, they are downloaded.
      data_dir: the folder of TFDS's datasets; None: $TFDS_DATA_DIR or ~/tensorflow_datasets.
      max_side: the longest side that an image may have, in pixels; larger images are shrunk, and the name of the
        dataset becomes NAME_max_side_N. 0: all images are stored unchanged.
      quality: quality of the JPEG files that max_side writes, 1 to 95.
      max_pixels: the largest height times width of an image that max_side decodes.

    Raises:
      ValueError: if the dataset is unknown or needs TensorFlow, or an archive has the wrong content.
      OSError: if an archive cannot be found, downloaded or read, or the disk is full.
    """
    for path in (name, *archives):
        local_path(path)  # refuses what is remote before anything is written
    data_dir = default_data_dir(data_dir)
    downloads = data_dir / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    with _ending_on_signals(), _exclusive_lock(downloads), contextlib.ExitStack() as stack:
        scratch = downloads / "decompressed"
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        builder, read_splits = _source(name, archives, data_dir, scratch)
        if max_side:
            builder = _own_builder(f"{builder.name}_max_side_{max_side}", data_dir, like=builder)
        if builder.data_path.exists():
            _check_prepared(builder, read_splits if _is_folder(name) else None)
        else:
            try:
                splits = read_splits()
                if max_side:
                    splits = {
                        split: shrunk(records, max_side, quality, max_pixels) for split, records in splits.items()
                    }
                write(builder, splits)
            except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises RuntimeError for every failure
                if "No space left" in str(error):
                    error = f"the disk is full: make room in {data_dir}, and run the same command again"
                raise OSError(str(error)) from None
    found = {split: info.num_examples for split, info in builder.info.splits.items()}
    print(printable(f"{builder.info.full_name} is in {builder.data_path}: {_counts(found)} images"))
    official = EXAMPLES.get(name.split(":")[0], {})
    if any(found.get(split) != size for split, size in official.items()):
        print(f"note: the official archives hold {_counts(official)} images")


def _is_folder(name: str) -> bool:
    return re.split("[/:]", name)[0] not in READERS and local_path(name).is_dir()


def _check_prepared(builder: tfds.core.DatasetBuilder, read_splits: Callable[[], dict[str, Split]] | None) -> None:
    """Says that a dataset is there already; raises an error if a file of it is missing, or the folder has changed."""
    print(printable(f"{builder.data_path} is there already and stays as it is; to prepare it again, remove it"))
    for split in builder.info.splits:
        open_records(builder, split)
    if read_splits:
        found = {split: info.num_examples for split, info in builder.info.splits.items()}
        sizes = {split: records.size for split, records in read_splits().items()}
        stored = (builder.data_path / "label.labels.txt").read_text().split("\n")
        if list(filter(None, stored)) != builder.info.features["label"].names:
            raise ValueError(
                f"{builder.data_path} has other classes than the folder: remove the first, or give the folder "
                "another name"
            )
        if found != sizes:
            raise ValueError(
                f"{builder.data_path} has {_counts(found)} images, and the folder {_counts(sizes)}: remove the "
                "first, or give the folder another name"
            )


def _source(
    name: str, archives: Sequence[str], data_dir: Path, scratch: Path
) -> tuple[tfds.core.DatasetBuilder, Callable[[], dict[str, Split]]]:
    """Returns the builder of a dataset, and a function that returns its splits."""
    known = re.split("[/:]", name)[0] in READERS
    if archives and not known:
        raise ValueError(f"--archive is for {', '.join(READERS)}, not for {name!r}; see docs/data.md")
    if _is_folder(name):
        return _folder(local_path(name), data_dir)
    prepared = open_builder(name, data_dir)
    if not prepared and not known:
        _prepare_by_tfds(name, data_dir)
        prepared = open_builder(name, data_dir)
    if prepared:
        stored: Any = prepared
        return stored, lambda: {split: prepared_split(stored, split) for split in stored.info.splits}
    builder = _tfds_builder(name, data_dir)

    def read_splits() -> dict[str, Split]:
        paths = [local_path(archive) for archive in archives] or find_archives(builder, data_dir / "downloads")
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f"there is no archive {path}")
        print(printable(f"preparing {builder.info.full_name} from {', '.join(map(str, paths))}"), flush=True)
        splits = READERS[builder.name](builder, [file for path in paths for file in members(path, scratch)])
        if not splits:
            raise ValueError(f"there are no images of {name} in {', '.join(map(str, paths))}; see docs/data.md")
        return splits

    return builder, read_splits


def _counts(sizes: dict[str, int]) -> str:
    return " and ".join(f"{size:,} {split}" for split, size in sizes.items())


def _tfds_builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns TFDS's own builder without its checksums, which need a package that TFDS 4.9.10 does not install."""
    dataset, options = naming.parse_builder_name_kwargs(name)
    parent = tfds.builder_cls(dataset.name)
    configs = [config.name for config in parent.BUILDER_CONFIGS]
    if options.get("config") and options["config"] not in configs:
        raise ValueError(f"there is no {name!r}: choose one of {', '.join(f'{dataset.name}/{c}' for c in configs)}")
    if options.get("version", parent.VERSION) != parent.VERSION:
        raise ValueError(f"{dataset.name} is prepared in version {parent.VERSION}: leave the version out of {name!r}")
    attributes = {"name": dataset.name, "__module__": parent.__module__, "url_infos": None}
    with registered.skip_registration():
        builder_class = type(parent.__name__, (parent,), attributes)
    return builder_class(data_dir=str(data_dir), file_format="array_record", **options)


def _own_builder(
    name: str, data_dir: Path, features: Any = None, like: tfds.core.DatasetBuilder | None = None
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a dataset that TFDS does not have, with the given features or those of `like`."""
    config = like.builder_config.name if like and like.builder_config else None
    features = like.info.features if like else features
    attributes = {
        "name": name,
        "VERSION": like.version if like else tfds.core.Version("1.0.0"),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
        "url_infos": None,
        "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=features),
        "_split_generators": None,
        "_generate_examples": None,
    }
    with registered.skip_registration():
        builder_class = type("Prepared", (tfds.core.GeneratorBasedBuilder,), attributes)
    return builder_class(data_dir=str(data_dir), config=config, file_format="array_record")


def _prepare_by_tfds(name: str, data_dir: Path) -> None:
    """Prepares one of TFDS's other datasets by TFDS's own code."""
    if re.split("[/:]", name)[0] not in tfds.list_builders(with_community_datasets=False):
        raise not_prepared(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        if not {"image", "label"} <= set(builder.info.features):
            raise ValueError(
                f"dataset {name!r} has features {', '.join(builder.info.features)}: 'image' and 'label' are needed"
            )
        skip = tfds.download.ComputeStatsMode.SKIP
        with contextlib.redirect_stdout(io.StringIO()):  # hides TFDS's long advice on how to install TensorFlow
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(compute_stats=skip))
    except ImportError as error:
        raise ValueError(
            f"TFDS needs a library to prepare {name!r} that is not installed ({error.name}): prepare it with "
            "`tfds build` where TensorFlow is; its TFRecord files are read as they are"
        ) from error


def _folder(folder: Path, data_dir: Path) -> tuple[tfds.core.DatasetBuilder, Callable[[], dict[str, Split]]]:
    """Returns the builder and the splits of a folder of class folders; the splits are those of image_folder:FOLDER."""
    name = re.sub(r"\W+", "_", folder.resolve().name).strip("_").lower()
    if not name[:1].isalpha() or name in tfds.list_builders(with_community_datasets=False):
        raise ValueError(
            f"{folder} would become the dataset {name!r}: rename the folder, so that it begins with a letter and "
            "has no name of TFDS's"
        )
    found = [find_images(folder, split) for split in ("train", "eval")]
    class_folders = found[0].class_folders
    for class_folder in class_folders:
        if class_folder != class_folder.strip() or re.search("[\n\r\udc80-\udcff]", class_folder):
            raise ValueError(
                f"TFDS cannot store the name of the class folder {class_folder!r}: rename it, without newlines, spaces "
                f"at its ends and bytes that are not UTF-8, or read it by --config.dataset=image_folder:{folder}"
            )
    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=class_folders),
        }
    )
    builder = _own_builder(name, data_dir, features)

    def split(images: FolderSplit) -> Split:
        def example(position: int) -> Example:
            file = images.files[position]
            file_name = os.fsencode(os.path.relpath(file, folder))
            return {"file_name": file_name, "image": read_file(file, MAX_BYTES), "label": images.labels[position]}

        return shuffled(builder, images.kind, range(len(images.files)), example)

    return builder, lambda: {images.kind: split(images) for images in found}


@contextlib.contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Holds a lock while a dataset is prepared in the folder; the system releases the lock of a killed process."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(printable(f"waiting for another process that prepares a dataset in {folder.parent}"), flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Makes SIGINT and SIGTERM end the preparation immediately with clean-up, even inside a training run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)),
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
