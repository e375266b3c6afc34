"""Writes splits in TFDS's format: the order of the records, the shrunk images and the ArrayRecord files."""

import collections
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorflow_datasets.core import example_serializer, hashing, naming
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline.decoding import open_image, pillow_box
from input_pipeline.files import MAX_IMAGE_PIXELS, printable
from input_pipeline.stored_datasets import open_records

SAMPLES = 100  # records whose mean size gives the number of files, if a split's size in bytes is unknown

Example = dict[str, Any]


class Split(NamedTuple):
    """A split to write.

    Attributes:
      load: maps a record's position to the record, a serialized tf.train.Example; called from several threads.
      size: number of records.
      num_bytes: bytes of all records; 0 if unknown.
    """

    load: Callable[[int], bytes]
    size: int
    num_bytes: int = 0


def shuffled(
    builder: tfds.core.DatasetBuilder,
    split: str,
    keys: Sequence[str | int],
    example: Callable[[int], Example],
    image_bytes: int = 0,
) -> Split:
    """Returns a split in TFDS's order, sorted by the hashes of the keys (tensorflow-datasets, core/hashing.py).

    Raises:
      ValueError: if two examples have the same key.
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
    if image_bytes:  # the other features of each record take about the same number of bytes
        num_bytes = image_bytes + len(keys) * (len(load(0)) - len(example(order[0])["image"]))
    return Split(load, len(keys), num_bytes)


def prepared_split(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    """Returns a split that is prepared already, in its stored order."""
    records = open_records(builder, split)
    return Split(records.__getitem__, len(records), builder.info.splits[split].num_bytes)


def shrunk(split: Split, max_side: int, quality: int, max_pixels: int = MAX_IMAGE_PIXELS) -> Split:
    """Returns the split with all images shrunk whose longer side has more than max_side pixels.

    An image of more than max_pixels counts as damaged.
    """

    def load(position: int) -> bytes:
        record = tf_example_pb2.Example.FromString(split.load(position))
        value = record.features.feature["image"].bytes_list.value
        try:
            value[0] = shrink(value[0], max_side, quality, max_pixels)
        except ValueError as error:
            name = os.fsdecode(b"".join(record.features.feature["file_name"].bytes_list.value)) or f"record {position}"
            raise ValueError(f"{printable(name)} is damaged: {error}; replace or remove it") from error
        return record.SerializeToString(deterministic=True)

    return Split(load, split.size)


def shrink(encoded: bytes, max_side: int, quality: int, max_pixels: int = MAX_IMAGE_PIXELS) -> bytes:
    """Shrinks an image so that its longer side is max_side; returns a smaller image file unchanged, byte for byte.

    Args:
      encoded: an image file that Pillow can read.
      max_side: the longest side, pixels.
      quality: quality of the JPEG, 1 to 95.
      max_pixels: an image of more pixels is refused before it is decoded.

    Returns:
      A JPEG file, or a PNG file if the image was not a JPEG.

    Raises:
      ValueError: if the image cannot be decoded.
    """
    with open_image(encoded, max_pixels) as image:
        if max(image.size) <= max_side:
            return encoded
        jpeg = image.format in ("JPEG", "MPO")
        orientation = image.getexif().get(0x0112)
        if not jpeg and image.mode not in ("L", "RGB"):
            # Indices into a palette cannot be averaged. convert("RGB") would take a second image's memory.
            image.load()
            image = Image.fromarray(pillow_box(image, (0, 0, image.height, image.width), 3, max_side))
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        exif = Image.Exif()
        if orientation:  # kept, because the option exif_orientation needs it
            exif[0x0112] = orientation
        if not jpeg:
            return encode(image, "PNG", exif=exif)
        return encode(image.convert("RGB") if image.mode == "CMYK" else image, "JPEG", quality=quality, exif=exif)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Returns an image as the bytes of a file of the kind 'JPEG' or 'PNG', with Pillow's options."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(builder: tfds.core.DatasetBuilder, splits: dict[str, Split]) -> None:
    """Writes the splits and then their description into a temporary folder, and renames the folder when it is complete.

    Raises:
      OSError: if the disk is full.
    """
    folder = builder.data_path
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):  # left by a preparation that was killed
        shutil.rmtree(leftover)
    with tfds.core.utils.incomplete_dir(str(folder)) as temporary, show_progress() as progress:
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
        writer = ArrayRecordWriter(str(path), "group_size:1")  # as TFDS does: records are read one by one
        for record in itertools.islice(records, last - first):
            writer.write(record)
            written += len(record)
            progress.advance(task)
        writer.close()
    lengths = [last - first for first, last in itertools.pairwise([0, *ends])]
    return tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=written, filename_template=template)


def _load_ahead(split: Split) -> Iterator[bytes]:
    """Yields the records in order; a few threads load them in advance."""
    threads = (os.cpu_count() or 1) + 1
    with ThreadPoolExecutor(threads) as pool:
        ahead: collections.deque[Future[bytes]] = collections.deque()
        for position in range(split.size):
            ahead.append(pool.submit(split.load, position))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def show_progress() -> Progress:
    """Returns a display with a progress bar for each task, its share done and the remaining time."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
