"""One image on the host, uint8 all the way: decode, crop, resize, flip."""

import io
import math
import os
from collections.abc import Callable

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what OpenCV cannot read, we name ourselves

import cv2
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, UnidentifiedImageError

cv2.setNumThreads(0)  # the pool of threads that decodes a batch already fills the cores

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

UNIFORMS = 24
"""Random numbers that one training image may use: 2 for each of 10 tries, 2 for the place, 1 for the flip."""

TRIES = 10
TRAIN_CROPS = ("random_resized", "scale_jitter", "pad", "none")


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decodes an image file of any kind that OpenCV or Pillow reads.

    The orientation tag of EXIF is ignored, as TFDS and torchvision do, and so is transparency.

    Args:
      encoded: the file's bytes.
      channels: 3 for RGB, 1 for grey; either comes from grey, colour and CMYK files.

    Returns:
      uint8 (H, W, channels).

    Raises:
      ValueError: neither library can read it, or it is truncated.
    """
    flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # empty, or beyond its limit of pixels
        image = None
    if image is None:
        try:
            with Image.open(io.BytesIO(encoded)) as file:
                image = np.asarray(file.convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            # Pillow's own message shows the memory address of the bytes.
            reason = "not a known format" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(f"cannot decode its {len(encoded)} bytes: {reason}") from error
    return image.reshape(*image.shape[:2], channels)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 (H, W, C) by area when both sides shrink, bilinearly otherwise."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.reshape(height, width, -1)


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
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


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
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
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
    height, width = image.shape[:2]
    # A strip of 8 x 5000 pixels would grow to 256 x 160000: what the crop cannot reach goes first.
    height, width = min(height, 3 * width), min(width, 3 * height)
    image = _centre(image, height, width)
    scale = eval_resize / min(height, width)
    return _centre(resize(image, round(height * scale), round(width * scale)), image_size, image_size)


def _centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def to_array(image: bytes | np.ndarray, channels: int) -> np.ndarray:
    if isinstance(image, bytes):
        return decode(image, channels)
    if image.shape[-1] == channels:
        return image
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if channels == 3 else cv2.COLOR_RGB2GRAY).reshape(
        *image.shape[:2], channels
    )


def evaluation_transform(config: ConfigDict) -> Callable[[bytes | np.ndarray], np.ndarray]:
    """Makes the function from a record's image to uint8 (image_size, image_size, channels) for evaluation.

    Raises:
      ValueError: eval_resize is smaller than image_size.
    """
    size, channels, eval_resize = config.image_size, config.channels, config.eval_resize
    _check_eval_resize(size, eval_resize)
    return lambda image: resize_and_centre_crop(to_array(image, channels), size, eval_resize)


def training_transform(config: ConfigDict) -> Callable[[bytes | np.ndarray, np.ndarray], np.ndarray]:
    """Makes the function from a record's image and (UNIFORMS,) random numbers in [0, 1) to a training image.

    Raises:
      ValueError: train_crop is unknown, or train_resize or eval_resize is smaller than image_size.
    """
    size, channels, train_crop, eval_resize = config.image_size, config.channels, config.train_crop, config.eval_resize
    area, aspect, train_resize = config.crop_area, config.crop_aspect, config.train_resize
    padding, flip = config.crop_padding, config.random_flip
    if train_crop not in TRAIN_CROPS:
        raise ValueError(f"train_crop={train_crop!r} is unknown: use {', '.join(TRAIN_CROPS)}")
    if train_crop == "scale_jitter" and train_resize[0] < size:
        raise ValueError(f"train_resize={tuple(train_resize)} starts below image_size={size}: raise it")
    if train_crop == "none":
        _check_eval_resize(size, eval_resize)

    def transform(image: bytes | np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        image = to_array(image, channels)
        if train_crop == "none":
            image = resize_and_centre_crop(image, size, eval_resize)
        elif train_crop == "pad":
            image = pad_and_crop(resize(image, size, size), padding, uniforms)
        else:
            if train_crop == "random_resized":
                top, left, height, width = random_resized_box(*image.shape[:2], area, aspect, uniforms)
            else:
                top, left, height, width = scale_jitter_box(*image.shape[:2], size, train_resize, uniforms)
            image = resize(image[top : top + height, left : left + width], size, size)
        return image[:, ::-1] if flip and uniforms[2 * TRIES + 2] < 0.5 else image

    return transform


def _check_eval_resize(image_size: int, eval_resize: int | None) -> None:
    if eval_resize and eval_resize < image_size:
        raise ValueError(
            f"eval_resize={eval_resize} is smaller than image_size={image_size}: raise it, or 0 for no crop"
        )
