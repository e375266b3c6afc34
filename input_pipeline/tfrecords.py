"""TFRecord files, read in any order: an index of where their records begin, built once and kept; checksums checked.

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
    """The records of TFRecord files, bytes, by their number; readable from any thread.

    Args:
      instructions: which records of which files, as TFDS's split infos have them: filename, skip, take and
        examples_in_shard.

    Raises:
      ValueError: a file is damaged, or holds another number of records than examples_in_shard.
      OSError: a file cannot be read.
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
          ValueError: the data do not fit their checksum.
          OSError: the file cannot be read.
        """
        file = bisect.bisect_right(self._ends, record)
        instruction = self._instructions[file]
        position = instruction.skip + instruction.take - (self._ends[file] - record)
        first, last = (int(offset) for offset in self._offsets[file][position : position + 2])
        # Opened anew each time, 10 microseconds: a split of 1,024 files would use up the open files of a process.
        with open(instruction.filename, "rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), last - first - _HEADER.size - _FOOTER.size, first + _HEADER.size)
            checksum = os.pread(stream.fileno(), _FOOTER.size, last - _FOOTER.size)
        if checksum != _FOOTER.pack(masked_crc32c(data)):
            raise ValueError(f"the checksum of the record at byte {first} of {instruction.filename} is wrong")
        return data


def masked_crc32c(data: bytes) -> int:
    """Returns the CRC-32C (Castagnoli) of data as TFRecord files store it, rotated and shifted."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_offsets(paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Finds where records begin, by the index beside the files or, where that folder is read-only, in CACHE_DIR.

    The index is extended by files that are new or have another size or time of change.

    Args:
      paths: TFRecord files of one folder.

    Returns:
      A map from each path to int64 (records + 1,): the byte where each record begins, and the file's end.

    Raises:
      ValueError: a file is damaged: its records do not follow each other, or a length does not fit its checksum.
      OSError: a file cannot be read.
    """
    folder = Path(paths[0]).absolute().parent
    cached = CACHE_DIR.expanduser() / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}-{INDEX_NAME}"
    index: dict[str, np.ndarray] = {}
    for place in (cached, folder / INDEX_NAME):
        # A damaged index is built again.
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
    """Writes the index to the first place that can be written; without one, it is built again next time."""
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
