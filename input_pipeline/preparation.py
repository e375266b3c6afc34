"""Writes datasets as ArrayRecord in TFDS's layout, without TensorFlow, from the archives that they come in.

TFDS's own builders read archives by TensorFlow, and its shuffling of more than a gigabyte needs it too. Here they give
the name, the version, the features and the folder; the records, their order and their files become the same.
"""

import collections
import contextlib
import fcntl
import functools
import io
import itertools
import os
import re
import shutil
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorflow_datasets.core import example_serializer, hashing, naming, registered
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.proto import tf_example_pb2

from configs import base
from input_pipeline import class_names
from input_pipeline.archives import Member, download, members, tar_members
from input_pipeline.datasets import default_data_dir, load_dataset, not_prepared, open_builder, open_records

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
"""How many examples the official archives hold, as TFDS's catalog has them."""

SAMPLES = 100  # records whose mean size tells how many files a split needs, where nothing else does

Example = dict[str, Any]


class Split(NamedTuple):
    """A split that is to be written.

    Attributes:
      load: from a record's position to the record, a serialized tf.train.Example; called from several threads.
      size: number of records.
      num_bytes: of all records; 0: not known before.
    """

    load: Callable[[int], bytes]
    size: int
    num_bytes: int = 0


def fetchable(name: str) -> bool:
    """Whether a dataset can be downloaded and prepared without being asked for anything."""
    return name.split("/")[0] in _READERS and not name.startswith("imagenet2012")


def prepare(
    name: str, archives: Sequence[str] = (), data_dir: str | None = None, max_side: int = 0, quality: int = 90
) -> None:
    """Writes a dataset into data_dir, and prints what it does.

    Nothing is seen of it before it is whole. Downloads are kept, and continued.

    Args:
      name: of the dataset in TFDS ('cifar10', 'imagenette/160px-v2'), or a folder of images in class folders.
      archives: the files or folders that it comes in; without any, they are downloaded.
      data_dir: where TFDS's datasets lie; None: ~/tensorflow_datasets.
      max_side: the longest side that an image may have, in pixels; larger ones are shrunk, and the dataset is called
        NAME_max_side_N. 0: all images stay as they are.
      quality: of the JPEG files that max_side writes, 1 to 95.

    Raises:
      ValueError: the dataset is unknown or needs TensorFlow, or an archive is not what it should be.
      OSError: an archive cannot be found, downloaded or read; the disk is full.
    """
    data_dir = default_data_dir(data_dir)
    downloads = data_dir / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    with _ending_on_signals(), _alone(downloads), contextlib.ExitStack() as stack:
        scratch = downloads / "decompressed"
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        builder, read_splits = _source(name, archives, data_dir, scratch)
        if max_side:
            builder = _own_builder(f"{builder.name}_max_side_{max_side}", data_dir, like=builder)
        if not builder.data_path.exists():
            try:
                splits = read_splits()
                if max_side:
                    splits = {split: _shrunk(records, max_side, quality) for split, records in splits.items()}
                _write(builder, splits)
            except (OSError, RuntimeError) as error:  # ArrayRecord's writer has no other exception
                if "No space left" in str(error):
                    error = f"the disk is full: make room in {data_dir}, and run the same command again"
                raise OSError(str(error)) from None
    found = {split: info.num_examples for split, info in builder.info.splits.items()}
    print(f"{builder.info.full_name} is in {builder.data_path}: {_in_words(found)} images")
    official = EXAMPLES.get(name.split(":")[0], {})
    if any(found.get(split) != size for split, size in official.items()):
        print(f"note: the official archives hold {_in_words(official)} images")


def _source(
    name: str, archives: Sequence[str], data_dir: Path, scratch: Path
) -> tuple[tfds.core.DatasetBuilder, Callable[[], dict[str, Split]]]:
    """Returns the builder of a dataset, and the function that finds its splits."""
    known = name.split("/")[0].split(":")[0] in _READERS
    if Path(name).expanduser().is_dir() and not known:
        return _folder(Path(name).expanduser(), data_dir)
    prepared = open_builder(name, data_dir)
    if not prepared and not known:
        _prepare_by_tfds(name, data_dir)
        prepared = open_builder(name, data_dir)
    if prepared:
        return prepared, lambda: {split: _prepared_split(prepared, split) for split in prepared.info.splits}
    builder = _tfds_builder(name, data_dir)

    def read_splits() -> dict[str, Split]:
        paths = [Path(archive).expanduser() for archive in archives] or _archives(builder, data_dir / "downloads")
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f"there is no archive {path}")
        print(f"preparing {builder.info.full_name} from {', '.join(map(str, paths))}", flush=True)
        splits = _READERS[builder.name](builder, [file for path in paths for file in members(path, scratch)])
        if not splits:
            raise ValueError(f"there are no images of {name} in {', '.join(map(str, paths))}; see docs/data.md")
        return splits

    return builder, read_splits


