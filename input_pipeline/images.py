"""Transforms one image on the host, always in uint8: decodes, crops, resizes and flips it."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline import decoding
from input_pipeline.crops import TRIES, Box, centre, check_crops, place, training_box, whole, within_reach
from input_pipeline.decoding import cut, decode_box


def box_decoder(config: ConfigDict) -> Callable[[bytes | np.ndarray, Callable[[int, int], Box], float], np.ndarray]:
    """Returns `decode_box` as a function of image, choose_box and size, with its other arguments from the config."""
    channels, max_pixels, exif_orientation = config.channels, config.max_image_pixels, config.exif_orientation

    def decode(image: bytes | np.ndarray, choose_box: Callable[[int, int], Box], size: float) -> np.ndarray:
        return decode_box(image, channels, choose_box, size, max_pixels=max_pixels, exif_orientation=exif_orientation)

    return decode


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """Resizes uint8 (H, W, C), with antialiasing if a side shrinks.

    "bicubic" is Pillow's, as in torchvision and timm. "bilinear" is fast: if no side shrinks to less than a third, the
    image is resized bilinearly to twice the new size, and 2 x 2 pixels are averaged. On photographs the result differs
    by less than half a grey level from an average by area, and takes about half the time. If a side shrinks more,
    pixels are averaged by area.
    """
    tall, wide = image.shape[:2]
    if (tall, wide) == (height, width):
        return image
    channels = image.shape[2]
    if interpolation == "bicubic":
        return _with_pillow(image, (width, height), Image.Resampling.BICUBIC).reshape(height, width, channels)
    if tall > 3 * height or wide > 3 * width:
        image = _resized(image, (min(wide, width), min(tall, height)), by_area=True)
    elif tall > height or wide > width:
        image = _resized(image, (2 * width, 2 * height), by_area=False)
        image = _resized(image, (width, height), by_area=True)
    if image.shape[:2] != (height, width):
        image = _resized(image, (width, height), by_area=False)
    return image.reshape(height, width, channels)


def _resized(image: np.ndarray, size: tuple[int, int], by_area: bool) -> np.ndarray:
    """Resizes to (width, height), by area or bilinearly; the result of a grey image may have no channel axis."""
    if cv2 := decoding.cv2:
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA if by_area else cv2.INTER_LINEAR)
    return _with_pillow(image, size, Image.Resampling.BOX if by_area else Image.Resampling.BILINEAR)


def _with_pillow(image: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    pixels = Image.fromarray(image if image.shape[2:] == (3,) else image.reshape(image.shape[:2]))
    return np.asarray(pixels.resize(size, method))


def pad_and_crop(image: np.ndarray, padding: int, uniforms: np.ndarray) -> np.ndarray:
    """Pads an image with black, and crops it to its old size at a random place (He 2015, section 4.2).

    Args:
      image: uint8 (H, W, C).
      padding: pixels on each side.
      uniforms: (22,) random numbers in [0, 1).

    Returns:
      uint8 (H, W, C).
    """
    height, width = image.shape[:2]
    top, left, *_ = place(height + 2 * padding, width + 2 * padding, height, width, uniforms[2 * TRIES :])
    padded = np.zeros((height + 2 * padding, width + 2 * padding, image.shape[2]), np.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    return padded[top : top + height, left : left + width]


def resize_and_centre_crop(
    image: np.ndarray, image_size: int, eval_resize: int | None, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resizes the shorter side to eval_resize and crops the centre; without eval_resize, resizes to a square.

    Args:
      image: uint8 (H, W, C).
      image_size: side of the result, in pixels.
      eval_resize: shorter side before the crop, in pixels, at least image_size; None or 0: no crop.
      interpolation: bilinear or bicubic.

    Returns:
      uint8 (image_size, image_size, C).
    """
    if not eval_resize:
        return resize(image, image_size, image_size, interpolation)
    image = cut(image, *within_reach(*image.shape[:2]))
    height, width = image.shape[:2]
    scale = eval_resize / min(height, width)
    resized = resize(image, round(height * scale), round(width * scale), interpolation)
    height, width = resized.shape[:2]
    return cut(resized, *centre(height, width, image_size, image_size))


def evaluation_transform(config: ConfigDict) -> Callable[[bytes | np.ndarray], np.ndarray]:
    """Returns the function from a record's image to uint8 (image_size, image_size, channels) for evaluation.

    Raises:
      ValueError: if eval_resize is smaller than image_size.
    """
    check_crops(config)
    decode, size, eval_resize = box_decoder(config), config.image_size, config.eval_resize
    interpolation = config.interpolation
    choose_box, shrunk = (within_reach, eval_resize) if eval_resize else (whole, size)
    return lambda image: resize_and_centre_crop(decode(image, choose_box, shrunk), size, eval_resize, interpolation)


def training_transform(
    config: ConfigDict, size: int | None = None
) -> Callable[[bytes | np.ndarray, np.ndarray], np.ndarray]:
    """Returns the function from a record's image and (UNIFORMS,) random numbers in [0, 1) to a training image.

    Args:
      config: image_size, eval_resize, channels, the crop's options.
      size: side of the training image, in pixels; None: image_size.

    Raises:
      ValueError: if train_crop is unknown, or train_resize or eval_resize is smaller than image_size.
    """
    check_crops(config)
    size = size or config.image_size
    decode, choose_box, train_crop = box_decoder(config), training_box(config), config.train_crop
    eval_resize = round((config.eval_resize or 0) * size / config.image_size)
    padding, flip, interpolation = config.crop_padding, config.random_flip, config.interpolation
    shrunk = train_crop == "none" and eval_resize or size

    def transform(image: bytes | np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        image = decode(image, lambda height, width: choose_box(height, width, uniforms), shrunk)
        if train_crop == "none":
            image = resize_and_centre_crop(image, size, eval_resize, interpolation)
        else:
            image = resize(image, size, size, interpolation)
            if train_crop == "pad":
                image = pad_and_crop(image, padding, uniforms)
        if flip and uniforms[2 * TRIES + 2] < 0.5:
            image = decoding.cv2.flip(image, 1).reshape(image.shape) if decoding.cv2 else image[:, ::-1]
        return image

    return transform
