"""Decodes image files to RGB or grey pixels, uint8; of a JPEG only the rows that a crop needs.

The content of a file decides which library reads it: libjpeg-turbo reads JPEGs, OpenCV plain PNGs, and Pillow all other
files. The pixels differ from Pillow's by one level at most.
"""

import contextlib
import functools
import importlib
import io
import math
import re
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline.crops import Box, whole
from input_pipeline.files import FORMATS, MAX_IMAGE_PIXELS


def _import(name: str, instead: str) -> Any:
    """Returns a library; if it is not installed, prints a note and returns None, and Pillow is used instead."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"note: {error}; {instead}", file=sys.stderr)
        return None


cv2 = _import("cv2", "Pillow resizes images in OpenCV's place: slower, within a few grey levels")
simplejpeg = _import("simplejpeg", "Pillow decodes JPEGs in simplejpeg's place: slower")

_START, _END = b"\xff\xd8", b"\xff\xd9"  # the first and the last marker of a JPEG
# A marker in a JPEG's compressed data, except stuffed bytes, restart markers and fill bytes.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_PLAIN_PNG_CHUNKS = {b"IHDR", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tEXt", b"tIME", b"eXIf", b"IDAT", b"IEND"}
# For each value of EXIF's orientation tag: whether to swap the axes, then reverse the rows, and reverse the columns.
_ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_LARGE_IMAGE = 2**24  # pixels; larger images are decoded one at a time, so that each thread does not hold one
_large_image_lock = threading.Lock()


def decode(
    encoded: bytes, channels: int, *, max_pixels: int = MAX_IMAGE_PIXELS, exif_orientation: bool = False
) -> np.ndarray:
    """Decodes an image file of any of FORMATS; if the file holds several images, the one that is shown first.

    Transparency is dropped. Of 16-bit pixels the higher 8 bits are taken, as in TFDS.

    Args:
      encoded: the file's bytes.
      channels: 3 for RGB, 1 for grey (ITU-R 601); grey, colour and CMYK files are converted to either.
      max_pixels: an image of more pixels is refused before it is decoded.
      exif_orientation: whether to turn the image by EXIF's orientation tag. TFDS and torchvision do not.

    Returns:
      uint8 (H, W, channels).

    Raises:
      ValueError: if the file has another format, or is truncated, damaged or too large.
    """
    return decode_box(encoded, channels, whole, max_pixels=max_pixels, exif_orientation=exif_orientation)


def decode_box(
    image: bytes | np.ndarray,
    channels: int,
    choose_box: Callable[[int, int], Box],
    size: float = math.inf,
    *,
    max_pixels: int = MAX_IMAGE_PIXELS,
    exif_orientation: bool = False,
) -> np.ndarray:
    """Decodes one box of an image; of a JPEG it decodes as little as possible.

    Rows of a JPEG below the box are not decoded. If the box will shrink a lot, it is decoded at 1/2, 1/4 or 1/8 by
    libjpeg's scaled inverse DCT, but both sides stay at least twice as long as needed. After `images.resize` the result
    then differs from that of the whole image no more than another antialiasing filter's result does. Boxes of other
    formats are reduced only if they are large, by averaging, to save memory.

    Args:
      image: a file's bytes, or uint8 (H, W, 1 or 3).
      channels: 3 for RGB, 1 for grey.
      choose_box: maps the image's height and width to the box.
      size: the length to which both sides of the box will be resized, in pixels.
      max_pixels: as for `decode`.
      exif_orientation: as for `decode`.

    Returns:
      uint8 (h, w, channels): the box, or the box reduced by a whole factor.

    Raises:
      ValueError: as for `decode`.
    """
    if isinstance(image, np.ndarray):
        return _with_channels(cut(image, *choose_box(*image.shape[:2])), channels)
    swap, turn_rows, turn_columns = _orientation(image, max_pixels) if exif_orientation else (False, False, False)

    def choose_stored_box(height: int, width: int) -> Box:
        """Chooses the box in the turned image, and returns its coordinates in the stored image."""
        if swap:
            height, width = width, height
        top, left, box_height, box_width = choose_box(height, width)
        top = height - top - box_height if turn_rows else top
        left = width - left - box_width if turn_columns else left
        return (left, top, box_width, box_height) if swap else (top, left, box_height, box_width)

    pixels = _decode_stored_box(image, channels, choose_stored_box, size, max_pixels)
    if swap:
        pixels = pixels.swapaxes(0, 1)
    if swap or turn_rows or turn_columns:
        pixels = np.ascontiguousarray(pixels[:: -1 if turn_rows else 1, :: -1 if turn_columns else 1])
    return pixels


@contextlib.contextmanager
def open_image(encoded: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Iterator[Image.Image]:
    """Opens an image file of one of FORMATS with Pillow; reads only the header.

    Raises:
      ValueError: if the file has another format or is too large, or if Pillow raises any error inside the `with`.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_readable_formats()) as image:
            _check_size(encoded, *image.size[::-1], max_pixels)
            yield image
    except UnidentifiedImageError:  # replaced, because its message shows a memory address
        raise _cannot_decode(encoded, "not a known format") from None
    except _CannotDecode:
        raise
    except Exception as error:  # Pillow may raise any error when it reads a damaged file
        raise _cannot_decode(encoded, error) from error


