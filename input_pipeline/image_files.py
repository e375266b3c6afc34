"""Images that a user names: files, folders, patterns and standard input; decoded in batches on a pool of threads."""

import collections
import concurrent.futures
import glob
import itertools
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple, TextIO

import numpy as np

from input_pipeline.files import SUFFIXES, local_path, read_file, regular_files


class DecodedFiles(NamedTuple):
    """A batch of image files.

    Attributes:
      files: the names of the files that could be read.
      images: uint8 (batch size, H, W, C): the images of `files`, then zeros.
      errors: the names of the other files, each with the reason.
    """

    files: list[str]
    images: np.ndarray
    errors: list[tuple[str, str]]


def named_images(names: Iterable[str], stdin: TextIO = sys.stdin) -> Iterator[str]:
    """Returns the image files that the names stand for, in the order of the names; in a folder sorted by path.

    A name is that of a file, of a folder (its image files and those below it), a pattern such as 'photos/*.jpg', or '-'
    for standard input, which names a file on each line. Standard input is read when the iterator gets there, so that
    its files need not exist now.

    Raises:
      FileNotFoundError: if there is no such file or folder, or no image file in it.
      ValueError: if the name is remote.
    """
    return itertools.chain.from_iterable([_lines(stdin) if name == "-" else _images_of(name) for name in names])


def _lines(stream: TextIO) -> Iterator[str]:
    # The bytes of a name need not be UTF-8.
    return (os.fsdecode(line).removesuffix("\n") for line in stream.buffer if line.strip())


def _images_of(name: str) -> list[str]:
    path = local_path(name)
    if path.is_file():
        return [str(path)]
    found = [str(path)] if path.is_dir() else sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise FileNotFoundError(f"{path} is no file, no folder and no pattern of files; give image files or folders")
    files: list[str] = []
    for each in found:
        if os.path.isdir(each):
            inside = regular_files(each, set())[0]
            files += [file for file in inside if os.path.splitext(file)[1].lower() in SUFFIXES]
        else:
            files.append(each)
    if not files:
        raise FileNotFoundError(f"there are no image files in {path}; give files or folders of images")
    return files


def decoded_batches(
    files: Iterable[str],
    transform: Callable[[bytes], np.ndarray],
    shape: tuple[int, ...],
    max_bytes: int,
    threads: int,
) -> Generator[DecodedFiles]:
    """Yields the files' images in batches, in order; the next batch is decoded while the caller uses this one.

    Args:
      files: names of files, taken only as far as batches are made.
      transform: from a file's bytes to pixels, uint8 (H, W, C); raises ValueError for a damaged image.
      shape: (batch size, H, W, C).
      max_bytes: a larger file is an error.
      threads: number of threads that read and decode.
    """
    files = iter(files)

    def read(file: str, row: np.ndarray) -> str | None:
        try:
            row[...] = transform(read_file(file, max_bytes))
        except (ValueError, OSError) as error:
            return getattr(error, "strerror", None) or str(error)
        return None

    def start(names: list[str], images: np.ndarray) -> list[concurrent.futures.Future]:
        # Each task has several files, because submitting a task takes as long as decoding a small image.
        size = max(1, min(16, len(names) // 16))
        pieces = [range(first, min(first + size, len(names))) for first in range(0, len(names), size)]
        return [pool.submit(lambda rows: [read(names[row], images[row]) for row in rows], piece) for piece in pieces]

    def finish(names: list[str], images: np.ndarray, results: list[concurrent.futures.Future]) -> DecodedFiles:
        reasons = [reason for result in results for reason in result.result()]
        good = [row for row, reason in enumerate(reasons) if reason is None]
        if len(good) < len(names):
            images[: len(good)] = images[good]
        errors = [(name, reason) for name, reason in zip(names, reasons, strict=True) if reason is not None]
        return DecodedFiles([names[row] for row in good], images, errors)

    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        started: collections.deque[tuple] = collections.deque()
        while names := list(itertools.islice(files, shape[0])):
            images = np.zeros(shape, np.uint8)
            started.append((names, images, start(names, images)))
            if len(started) > 1:
                yield finish(*started.popleft())
        while started:
            yield finish(*started.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
