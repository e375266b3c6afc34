"""Downloads files. A file has its name only when it is complete and its checksum is right."""

import contextlib
import email.message
import email.utils
import fcntl
import hashlib
import http.client
import io
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from input_pipeline.files import printable

TIMEOUT = 60.0
"""Seconds to wait for a server's next answer."""

LONGEST_WAIT = 60.0
"""The most seconds that a busy server may ask to wait before the next try; if it asks for more, the download fails."""

TRIES = 4
"""How often a busy server is asked."""

_BLOCK = 1 << 20
_FAILURES = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


def download(url: str, target: Path, sha256: str, size: int | None = None, otherwise: str = "") -> None:
    """Downloads a file, or the rest of it if an earlier download was interrupted, and prints its progress.

    If several processes download the same file, one does and the others wait for it.

    Args:
      url: address of the file.
      target: path of the file; until it is complete and checked, its name ends in .part.
      sha256: checksum of the file in hexadecimal digits, or the first eight digits or more.
      size: size of the file, bytes; None: what the server says.
      otherwise: what else the user can do if the server cannot be reached, for the error.

    Raises:
      OSError: if the server cannot be reached, stops early or sends a file with another checksum, or the disk is full.
    """
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if target.exists():  # another process has just downloaded it
            part.unlink(missing_ok=True)
            return
        print(printable(f"downloading {url} to {target}"), flush=True)
        try:
            size = _fetch_rest(url, file, size)
        except _FAILURES as error:
            if not file.seek(0, os.SEEK_END):
                part.unlink()
            raise _explained(url, error, otherwise) from error
        found_size = file.seek(0, os.SEEK_END)
        if size is not None and found_size < size:
            raise ConnectionError(
                f"the download of {url} stopped after {found_size:,} of {size:,} bytes; "
                "the same command goes on from there"
            )
        found = file_sha256(part)
        if not found.startswith(sha256):
            part.unlink()
            raise OSError(
                f"{url} is not what it was: its SHA-256 is {found} instead of {sha256}; it is not used; try again later"
            )
        part.replace(target)


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_headers(url: str, otherwise: str = "") -> email.message.Message:
    """Returns the headers of a server's answer to HEAD.

    A redirect to the same server is followed. A redirect to another server is not: its own headers are returned.

    Args:
      url: address of the file.
      otherwise: as for download.

    Raises:
      OSError: if the server cannot be reached or has no such file.
    """
    for _ in range(10):
        try:
            with _open(urllib.request.Request(url, method="HEAD"), urllib.request.build_opener(_NoRedirects)) as answer:
                return answer.headers
        except urllib.error.HTTPError as error:
            location = error.headers.get("Location", "")
            if not 300 <= error.code < 400:
                raise _explained(url, error, otherwise) from error
            if not location.startswith("/") or location.startswith("//"):
                return error.headers
            url = urllib.parse.urljoin(url, location)
        except _FAILURES as error:
            raise _explained(url, error, otherwise) from error
    raise ConnectionError(f"{url} is redirected in a circle")


def _explained(url: str, error: Exception, otherwise: str) -> OSError:
    """Returns an error of one line that says what failed and what to do."""
    reason = getattr(error, "reason", "") or str(error) or type(error).__name__
    code = f"HTTP {error.code}, " if isinstance(error, urllib.error.HTTPError) else ""
    also = f", or {otherwise}" if otherwise else ""
    return ConnectionError(f"cannot download {url}: {code}{reason}; the same command goes on where it stopped{also}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _open(request: urllib.request.Request, opener: urllib.request.OpenerDirector) -> http.client.HTTPResponse:
    """Opens a URL; if the server is busy and says how long to wait, waits and tries again."""
    request.add_header("User-Agent", "convnets")
    for tries_left in reversed(range(TRIES)):
        try:
            return opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            seconds = _retry_after(error) if error.code in (429, 503) else None
            if seconds is None or not tries_left:
                raise
            if seconds > LONGEST_WAIT:
                busy = f"the server is busy (HTTP {error.code}); try again in {seconds:.0f} s"
                raise OSError(f"cannot download {request.full_url}: {busy}") from error
            time.sleep(seconds)
    raise AssertionError


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Returns the seconds that a busy server asks to wait, which it gives as a number or as a date, or None."""
    value = error.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    with contextlib.suppress(ValueError):
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None


def _fetch_rest(url: str, file: io.BufferedWriter, size: int | None) -> int | None:
    """Appends what is missing to a file; returns the size that the whole file should have, or None if unknown."""
    start = file.seek(0, os.SEEK_END)
    if size is not None and start >= size:
        return size
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = _open(request, urllib.request.build_opener())
    except urllib.error.HTTPError as error:
        # Nothing is left to send: either the file is complete, or it has become shorter.
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if whole and int(whole[1]) == start:
            return start
        file.truncate(0)
        return _fetch_rest(url, file, size)
    with answer, transfer_progress() as progress:
        if start and not _continues(answer, start):  # the server sends the whole file
            file.truncate(0)
            start = 0
        length = answer.headers.get("Content-Length", "")
        size = size or (start + int(length) if length.isdecimal() else None)
        task = progress.add_task(url.rpartition("/")[2], total=size, completed=start)
        while block := answer.read(_BLOCK):
            file.write(block)
            progress.advance(task, len(block))
    return size


def _continues(answer: http.client.HTTPResponse, start: int) -> bool:
    content_range = answer.headers.get("Content-Range", "")
    return answer.status == http.HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {start}-")


@contextlib.contextmanager
def transfer_progress() -> Iterator[Progress]:
    """Shows the bytes that have arrived, of each task that is added to the progress."""
    name = TextColumn("{task.description}", markup=False)
    with Progress(name, BarColumn(), DownloadColumn(), TimeRemainingColumn()) as progress:
        yield progress