class _CannotDecode(ValueError):
    pass


def _cannot_decode(encoded: bytes, reason: object) -> _CannotDecode:
    if isinstance(reason, Exception) and not isinstance(reason, (OSError, ValueError, SyntaxError)):
        reason = f"{type(reason).__name__} {reason}"
    return _CannotDecode(f"cannot decode its {len(encoded)} bytes: {' '.join(str(reason).split())}")


def _check_size(encoded: bytes, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise _cannot_decode(encoded, f"{width} x {height} pixels are more than max_image_pixels={max_pixels}")


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """FORMATS without those that this build of Pillow cannot read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode_stored_box(
    encoded: bytes, channels: int, choose_box: Callable[[int, int], Box], size: float, max_pixels: int
) -> np.ndarray:
    if frame := _jpeg_frame(encoded):
        position, height, width, components = frame
        _check_size(encoded, height, width, max_pixels)
        # Some decoders only warn about a truncated file and invent the missing pixels. So the size is checked here: a
        # block of 8 x 8 pixels takes at least one bit.
        if height * width > 512 * len(encoded) or not _ends(encoded, position):
            raise _cannot_decode(encoded, "it is truncated, a JPEG's end is missing")
        if components in (1, 3) and simplejpeg:
            box = choose_box(height, width)
            with contextlib.suppress(ValueError):  # the JPEG is damaged or unusual; Pillow tries next
                return _decode_jpeg_box(encoded, channels, frame, box, size)
    elif header := _plain_png(encoded):
        height, width, components = header
        _check_size(encoded, height, width, max_pixels)
        if cv2 and height * width <= _LARGE_IMAGE:  # OpenCV needs twice the memory of an image
            flags = cv2.IMREAD_GRAYSCALE if components == 1 else cv2.IMREAD_COLOR_RGB
            pixels = None
            with contextlib.suppress(cv2.error):
                pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
            if pixels is not None:
                return _with_channels(cut(pixels.reshape(height, width, -1), *choose_box(height, width)), channels)
    with open_image(encoded, max_pixels) as image, _one_at_a_time(math.prod(image.size)):
        image.load()  # may turn a TIFF by its orientation tag, so that height and width are known only now
        return pillow_box(image, choose_box(image.height, image.width), channels, size)


def _decode_jpeg_box(
    encoded: bytes, channels: int, frame: tuple[int, int, int, int], box: Box, size: float
) -> np.ndarray:
    position, height, width, components = frame
    top, left, box_height, box_width = box
    scale = next((scale for scale in (8, 4, 2) if min(box_height, box_width) >= 2 * scale * size), 1)
    # A lower height in the header makes the decoder stop just below the box, after one more row, which the
    # interpolation of the colours needs.
    rows = min(height, scale * (-(-(top + box_height) // scale) + 1))
    shortened = bytearray(encoded)
    shortened[position : position + 2] = rows.to_bytes(2, "big")
    with _one_at_a_time(-(-rows // scale) * -(-width // scale)):
        pixels = simplejpeg.decode_jpeg(
            shortened,
            "GRAY" if components == 1 else "RGB",
            min_height=-(-rows // scale),
            min_width=-(-width // scale),
            strict=False,  # otherwise the remaining bytes would be an error
        )
    return _with_channels(cut(pixels, *(round(edge / scale) for edge in box)), channels)


def _jpeg_frame(encoded: bytes) -> tuple[int, int, int, int] | None:
    """Returns the position of the height in a JPEG's bytes, and its height, width and number of components.

    Returns None if the file is not a JPEG, or is a JPEG of a rare kind, with arithmetic coding or 12 bits.
    """
    position = 2 if encoded[:2] == _START else len(encoded)
    while position + 10 <= len(encoded):
        start, marker, length, bits, height, width, components = struct.unpack_from(">BBHBHHB", encoded, position)
        if start == 0xFF and marker in (0xC0, 0xC1, 0xC2):  # the frame of a baseline, extended or progressive JPEG
            return (position + 5, height, width, components) if bits == 8 and height * width else None
        position = position + 2 + length if start == 0xFF else len(encoded)
    return None


def _ends(encoded: bytes, position: int) -> bool:
    """Whether the JPEG whose height is at `position` has its own end marker, not that of another JPEG after it."""
    if encoded.endswith(_END) and len(encoded) < 2**24:  # this fast check needs a few bytes of memory for each byte
        data = np.frombuffer(encoded, np.uint8)[position:]
        if not np.any((data[:-1] == _START[0]) & (data[1:] == _START[1])):
            return True
    position -= 5  # the frame's own marker
    while marker := _MARKER.search(encoded, position):
        if marker[0] in (_START, _END):
            return marker[0] == _END
        position = marker.start() + 2
        if position + 2 <= len(encoded):  # skips a table or the header of a scan, whose length follows the marker
            position += int.from_bytes(encoded[position : position + 2], "big")
    return False


def _plain_png(encoded: bytes) -> tuple[int, int, int] | None:
    """Returns height, width and channels of a complete 8-bit PNG without transparency or animation; None for others."""
    if not encoded.startswith(_PNG_START) or not encoded.endswith(_PNG_END) or len(encoded) < 57:
        return None
    kind, width, height, bits, colour = struct.unpack_from(">4sIIBB", encoded, 12)
    channels = {0: 1, 2: 3}.get(colour)
    if kind != b"IHDR" or bits != 8 or not channels or not width * height:
        return None
    position, data = 8, memoryview(encoded)
    while position + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, position)
        end = position + 12 + length
        # A wrong length would make OpenCV allocate gigabytes.
        if kind not in _PLAIN_PNG_CHUNKS or end > len(encoded):
            return None
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        position = end
    return (height, width, channels) if position == len(encoded) else None


def _orientation(encoded: bytes, max_pixels: int) -> tuple[bool, bool, bool]:
    """Returns the entry of _ORIENTATIONS for EXIF's orientation tag; Pillow itself turns a TIFF."""
    with open_image(encoded, max_pixels) as image:
        tag = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)
    return _ORIENTATIONS.get(tag, (False, False, False))