def _in_words(sizes: dict[str, int]) -> str:
    return " and ".join(f"{size:,} {split}" for split, size in sizes.items())


# Builders: the name, the version, the features and the folder


def _tfds_builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns TFDS's own builder, which looks for no checksums: that needs more than TFDS 4.9.10 installs."""
    dataset, options = naming.parse_builder_name_kwargs(name)
    parent = tfds.builder_cls(dataset.name)
    configs = [config.name for config in parent.BUILDER_CONFIGS]
    if options.get("config") and options["config"] not in configs:
        raise ValueError(f"there is no {name!r}: choose one of {', '.join(f'{dataset.name}/{c}' for c in configs)}")
    attributes = {"name": dataset.name, "__module__": parent.__module__, "url_infos": None}
    with registered.skip_registration():
        builder_class = type(parent.__name__, (parent,), attributes)
    return builder_class(data_dir=str(data_dir), file_format="array_record", **options)


def _own_builder(
    name: str, data_dir: Path, features: Any = None, like: tfds.core.DatasetBuilder | None = None
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a dataset that TFDS does not know, of its own kind or like another one."""
    config = like.builder_config.name if like and like.builder_config else None
    features = features or like.info.features
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
    """Lets TFDS's own code prepare one of its other datasets."""
    if name.split("/")[0].split(":")[0] not in tfds.list_builders(with_community_datasets=False):
        raise not_prepared(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        if not {"image", "label"} <= set(builder.info.features):
            raise ValueError(
                f"dataset {name!r} has features {', '.join(builder.info.features)}: 'image' and 'label' are needed"
            )
        skip = tfds.download.ComputeStatsMode.SKIP
        with contextlib.redirect_stdout(io.StringIO()):  # it explains at length how to install TensorFlow
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(compute_stats=skip))
    except ImportError as error:
        raise ValueError(
            f"TFDS needs a library to prepare {name!r} that is not installed ({error.name}): prepare it with "
            "`tfds build` where TensorFlow is; its TFRecord files are read as they are"
        ) from error


# Archives


def _archives(builder: tfds.core.DatasetBuilder, downloads: Path) -> list[Path]:
    """Returns a dataset's official archives: downloaded now or before, or put there by hand."""
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
            print(f"downloading {url}, {urls[url].size / 1e6:.0f} MB, to {target}", flush=True)
            with _progress() as progress:
                task = progress.add_task(target.name, total=urls[url].size)
                advance = functools.partial(progress.advance, task)
                download(url, urls[url].size, urls[url].checksum, target, advance)
    return list(targets.values())


def _imagenet(builder: tfds.core.DatasetBuilder, files: Sequence[Member]) -> dict[str, Split]:
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

    validation_labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    not_rgb_jpeg = {*official.CMYK_IMAGES, *official.PNG_IMAGES}
    found = {"train": [], "validation": []}
    for file in _flat(files):
        name = PurePosixPath(file.name).name
        if match := re.fullmatch(r"(n\d{8})_\d+\.JPEG", name):
            found["train"].append((name, match[1], file))
        elif match := re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name):
            found["validation"].append((name, validation_labels[int(match[1]) - 1], file))

    def example(name: str, label: str, file: Member) -> Example:
        image = file.read()
        if name in not_rgb_jpeg:
            image = _encoded(Image.open(io.BytesIO(image)).convert("RGB"), "JPEG", quality=100)
        return {"file_name": name, "image": image, "label": label}

    return _splits_of_files(builder, found, example)


def _flat(files: Sequence[Member]) -> Iterator[Member]:
    """Yields the files, those in tar files among them too."""
    for file in files:
        if file.name.endswith(".tar"):
            yield from _flat(tar_members(file))
        else:
            yield file


