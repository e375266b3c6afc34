"""Finds image files in folders, visiting each folder once, and reads files up to a limit of bytes."""

import collections
import functools
import os
import re
import stat
import sys
from pathlib import Path

MAX_IMAGE_PIXELS = 178_956_970
"""The default limit on the pixels of an image, equal to the limit from which Pillow refuses an image."""

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "DIB": (".dib",),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "PSD": (".psd",),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "MSP": (".msp",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "FLI": (".fli", ".flc"),
    "PIXAR": (".pxr",),
    "GBR": (".gbr",),
    # Files of the following formats cannot be recognised by their first bytes.
    "IM": (".im",),
    "PCD": (".pcd",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "SPIDER": (".spi", ".spider"),
}
"""The readable image formats, by Pillow's names, each with its file name suffixes.

Pillow's other formats are left out: they need a plugin or an external program, as EPS needs Ghostscript.
"""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def is_remote(text: str | Path) -> bool:
    """Whether a text is a URL, such as s3://bucket/folder, and not a path."""
    return bool(re.match(r"[A-Za-z][\w+.-]*://", str(text)))


def local_path(text: str | Path) -> Path:
    """Returns a path as a shell understands it: with `~` and environment variables replaced.

    Raises:
      ValueError: it is remote (gs://bucket/folder), or it names a user or a variable that does not exist, and is no
        file or folder as it stands.
    """
    if is_remote(text):
        raise ValueError(f"{str(text)!r} is remote, which is not supported here; give a path on this machine")
    expanded = os.path.expanduser(os.path.expandvars(text))
    unknown = re.search(r"^~[^/]*|\$(\w+|\{[^}]*\})", expanded)
    if unknown and not os.path.lexists(expanded):
        kind = "user" if unknown[0].startswith("~") else "environment variable"
        raise ValueError(f"{str(text)!r} names {unknown[0]}, but there is no such {kind}; write the path out")
    return Path(expanded)


def regular_files(folder: str | Path, entered: set[tuple[int, int]]) -> tuple[list[str], collections.Counter[str]]:
    """Finds the files in a folder and below it; follows links, and ignores files whose names begin with a dot.

    Args:
      folder: the folder to search.
      entered: identities (from `identity`) of folders to skip. The function adds each folder that it enters, so that no
        folder is read twice and loops of links end.

    Returns:
      The paths of the regular files, sorted, and how many other things of each kind were left out.

    Raises:
      OSError: if a folder cannot be read.
    """
    files, left_out = [], collections.Counter[str]()
    folders = [str(folder)]
    entered.add(identity(folder))
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                try:
                    is_folder, is_file = entry.is_dir(), entry.is_file()
                except OSError:  # a link to itself
                    is_folder = is_file = False
                if is_file:
                    files.append(entry.path)
                elif not is_folder:
                    left_out["links, pipes and devices that are no files"] += 1
                elif identity(entry.path) in entered:
                    left_out["links to folders that are read already"] += 1
                else:
                    entered.add(identity(entry.path))
                    folders.append(entry.path)
    return sorted(files), left_out


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems create and users do not see: .DS_Store, ._a.jpg, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def identity(path: str | Path) -> tuple[int, int]:
    """Returns the device and inode numbers of a file or folder, which are the same for every link to it."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
      ValueError: if the file is not a regular file, or is larger than max_bytes.
      OSError: if the file cannot be read.
    """
    # Without O_NONBLOCK opening a named pipe would block until another process writes to it.
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"its {status.st_size:,} bytes are more than the {max_bytes:,} that an image may have")
        return file.read(status.st_size)


def most_bytes(max_image_pixels: int) -> int:
    """Returns the largest valid number of bytes of an image file; it allows for a long header of a small image."""
    return max_image_pixels + 2**24


def printable(text: str | Path, kept: str = "") -> str:
    """Returns text in which newlines, control characters and what is no Unicode are escaped, except those kept."""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in str(text)
    )


def one_line(text: str) -> str:
    """Returns the text on one line, with control characters escaped."""
    return printable(" ".join(text.split()))


@functools.cache
def say_once(message: str) -> None:
    """Prints a message on standard error, however often it is said in this process."""
    print(printable(message), file=sys.stderr)
