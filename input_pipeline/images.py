"""One image on the host, uint8 all the way: decode, crop, resize, flip."""

import contextlib
import io
import math
import os
import struct
import sys
from collections.abc import Callable

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what OpenCV cannot read, we name ourselves

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, UnidentifiedImageError

try:
    import cv2

    cv2.setNumThreads(0)  # the pool of threads that decodes a batch already fills the cores
except ImportError as error:
    print(f"note: {error}; Pillow works in OpenCV's place: slower, within a few grey levels", file=sys.stderr)
    cv2 = None
try:
    from simplejpeg import decode_jpeg
except ImportError as error:
    print(f"note: {error}; others decode JPEGs in simplejpeg's place: slower, by a few grey levels", file=sys.stderr)

    def decode_jpeg(*_, **__) -> np.ndarray:
        """Leaves every file to the other decoders."""
        raise ValueError("simplejpeg is not installed")


Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

UNIFORMS = 24
"""Random numbers that one training image may use: 2 for each of 10 tries, 2 for the place, 1 for the flip."""

TRIES = 10
TRAIN_CROPS = ("random_resized", "scale_jitter", "pad", "none")


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decodes an image file of any kind that libjpeg-turbo, OpenCV or Pillow reads.

    The orientation tag of EXIF is ignored, as TFDS and torchvision do, and so is transparency.

    Args:
      encoded: the file's bytes.
      channels: 3 for RGB, 1 for grey; either comes from grey, colour and CMYK files.

    Returns:
      uint8 (H, W, channels).

    Raises:
      ValueError: no library can read it, or it is truncated.
    """
    return decode_box(encoded, channels, _whole)


def decode_box(
    image: bytes | np.ndarray, channels: int, choose_box: Callable[[int, int], Box], size: float = math.inf
) -> np.ndarray:
    """Decodes one box of an image, and of a JPEG no more than that takes.

    Rows below the box are not decoded. A box that is to shrink much is decoded at 1/2, 1/4 or 1/8, by libjpeg's scaled
    inverse DCT, as long as both sides stay at least twice as long as needed: after `resize` the result is as near to
    the whole image's as that of another antialiasing filter.

    Args:
      image: a file's bytes, or uint8 (H, W, 1 or 3).
      channels: 3 for RGB, 1 for grey.
      choose_box: from the image's height and width to the box.
      size: what both sides of the box will shrink to, in pixels.

    Returns:
      uint8 (h, w, channels): the box, or its half, quarter or eighth.

    Raises:
      ValueError: as decode does.
    """
    frame = _jpeg_frame(image) if isinstance(image, bytes) else None
    if frame:
        position, height, width = frame
        # A thumbnail has its own end before the frame. Some decoders only warn, and make up the rest.
        if image.rfind(b"\xff\xd9", position) < 0:
            raise ValueError(f"cannot decode its {len(image)} bytes: it is truncated, a JPEG's end is missing")
        top, left, box_height, box_width = choose_box(height, width)
        scale = next((scale for scale in (8, 4, 2) if min(box_height, box_width) >= 2 * scale * size), 1)
        # The decoder takes the image to end just below the box: one more row, for the interpolation of the colours.
        rows = min(height, scale * (-(-(top + box_height) // scale) + 1))
        shortened = bytearray(image)
        shortened[position : position + 2] = rows.to_bytes(2, "big")
        try:
            pixels = decode_jpeg(
                shortened,
                "GRAY" if channels == 1 else "RGB",
                min_height=-(-rows // scale),
                min_width=-(-width // scale),
                strict=False,  # it would object to the bytes that follow
            )
            box = (round(edge / scale) for edge in (top, left, box_height, box_width))
            return _cut(pixels, *box)
        except ValueError:
            pass  # CMYK, or damaged: the other decoders may know more
    pixels = _decode_whole(image, channels) if isinstance(image, bytes) else image
    return _convert(_cut(pixels, *choose_box(*pixels.shape[:2])), channels)


def _jpeg_frame(encoded: bytes) -> tuple[int, int, int] | None:
    """Returns where in a JPEG's bytes its height stands, its height and its width; None if there is no telling."""
    position = 2 if encoded[:2] == b"\xff\xd8" else len(encoded)
    while position + 9 <= len(encoded):
        start, marker, length, _, height, width = struct.unpack_from(">BBHBHH", encoded, position)
        if start == 0xFF and marker in (0xC0, 0xC1, 0xC2):  # the frame of a baseline, extended or progressive JPEG
            # What is beyond the bound of a reasonable size is for decoders that refuse it.
            return (position + 5, height, width) if 0 < height * width <= Image.MAX_IMAGE_PIXELS else None
        position = position + 2 + length if start == 0xFF else len(encoded)
    return None