def _imagenette(builder: tfds.core.DatasetBuilder, files: Sequence[Member]) -> dict[str, Split]:
    found = {"train": [], "validation": []}
    for file in files:
        *_, folder, label, name = "", "", *PurePosixPath(file.name).parts
        split = {"train": "train", "val": "validation"}.get(folder)
        if split and name.endswith(".JPEG") and not name.startswith("."):
            found[split].append((name, label, file))
    return _splits_of_files(builder, found, lambda name, label, file: {"image": file.read(), "label": label})


def _splits_of_files(
    builder: tfds.core.DatasetBuilder,
    found: dict[str, list[tuple[str, str, Member]]],
    example: Callable[[str, str, Member], Example],
) -> dict[str, Split]:
    """Returns the splits of image files, found as (name, label, file); the name is TFDS's key."""
    return {
        split: _shuffled(
            builder,
            split,
            [name for name, *_ in files],
            lambda position, files=files: example(*files[position]),
            sum(file.size for *_, file in files),
        )
        for split, files in found.items()
        if files
    }


def _cifar(builder: tfds.core.DatasetBuilder, files: Sequence[Member]) -> dict[str, Split]:
    """The binary version: a byte for each label, then 3 x 32 x 32 of pixels."""
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
    """LeCun's idx files: a magic number, the sizes, the bytes."""
    arrays = {"train": {}, "test": {}}
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


def _pixel_split(
    builder: tfds.core.DatasetBuilder, split: str, images: np.ndarray, others: dict[str, Sequence]
) -> Split:
    """Returns a split of uint8 images (N, H, W, 3) or (N, H, W), whose positions are TFDS's keys."""
    encoded = [_encoded(Image.fromarray(image), "PNG") for image in images]

    def example(position: int) -> Example:
        return {"image": encoded[position]} | {name: values[position] for name, values in others.items()}

    return _shuffled(builder, split, range(len(encoded)), example, sum(map(len, encoded)))


def _folder(folder: Path, data_dir: Path) -> tuple[tfds.core.DatasetBuilder, Callable[[], dict[str, Split]]]:
    """A folder of class folders, with the same training and validation images that image_folder:FOLDER has."""
    name = re.sub(r"\W+", "_", folder.resolve().name).strip("_").lower()
    if not name[:1].isalpha() or name in tfds.list_builders(with_community_datasets=False):
        raise ValueError(
            f"{folder} would become the dataset {name!r}: rename the folder, so that it begins with a letter and "
            "has no name of TFDS's"
        )
    config = base.get_config()
    config.dataset = f"image_folder:{folder}"
    datasets = [load_dataset(config, split) for split in ("train", "eval")]
    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=datasets[0].class_names),
        }
    )
    builder = _own_builder(name, data_dir, features)

    def split(dataset) -> Split:
        def example(position: int) -> Example:
            image, label = dataset[position]
            file = dataset.describe(position).partition(", file ")[2]
            return {"file_name": os.path.relpath(file, folder), "image": image, "label": label}

        return _shuffled(builder, split_name(dataset), range(len(dataset)), example)

    def split_name(dataset) -> str:
        return {"val": "validation"}.get(dataset.split, dataset.split)

    return builder, lambda: {split_name(dataset): split(dataset) for dataset in datasets}


# Records


def _shuffled(
    builder: tfds.core.DatasetBuilder,
    split: str,
    keys: Sequence[str | int],
    example: Callable[[int], Example],
    image_bytes: int = 0,
) -> Split:
    """Returns a split in TFDS's order, that of the keys' hashes (tensorflow-datasets, core/hashing.py).

    Raises:
      ValueError: two examples have the same key.
    """
    hasher = hashing.Hasher(split)
    hashes = [hasher.hash_key(key) for key in keys]
    order = sorted(range(len(keys)), key=hashes.__getitem__)
    for first, second in itertools.pairwise(order):
        if hashes[first] == hashes[second]:
            raise ValueError(f"{builder.name}: {keys[first]} is there twice; give each archive once")
    features = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def load(position: int) -> bytes:
        record = serializer.get_tf_example(features.encode_example(example(order[position])))
        return record.SerializeToString(deterministic=True)

    num_bytes = 0
    if image_bytes:  # all other features take about as much in each record
        num_bytes = image_bytes + len(keys) * (len(load(0)) - len(example(order[0])["image"]))
    return Split(load, len(keys), num_bytes)


