"""Reads records of TFRecord files in any order, by a stored index of their offsets, and checks their checksums.

The format (tensorflow.org/tutorials/load_data/tfrecord): the data's length, uint64; its masked CRC-32C, uint32; the
data; their masked CRC-32C, uint32; all little-endian.
"""

import bisect
import contextlib
import hashlib
import itertools
import os
import struct
import uuid
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np

from input_pipeline.files import printable

INDEX_NAME = "record_offsets.npz"
CACHE_DIR = Path("~/.cache/convnets/tfrecords")
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")


class TFRecords:
    """The records of TFRecord files, as bytes, by their number; any thread may read them.

    Args:
      instructions: from TFDS's split infos; each says which records of which file: filename, skip, take and
        examples_in_shard.

    Raises:
      ValueError: if a file is damaged, or its number of records is not examples_in_shard.
      OSError: if a file cannot be read.
    """

    def __init__(self, instructions: Sequence):
        offsets = record_offsets([instruction.filename for instruction in instructions])
        for instruction in instructions:
            found = len(offsets[instruction.filename]) - 1
            if found != instruction.examples_in_shard:
                raise ValueError(
                    f"{instruction.filename} holds {found} records instead of {instruction.examples_in_shard}"
                )
        self._instructions = instructions
        self._offsets = [offsets[instruction.filename] for instruction in instructions]
        self._ends = list(itertools.accumulate(instruction.take for instruction in instructions))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, record: int) -> bytes:
        """Returns a record's data.

        Raises:
          ValueError: if the data do not match their checksum.
          OSError: if the file cannot be read.
        """
        file = bisect.bisect_right(self._ends, record)
        instruction = self._instructions[file]
        position = instruction.skip + instruction.take - (self._ends[file] - record)
        first, last = (int(offset) for offset in self._offsets[file][position : position + 2])
        # The file is opened for each record, which takes 10 microseconds: keeping all 1,024 files of a split open would
        # reach the limit on a process's open files.
        with open(instruction.filename, "rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), last - first - _HEADER.size - _FOOTER.size, first + _HEADER.size)
            checksum = os.pread(stream.fileno(), _FOOTER.size, last - _FOOTER.size)
        if checksum != _FOOTER.pack(masked_crc32c(data)):
            raise ValueError(f"the checksum of the record at byte {first} of {instruction.filename} is wrong")
        return data


def masked_crc32c(data: bytes) -> int:
    """Returns the masked CRC-32C (Castagnoli) of data, as TFRecord files store it: rotated, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_offsets(paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the offsets of the records in TFRecord files, from a stored index if it covers the files.

    The index is stored beside the files or, if that folder is read-only, in CACHE_DIR. A file is read again if its size
    or modification time differs from the index.

    Args:
      paths: TFRecord files of one folder.

    Returns:
      A dict from each path to int64 (records + 1,): the byte where each record begins, and the file's end.

    Raises:
      ValueError: if a file is damaged: a length does not match its checksum, or the last record is incomplete.
      OSError: if a file cannot be read.
    """
    folder = Path(paths[0]).absolute().parent
    cached = CACHE_DIR.expanduser() / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}-{INDEX_NAME}"
    index: dict[str, np.ndarray] = {}
    for place in (cached, folder / INDEX_NAME):
        # A damaged index is ignored and built again.
        with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile), np.load(place) as file:
            index |= dict(file)
    stamps = {path: (os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths}
    missing = [path for path in paths if tuple(index.get(os.path.basename(path), ())[:2]) != stamps[path]]
    if missing:
        print(printable(f"indexing {len(missing)} TFRecord files of {folder}"), flush=True)
        # The threads wait for the disk: of each record only its length is read.
        with ThreadPoolExecutor(32) as pool:
            for path, offsets in zip(missing, pool.map(_scan, missing), strict=True):
                index[os.path.basename(path)] = np.array([*stamps[path], *offsets], np.int64)
        _keep(index, [folder / INDEX_NAME, cached])
    return {path: index[os.path.basename(path)][2:] for path in paths}


def _scan(path: str) -> list[int]:
    offsets, size = [0], os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while offsets[-1] < size:
            header = os.pread(file.fileno(), _HEADER.size, offsets[-1])
            length, checksum = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, None)
            if checksum != masked_crc32c(header[:8]):
                raise ValueError(f"{path} is no TFRecord file, or damaged, at byte {offsets[-1]}")
            offsets.append(offsets[-1] + _HEADER.size + length + _FOOTER.size)
    if offsets[-1] != size:
        raise ValueError(f"{path} is truncated: its record at byte {offsets[-2]} ends after the file")
    return offsets


def _keep(index: dict[str, np.ndarray], places: Sequence[Path]) -> None:
    """Writes the index to the first of the places that is writable; if none is, the next run builds it again."""
    for place in places:
        temporary = place.with_name(f".{uuid.uuid4().hex}.npz")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            np.savez(temporary, allow_pickle=False, **index)
            temporary.replace(place)
            return
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
