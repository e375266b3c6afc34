"""The archives that datasets come in: downloaded, continued, and read in any order without being unpacked."""

import dataclasses
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A file, on its own or inside an archive.

    Attributes:
      name: its path inside the archive, or inside the folder that was given.
      path: the file on disk that holds its bytes.
      offset: where they begin in it.
      size: how many they are.
    """

    name: str
    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Returns the bytes.

        Raises:
          ValueError: the archive ends before them.
          OSError: it cannot be read.
        """
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) != self.size:
            raise ValueError(f"archive {self.path} is truncated: {self.name} ends after it; get it again")
        return data


def members(archive: Path, scratch: Path) -> Iterator[Member]:
    """Lists the files of an archive.

    Args:
      archive: a tar file, a file, either compressed by gzip or not, or a folder.
      scratch: a folder for what has to be decompressed.

    Yields:
      Its files.

    Raises:
      FileNotFoundError: there is no such archive.
      ValueError: the archive is damaged.
    """
    if archive.is_dir():
        for file in sorted(path for path in archive.rglob("*") if path.is_file()):
            yield Member(file.relative_to(archive).as_posix(), str(file), 0, file.stat().st_size)
        return
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
    """Lists the files of a tar file, itself inside another one maybe.

    Raises:
      ValueError: it is damaged.
    """
    end = tar.offset + tar.size
    try:
        with open(tar.path, "rb") as file:
            file.seek(tar.offset)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (entry := archive.next()) and entry.offset < end:
                    # Otherwise TarFile keeps 1.3 million of them.
                    archive.members = []  # type: ignore[attr-defined]
                    if entry.offset_data + entry.size > end:
                        raise tarfile.ReadError("unexpected end of data")
                    if entry.isfile():
                        yield Member(entry.name, tar.path, entry.offset_data, entry.size)
                # For tarfile, the first header that it cannot read is the end.
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no file and no end at byte {archive.offset}")
    except tarfile.TarError as error:
        raise ValueError(f"archive {tar.path} is damaged: {error}; get it again") from error


def _decompress(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with gzip.open(source) as packed, open(target, "wb") as file:
            shutil.copyfileobj(packed, file, _BLOCK)
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"archive {source} is damaged: {error}; get it again") from error
    return target


def download(url: str, size: int, sha256: str, target: Path, advance: Callable[[int], None]) -> None:
    """Downloads a file, or the rest of one whose beginning is there already.

    Args:
      url: where it is.
      size: its bytes.
      sha256: its checksum, in hexadecimal digits.
      target: where it goes, under this name once it is complete and checked, until then with .part.
      advance: called with the number of bytes that are new, or were there.

    Raises:
      OSError: the server cannot be reached, stops early, or sends something else; the disk is full.
    """
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab") as file:
        start = file.tell()
        if start < size:
            request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:  # it begins anew
                        file.truncate(0)
                        start = 0
                    advance(start)
                    while block := response.read(_BLOCK):
                        file.write(block)
                        advance(len(block))
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                reason = getattr(error, "reason", error)
                raise ConnectionError(
                    f"cannot download {url}: {reason}; the same command goes on where it stopped, and "
                    "`prepare.py NAME --archive=FILE` takes a file that came another way"
                ) from error
    if part.stat().st_size < size:
        raise ConnectionError(
            f"the download of {url} stopped after {part.stat().st_size:,} of {size:,} bytes; "
            "the same command goes on from there"
        )
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise OSError(f"{url} is not what it was: its SHA-256 is {found} instead of {sha256}; try again later")
    part.replace(target)
