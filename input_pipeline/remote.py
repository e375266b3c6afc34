"""Folders of object stores, s3:// and gs://: their files are listed, read and written, and a dataset is copied once.

fsspec has the filesystems. A write is atomic: each of these stores shows an object whole or not at all.
"""

import concurrent.futures
import fcntl
import hashlib
import importlib.util
import logging
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from input_pipeline.files import is_remote, local_path, printable

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "file": "fsspec", "memory": "fsspec"}
"""For each scheme of a URL the library that reads it; file:// and memory:// serve to try things out without a store."""

TRANSFERS = 32  # files that are copied at once
Result = TypeVar("Result")


class Store:
    """A folder of an object store.

    A call that fails is repeated with growing pauses until it has failed for `timeout` seconds; the libraries' own
    repetitions come on top. A bucket that does not exist is an error at once, and so is a missing permission, unless
    the store has answered before: then it may be a token that will be renewed.

    Attributes:
      url: the folder, without a slash at its end.
    """

    def __init__(self, url: str, timeout: float):
        """Opens the folder, without a connection; it need not exist.

        Args:
          url: s3://bucket/folder or gs://bucket/folder.
          timeout: seconds after which a call that keeps failing is given up.

        Raises:
          ValueError: if the URL is invalid, or the library that reads it is not installed.
        """
        check_url(url)
        import fsspec  # imported only here, because most runs need no store

        self.url, self._timeout, self._has_answered = url.rstrip("/"), timeout, False
        for library in ("s3fs", "gcsfs", "fsspec", "botocore", "aiobotocore"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # our errors say in one line what theirs say in many
        # A listing in a cache would not show what other machines have written.
        options: dict[str, Any] = {"use_listings_cache": False}
        if url.startswith("file://"):
            options = {"auto_mkdir": True}
        self._files, path = fsspec.core.url_to_fs(self.url, **options)
        self._path = path.rstrip("/")

    def sizes(self) -> dict[str, int]:
        """Returns a dict from the names of all files in the folder, and below it, to their numbers of bytes.

        Raises:
          OSError: if the folder cannot be listed.
        """
        found = self._persist("listed", "", lambda: self._files.find(self._path, detail=True))
        names = {name.removeprefix(f"{self._path}/"): facts for name, facts in found.items()}
        return {name: facts["size"] for name, facts in names.items() if _is_file_name(name)}

    def read(self, name: str) -> bytes | None:
        """Returns the bytes of a file, or None if there is no such file.

        Raises:
          OSError: if it cannot be read.
        """
        try:
            return self._persist("read", name, lambda: self._files.cat_file(self._whole(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, new: bool = False) -> None:
        """Writes a file; it has either its old content or the whole new one.

        Raises:
          FileExistsError: if it must be new, and is not. A repetition may find the file that it has written itself.
          OSError: if it cannot be written.
        """
        mode = "create" if new else "overwrite"
        self._persist("written", name, lambda: self._files.pipe_file(self._whole(name), content, mode=mode))

    def upload(self, file: Path, name: str) -> None:
        """Copies a file of this machine into the store, large files in several parts; it appears whole.

        Raises:
          OSError: if it cannot be read or written.
        """
        self._persist("written", name, lambda: self._files.put_file(str(file), self._whole(name)))

    def download(self, sizes: Mapping[str, int], folder: Path, progress: Callable[[int], None] | None = None) -> None:
        """Copies files into a folder of this machine, several at once; each gets its name when it is complete.

        Args:
          sizes: names and numbers of bytes, as in `sizes`.
          folder: the folder to copy into.
          progress: is called with the number of bytes of each file that has arrived.

        Raises:
          OSError: if one cannot be read or written.
        """

        def copy(name: str) -> None:
            file = folder / name
            part = file.with_name(f".{file.name}.part")
            file.parent.mkdir(parents=True, exist_ok=True)

            def get() -> None:
                self._files.get_file(self._whole(name), str(part))
                if part.stat().st_size != sizes[name]:
                    raise OSError(f"{part.stat().st_size:,} bytes arrived of {sizes[name]:,}")

            self._persist("read", name, get)
            part.replace(file)

        names, pool = list(sizes), concurrent.futures.ThreadPoolExecutor(TRANSFERS)
        try:
            for start in range(0, len(names), 4096):  # ImageNet has a million images
                copies = {pool.submit(copy, name): name for name in names[start : start + 4096]}
                for done in concurrent.futures.as_completed(copies):
                    done.result()
                    if progress:
                        progress(sizes[copies[done]])
        finally:
            pool.shutdown(cancel_futures=True)

    def delete(self, name: str) -> None:
        """Removes a file, if it exists.

        Raises:
          OSError: if it cannot be removed.
        """
        try:
            self._persist("removed", name, lambda: self._files.rm_file(self._whole(name)))
        except FileNotFoundError:
            pass

    def _whole(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _persist(self, done: str, name: str, call: Callable[[], Result]) -> Result:
        """Returns the result of the call, which is repeated while it fails; its error names the file and the reason."""
        start, pause = time.monotonic(), 0.5
        what = f"{self.url}/{name}".rstrip("/")
        while True:
            try:
                result = call()
                self._has_answered = True
                return result
            except Exception as error:  # each library has its own
                reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
                reason = reason.split("\n")[0][:200]
                if isinstance(error, (FileNotFoundError, FileExistsError)):
                    raise type(error)(f"{what} cannot be {done}: {reason}") from error
                forbidden = isinstance(error, PermissionError) or re.search("Credentials|Forbidden", f"{error!r}")
                if forbidden and not self._has_answered:
                    raise PermissionError(f"{what} cannot be {done}: {reason}") from error
                waited = time.monotonic() - start
                if waited + pause > self._timeout:
                    raise OSError(f"{what} cannot be {done}, and {waited:.0f} s did not help: {reason}") from error
                if pause == 4.0:  # the fourth failure
                    limit = f"trying again for up to {self._timeout:g} s"
                    print(printable(f"note: {what} cannot be {done} now ({reason}); {limit}"), file=sys.stderr)
            time.sleep(pause * random.uniform(0.8, 1.2))  # so that many machines do not come back at the same moment
            pause = min(2 * pause, 30.0)


def _is_file_name(name: str) -> bool:
    """Whether an object's name is a path below a folder; a store also allows `a//b` and `../a`."""
    return "\0" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def check_url(url: str) -> None:
    """Raises ValueError if a URL has no bucket or an unknown scheme, or if the library that reads it is missing."""
    scheme, _, rest = url.partition("://")
    if scheme not in LIBRARIES:
        raise ValueError(f"{url!r} is in no store that is supported; give s3://bucket/folder or gs://bucket/folder")
    if not rest.strip("/") or ".." in rest.split("/"):
        raise ValueError(f"{url!r} names no folder; give {scheme}://bucket/folder")
    if not importlib.util.find_spec(LIBRARIES[scheme]):
        raise ValueError(
            f"{url!r} needs {LIBRARIES[scheme]}, which is not installed; run pip install {LIBRARIES[scheme]}"
        )


def check_place(place: str) -> None:
    """Raises ValueError if a text is neither a path of this machine nor the URL of a folder in a supported store."""
    check_url(place) if is_remote(place) else local_path(place)


def copy_of(url: str, cache_dir: str) -> Path:
    """Returns the folder for the copy of a store's folder: different URLs have different folders."""
    scheme, _, rest = url.rstrip("/").partition("://")
    parts = [re.sub(r"[^\w.,=+-]", "_", part) for part in rest.split("/") if part]
    digest = hashlib.sha256(f"{scheme}://{'/'.join(filter(None, rest.split('/')))}".encode()).hexdigest()[:8]
    return local_path(cache_dir) / digest / Path(*parts[-2:])


def copied_folder(url: str, cache_dir: str, timeout: float, name: str = "") -> Path:
    """Returns this machine's copy of a folder of a store, which is made at first use and serves all later runs.

    The copy is complete or not used: a run that was stopped while copying is continued by the next one, and processes
    that start at the same time wait for the first one. A complete copy is not compared with the store again.

    Args:
      url: of the folder.
      cache_dir: the folder of all copies.
      timeout: seconds after which a store that keeps failing is given up.
      name: copy only this folder of it, a dataset such as imagenette/160px-v2; the copy has it under the same name.

    Raises:
      FileNotFoundError: if the store's folder has no files.
      OSError: if it cannot be copied, or does not fit on the disk.
      ValueError: if the URL is invalid.
    """
    root, url = copy_of(url, cache_dir), f"{url.rstrip('/')}/{name}".rstrip("/")
    check_url(url)
    target = root / name
    complete = target.with_name(f".{target.name}.complete")
    if complete.exists():
        return root
    target.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if complete.exists():
            return root
        store = Store(url, timeout)
        sizes = store.sizes()
        if not sizes:
            raise FileNotFoundError(f"{url} has no files; give the URL of a folder, or look for a misspelt name")
        missing = {file: size for file, size in sizes.items() if not _has_size(target / file, size)}
        needed, free = sum(missing.values()), shutil.disk_usage(target).free
        if needed > free:
            raise OSError(
                f"{url} needs {needed / 1e9:,.1f} GB in {local_path(cache_dir)}, where {free / 1e9:,.1f} GB are free; "
                "set remote_cache_dir to a folder on a larger disk"
            )
        print(printable(f"copying {url} to {target}: {len(missing):,} files, {needed / 1e9:,.2f} GB"), flush=True)
        from input_pipeline.downloads import transfer_progress  # imported only here, because most runs need no store

        with transfer_progress() as progress:
            task = progress.add_task(url, total=needed)
            store.download(missing, target, lambda size: progress.advance(task, size))
        complete.write_text(f"{url}\n")
    return root


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