def _prepared_split(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    """Returns a split that is prepared already, in its order."""
    records = open_records(builder, split)
    return Split(records.__getitem__, len(records), builder.info.splits[split].num_bytes)


def _shrunk(split: Split, max_side: int, quality: int) -> Split:
    """Returns the split with no side of an image longer than max_side pixels."""

    def load(position: int) -> bytes:
        record = tf_example_pb2.Example.FromString(split.load(position))
        value = record.features.feature["image"].bytes_list.value
        try:
            value[0] = shrink(value[0], max_side, quality)
        except (OSError, SyntaxError) as error:
            name = b"".join(record.features.feature["file_name"].bytes_list.value).decode() or f"record {position}"
            raise ValueError(f"{name} cannot be decoded: {error}; replace or remove it") from error
        return record.SerializeToString(deterministic=True)

    return Split(load, split.size)


def shrink(encoded: bytes, max_side: int, quality: int) -> bytes:
    """Shrinks an image so that its longer side is max_side; one that is small enough stays as it is, to the byte.

    Args:
      encoded: an image file that Pillow reads.
      max_side: pixels.
      quality: of the JPEG, 1 to 95.

    Returns:
      A JPEG file, or a PNG file for one that was none.

    Raises:
      OSError: the image cannot be decoded.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if max(image.size) <= max_side:
            return encoded
        jpeg = image.format in ("JPEG", "MPO")
        if not jpeg and image.mode != "L":
            image = image.convert("RGB")  # a palette's colours have no mean
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        if not jpeg:
            return _encoded(image, "PNG")
        return _encoded(image.convert("RGB") if image.mode == "CMYK" else image, "JPEG", quality=quality)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# Files


def _write(builder: tfds.core.DatasetBuilder, splits: dict[str, Split]) -> None:
    """Writes the splits, and then their description, into a temporary folder, and gives it its name.

    Raises:
      OSError: the disk is full.
    """
    folder = builder.data_path
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):  # of a killed preparation
        shutil.rmtree(leftover)
    with tfds.core.utils.incomplete_dir(str(folder)) as temporary, _progress() as progress:
        infos = [_write_split(builder, Path(temporary), *split, progress) for split in splits.items()]
        builder.info.set_splits(tfds.core.splits.SplitDict(infos))
        builder.info.write_to_directory(temporary)


def _write_split(
    builder: tfds.core.DatasetBuilder, folder: Path, name: str, split: Split, progress: Progress
) -> tfds.core.SplitInfo:
    num_bytes = split.num_bytes
    if not num_bytes:
        sample = range(0, split.size, -(-split.size // SAMPLES))
        num_bytes = split.size * sum(len(split.load(position)) for position in sample) // len(sample)
    num_files = shard_utils.ShardConfig().get_number_shards(num_bytes, split.size)
    ends = shard_utils.get_shard_boundaries(split.size, num_files)
    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=builder.name, split=name, filetype_suffix="array_record"
    )
    task = progress.add_task(name, total=split.size)
    records, written = _load_ahead(split), 0
    for number, (first, last) in enumerate(itertools.pairwise([0, *ends])):
        path = template.sharded_filepath(shard_index=number, num_shards=num_files)
        writer = ArrayRecordWriter(str(path), "group_size:1")  # as TFDS does: a record is found without its neighbours
        for record in itertools.islice(records, last - first):
            writer.write(record)
            written += len(record)
            progress.advance(task)
        writer.close()
    lengths = [last - first for first, last in itertools.pairwise([0, *ends])]
    return tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=written, filename_template=template)


def _load_ahead(split: Split) -> Iterator[bytes]:
    """Yields the records in order, loaded by a few threads."""
    threads = (os.cpu_count() or 1) + 1
    with ThreadPoolExecutor(threads) as pool:
        ahead = collections.deque()
        for position in range(split.size):
            ahead.append(pool.submit(split.load, position))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn()
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process prepares a dataset in the folder; one that is killed keeps nobody waiting."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares a dataset in {folder.parent}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end the preparation at once, tidily, also where a training run only notes them."""
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


_READERS = {
    "imagenet2012": _imagenet,
    "imagenette": _imagenette,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "mnist": _mnist,
    "fashion_mnist": _mnist,
}