def _decode_whole(encoded: bytes, channels: int) -> np.ndarray:
    image = None
    if cv2:
        flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
        with contextlib.suppress(cv2.error):  # empty, or beyond its limit of pixels
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        try:
            with Image.open(io.BytesIO(encoded)) as file:
                image = np.asarray(file.convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            # Pillow's own message shows the memory address of the bytes.
            reason = "not a known format" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(f"cannot decode its {len(encoded)} bytes: {reason}") from error
    return image.reshape(*image.shape[:2], channels)


def _convert(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def _cut(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    return image[top : top + height, left : left + width]


def _whole(height: int, width: int) -> Box:
    return 0, 0, height, width


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 (H, W, C): bilinearly where no side shrinks, else without aliasing.

    Sides that shrink to no less than a third are resized bilinearly to twice their new lengths, and 2 x 2 pixels of
    that averaged: on photographs within half a grey level of the average by area, in about half the time. Others are
    averaged by area.
    """
    tall, wide = image.shape[:2]
    if (tall, wide) == (height, width):
        return image
    channels = image.shape[2]
    if tall > 3 * height or wide > 3 * width:
        image = _resized(image, (min(wide, width), min(tall, height)), by_area=True)
    elif tall > height or wide > width:
        image = _resized(image, (2 * width, 2 * height), by_area=False)
        image = _resized(image, (width, height), by_area=True)
    if image.shape[:2] != (height, width):
        image = _resized(image, (width, height), by_area=False)
    return image.reshape(height, width, channels)


def _resized(image: np.ndarray, size: tuple[int, int], by_area: bool) -> np.ndarray:
    """Resizes to width and height, averaging by area or interpolating bilinearly; grey images may lose their axis."""
    if cv2:
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA if by_area else cv2.INTER_LINEAR)
    pixels = Image.fromarray(image if image.shape[2:] == (3,) else image.reshape(image.shape[:2]))
    return np.asarray(pixels.resize(size, Image.Resampling.BOX if by_area else Image.Resampling.BILINEAR))


def random_resized_box(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], uniforms: np.ndarray
) -> Box:
    """A crop of random area and aspect ratio (Szegedy 2014, section 6), drawn as torchvision's RandomResizedCrop does.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      area: range of the crop's share of the image.
      aspect: range of width / height, drawn uniformly in its logarithm.
      uniforms: (22,) random numbers in [0, 1).

    Returns:
      The box; when ten tries do not fit into the image, the largest one in its centre within the range of aspect.
    """
    for try_area, try_aspect in uniforms[: 2 * TRIES].reshape(TRIES, 2).tolist():
        pixels = height * width * (area[0] + try_area * (area[1] - area[0]))
        ratio = aspect[0] * (aspect[1] / aspect[0]) ** try_aspect
        box_height, box_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            return _place(height, width, box_height, box_width, uniforms[2 * TRIES :])
    box_height = min(height, round(width / aspect[0]))
    box_width = min(width, round(height * aspect[1]))
    return _centre(height, width, box_height, box_width)


def scale_jitter_box(
    height: int, width: int, image_size: int, train_resize: tuple[int, int], uniforms: np.ndarray
) -> Box:
    """The crop of image_size x image_size after the shorter side is resized to a random length.

    VGG (Simonyan 2014, section 3.1) and ResNet (He 2015, section 3.4). The box lies in the image before resizing, so
    that only what is kept is resized.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      image_size: side of the crop, in pixels after resizing.
      train_resize: least and largest length of the shorter side, in pixels after resizing.
      uniforms: (22,) random numbers in [0, 1).

    Returns:
      A square box.
    """
    shortest, longest = train_resize
    resized = shortest + int(uniforms[0] * (longest - shortest + 1))
    side = max(1, round(min(height, width) * image_size / resized))
    return _place(height, width, side, side, uniforms[2 * TRIES :])


def _place(height: int, width: int, box_height: int, box_width: int, uniforms: np.ndarray) -> Box:
    top, left = int(uniforms[0] * (height - box_height + 1)), int(uniforms[1] * (width - box_width + 1))
    return top, left, box_height, box_width


def pad_and_crop(image: np.ndarray, padding: int, uniforms: np.ndarray) -> np.ndarray:
    """Pads with black and crops the old size at random (He 2015, section 4.2).

    Args:
      image: uint8 (H, W, C).
      padding: pixels on each side.
      uniforms: (22,) random numbers in [0, 1).

    Returns:
      uint8 (H, W, C).
    """
    height, width = image.shape[:2]
    top, left, *_ = _place(height + 2 * padding, width + 2 * padding, height, width, uniforms[2 * TRIES :])
    padded = np.zeros((height + 2 * padding, width + 2 * padding, image.shape[2]), np.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    return padded[top : top + height, left : left + width]


def resize_and_centre_crop(image: np.ndarray, image_size: int, eval_resize: int | None) -> np.ndarray:
    """Resizes the shorter side to eval_resize and keeps the centre; without eval_resize, resizes to a square.

    Args:
      image: uint8 (H, W, C).
      image_size: side of the result, in pixels.
      eval_resize: shorter side before the crop, in pixels, at least image_size; None or 0 for no crop.

    Returns:
      uint8 (image_size, image_size, C).
    """
    if not eval_resize:
        return resize(image, image_size, image_size)
    image = _cut(image, *_within_reach(*image.shape[:2]))
    height, width = image.shape[:2]
    scale = eval_resize / min(height, width)
    resized = resize(image, round(height * scale), round(width * scale))
    return _cut(resized, *_centre(*resized.shape[:2], image_size, image_size))


def _within_reach(height: int, width: int) -> Box:
    """What a centre crop can reach: a strip of 8 x 5000 pixels would grow to 256 x 160000."""
    return _centre(height, width, min(height, 3 * width), min(width, 3 * height))


def _centre(height: int, width: int, box_height: int, box_width: int) -> Box:
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def evaluation_transform(config: ConfigDict) -> Callable[[bytes | np.ndarray], np.ndarray]:
    """Makes the function from a record's image to uint8 (image_size, image_size, channels) for evaluation.

    Raises:
      ValueError: eval_resize is smaller than image_size.
    """
    size, channels, eval_resize = config.image_size, config.channels, config.eval_resize
    _check_eval_resize(size, eval_resize)
    choose_box, shrunk = (_within_reach, eval_resize) if eval_resize else (_whole, size)
    return lambda image: resize_and_centre_crop(decode_box(image, channels, choose_box, shrunk), size, eval_resize)


def training_box(config: ConfigDict) -> Callable[[int, int, np.ndarray], Box]:
    """Makes the function from height, width and (UNIFORMS,) random numbers to the part of an image that is used."""
    train_crop, eval_resize, size = config.train_crop, config.eval_resize, config.image_size
    area, aspect, train_resize = config.crop_area, config.crop_aspect, config.train_resize

    def choose_box(height: int, width: int, uniforms: np.ndarray) -> Box:
        if train_crop == "random_resized":
            return random_resized_box(height, width, area, aspect, uniforms)
        if train_crop == "scale_jitter":
            return scale_jitter_box(height, width, size, train_resize, uniforms)
        return _within_reach(height, width) if train_crop == "none" and eval_resize else _whole(height, width)

    return choose_box


def training_transform(config: ConfigDict) -> Callable[[bytes | np.ndarray, np.ndarray], np.ndarray]:
    """Makes the function from a record's image and (UNIFORMS,) random numbers in [0, 1) to a training image.

    Raises:
      ValueError: train_crop is unknown, or train_resize or eval_resize is smaller than image_size.
    """
    size, channels, train_crop, eval_resize = config.image_size, config.channels, config.train_crop, config.eval_resize
    padding, flip = config.crop_padding, config.random_flip
    if train_crop not in TRAIN_CROPS:
        raise ValueError(f"train_crop={train_crop!r} is unknown: use {', '.join(TRAIN_CROPS)}")
    if train_crop == "scale_jitter" and config.train_resize[0] < size:
        raise ValueError(f"train_resize={tuple(config.train_resize)} starts below image_size={size}: raise it")
    if train_crop == "none":
        _check_eval_resize(size, eval_resize)
    choose_box = training_box(config)
    shrunk = train_crop == "none" and eval_resize or size

    def transform(image: bytes | np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        image = decode_box(image, channels, lambda height, width: choose_box(height, width, uniforms), shrunk)
        if train_crop == "none":
            image = resize_and_centre_crop(image, size, eval_resize)
        else:
            image = resize(image, size, size)
            if train_crop == "pad":
                image = pad_and_crop(image, padding, uniforms)
        if flip and uniforms[2 * TRIES + 2] < 0.5:
            image = cv2.flip(image, 1).reshape(image.shape) if cv2 else image[:, ::-1]
        return image

    return transform


def _check_eval_resize(image_size: int, eval_resize: int | None) -> None:
    if eval_resize and eval_resize < image_size:
        raise ValueError(
            f"eval_resize={eval_resize} is smaller than image_size={image_size}: raise it, or 0 for no crop"
        )