def pillow_box(image: Image.Image, box: Box, channels: int, size: float) -> np.ndarray:
    """Returns a box of Pillow's image; converts it strip by strip, because a copy of a large image takes a gigabyte.

    A large box is reduced by a whole factor; as for a JPEG, both sides stay at least twice as long as needed.
    """
    top, left, height, width = box
    factor = max(1, int(min(height, width) / (2 * size))) if height * width > _LARGE_IMAGE else 1
    rows = factor * max(1, _LARGE_IMAGE // 16 // (factor * width))
    pixels = np.empty((-(-height // factor), -(-width // factor), channels), np.uint8)
    # Pillow would convert every 16-bit level above 255 to 255.
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    for first in range(0, height, rows):
        last = min(first + rows, height)
        strip = image.crop((left, top + first, left + width, top + last))
        if has_16_bits:
            strip = Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8))
        elif strip.mode not in ("L", "RGB"):
            strip = strip.convert("L" if strip.mode in ("1", "LA", "La", "I", "F") else "RGB")
        if factor > 1:
            strip = strip.reduce(factor)
        levels = np.asarray(strip if channels == 3 else strip.convert("L"))
        pixels[first // factor : -(-last // factor)] = levels.reshape(*levels.shape[:2], -1)
    return pixels


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Converts grey pixels to RGB, or RGB to grey by ITU-R 601: (299 R + 587 G + 114 B) / 1000."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]


def cut(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Returns a box of an image as a view."""
    return image[top : top + height, left : left + width]


def _one_at_a_time(pixels: int) -> contextlib.AbstractContextManager:
    return _large_image_lock if pixels > _LARGE_IMAGE else contextlib.nullcontext()
