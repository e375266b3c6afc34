"""Reads the archives of datasets without unpacking them."""

import dataclasses
import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.files import regular_files

MAX_BYTES = 2**28
"""The most bytes of a file in an archive, an image or CIFAR's pixels, because each file is read into memory whole."""

MAX_COMPRESSION = 50
"""The largest ratio of decompressed to compressed size of a gzip file; MNIST's labels, which compress best, have 2."""

_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A file on the disk or inside an archive.

    Attributes:
      name: path of the file inside the archive or the folder.
      path: path of the file on the disk that holds the bytes.
      offset: position of the first byte in that file.
      size: number of bytes.
    """

    name: str
    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Returns the bytes.

        Raises:
          ValueError: if the archive ends too early, or the file has more than MAX_BYTES.
          OSError: if the archive cannot be read.
        """
        if self.size > MAX_BYTES:
            raise ValueError(f"{self.name} in {self.path} has {self.size:,} bytes, more than {MAX_BYTES:,}: remove it")
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) != self.size:
            raise ValueError(f"archive {self.path} is truncated: {self.name} ends after it; get it again")
        return data


def members(archive: Path, scratch: Path) -> Iterator[Member]:
    """Lists the files of an archive.

    Args:
      archive: a folder, a tar file or another file; the files may be compressed by gzip.
      scratch: a folder for decompressed files.

    Yields:
      The files.

    Raises:
      FileNotFoundError: if the archive does not exist.
      ValueError: if the archive is damaged, is neither a file nor a folder, or decompresses to too many bytes.
    """
    if archive.is_dir():
        for file in regular_files(archive, set())[0]:
            yield Member(os.path.relpath(file, archive), file, 0, os.path.getsize(file))
        return
    if not archive.is_file():
        raise ValueError(f"{archive} is neither a file nor a folder: give an archive")
    with open(archive, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    name = archive.name
    if compressed:
        name = archive.with_suffix("").name
        archive = _decompress(archive, scratch / name)
    whole = Member(name, str(archive), 0, archive.stat().st_size)
    if tarfile.is_tarfile(archive):
        yield from tar_members(whole)
    else:
        yield whole


def tar_members(tar: Member) -> Iterator[Member]:
    """Lists the files of a tar file, which may itself be inside another tar file.

    Raises:
      ValueError: if the tar file is damaged.
    """
    end = tar.offset + tar.size
    try:
        with open(tar.path, "rb") as file:
            file.seek(tar.offset)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (entry := archive.next()) and entry.offset < end:
                    # Otherwise TarFile would keep all of ImageNet's 1.3 million entries in memory.
                    vars(archive)["members"] = []
                    if entry.offset_data + entry.size > end:
                        raise tarfile.ReadError("unexpected end of data")
                    if entry.isreg() and not entry.issparse():
                        yield Member(entry.name, tar.path, entry.offset_data, entry.size)
                # tarfile takes a header that it cannot read as the end, so the end is checked here.
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no file and no end at byte {archive.offset}")
    except tarfile.TarError as error:
        raise ValueError(f"archive {tar.path} is damaged: {error}; get it again") from error


def _decompress(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    room = max(MAX_COMPRESSION * source.stat().st_size, 2**20)
    try:
        with gzip.open(source) as packed, open(target, "wb") as file:
            while block := packed.read(_BLOCK):
                room -= len(block)
                if room < 0:
                    raise ValueError(
                        f"archive {source} decompresses to more than {MAX_COMPRESSION} times its size, as no dataset "
                        "does; get it again"
                    )
                file.write(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"archive {source} is damaged: {error}; get it again") from error
    return target
