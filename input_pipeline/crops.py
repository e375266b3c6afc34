"""The boxes of the training and evaluation crops, computed on the host and inside the jitted step.

On the host each box is drawn for one image, in Python's floats, once the image's header is read. On the device the
boxes of a batch are drawn together, in float32, by functions for jax.vmap.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

TRIES = 10
"""How many random boxes are tried; if none fits into the image, a centre box is taken, as in torchvision."""

UNIFORMS = 24
"""Random numbers for one training image: 2 for each try, 2 for the place of the box, 1 for the flip, 1 spare."""

TRAIN_CROPS = ("random_resized", "scale_jitter", "pad", "none")

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

Number = TypeVar("Number", float, jax.Array)

DeviceBox = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""The same on the device, int32."""


def whole(height: int, width: int) -> Box:
    """Returns the box of the whole image."""
    return 0, 0, height, width


def centre(height: int, width: int, box_height: int, box_width: int) -> Box:
    """Returns a box of the given size in the centre of an image."""
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def within_reach(height: int, width: int) -> Box:
    """Returns the part of an image that a centre crop can show, so that a strip of 8 x 5000 is not resized whole."""
    return centre(height, width, min(height, 3 * width), min(width, 3 * height))


def place(height: int, width: int, box_height: int, box_width: int, uniforms: np.ndarray) -> Box:
    """Returns a box of the given size at a random place in an image, given by the first two random numbers."""
    top, left = int(uniforms[0] * (height - box_height + 1)), int(uniforms[1] * (width - box_width + 1))
    return top, left, box_height, box_width


def random_resized_box(
    height: int, width: int, area: Sequence[float], aspect: Sequence[float], uniforms: np.ndarray
) -> Box:
    """Draws a crop of random area and aspect ratio (Szegedy 2014, section 6), as torchvision's RandomResizedCrop does.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      area: range of the crop's share of the image.
      aspect: range of width / height, drawn uniformly in its logarithm.
      uniforms: (>= 22,) random numbers in [0, 1).

    Returns:
      The first box that fits into the image; if none of ten boxes fits, the largest centre box of a valid aspect ratio.
    """
    for area_draw, aspect_draw in uniforms[: 2 * TRIES].reshape(TRIES, 2).tolist():
        pixels, ratio = _drawn(height * width, area, aspect, area_draw, aspect_draw)
        box_height, box_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            return place(height, width, box_height, box_width, uniforms[2 * TRIES :])
    return centre(height, width, min(height, round(width / aspect[0])), min(width, round(height * aspect[1])))


def scale_jitter_box(
    height: int, width: int, image_size: int, train_resize: Sequence[int], uniforms: np.ndarray
) -> Box:
    """Draws the crop of image_size x image_size after the shorter side is resized to a random length.

    VGG (Simonyan 2014, section 3.1) and ResNet (He 2015, section 3.4) use it. The box is in coordinates of the image
    before resizing, so that only the pixels of the crop are resized.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      image_size: side of the crop, in pixels after resizing.
      train_resize: least and largest length of the shorter side, in pixels after resizing.
      uniforms: (>= 22,) random numbers in [0, 1).

    Returns:
      A square box.
    """
    shortest, longest = train_resize
    resized = shortest + int(uniforms[0] * (longest - shortest + 1))
    side = max(1, round(min(height, width) * image_size / resized))
    return place(height, width, side, side, uniforms[2 * TRIES :])


def training_box(config: ConfigDict) -> Callable[[int, int, np.ndarray], Box]:
    """Returns the function from height, width and (UNIFORMS,) random numbers to the box of a training image.

    The box is the same for all sizes that train_sizes gives the images: a small image shows as much as a large one.
    """
    train_crop, eval_resize, size = config.train_crop, config.eval_resize, config.image_size
    area, aspect, train_resize = config.crop_area, config.crop_aspect, config.train_resize

    def choose_box(height: int, width: int, uniforms: np.ndarray) -> Box:
        if train_crop == "random_resized":
            return random_resized_box(height, width, area, aspect, uniforms)
        if train_crop == "scale_jitter":
            return scale_jitter_box(height, width, size, train_resize, uniforms)
        return within_reach(height, width) if train_crop == "none" and eval_resize else whole(height, width)

    return choose_box


def check_crops(config: ConfigDict) -> None:
    """Checks the options of the training and the evaluation crop.

    Raises:
      ValueError: if train_crop is unknown, train_resize or eval_resize is smaller than image_size.
    """
    size, eval_resize = config.image_size, config.eval_resize
    if config.train_crop not in TRAIN_CROPS:
        raise ValueError(f"train_crop={config.train_crop!r} is unknown: use {', '.join(TRAIN_CROPS)}")
    if config.train_crop == "scale_jitter" and config.train_resize[0] < size:
        raise ValueError(f"train_resize={tuple(config.train_resize)} starts below image_size={size}: raise it")
    if eval_resize and eval_resize < size:
        raise ValueError(f"eval_resize={eval_resize} is smaller than image_size={size}: raise it, or 0 for no crop")


def device_random_resized_box(
    height: jax.Array, width: jax.Array, uniforms: jax.Array, area: Sequence[float], aspect: Sequence[float]
) -> DeviceBox:
    """Returns the box of random_resized_box on the device; height and width are scalars, uniforms (>= 22,)."""
    box_height, box_width, fits = device_random_size(uniforms, height, width, area, aspect)
    top, left = device_place(uniforms[2 * TRIES :], height, width, box_height, box_width)
    whole_height = jnp.minimum(height, jnp.round(width / aspect[0]).astype(jnp.int32))
    whole_width = jnp.minimum(width, jnp.round(height * aspect[1]).astype(jnp.int32))
    top_of_whole, left_of_whole = (height - whole_height) // 2, (width - whole_width) // 2
    return (
        jnp.where(fits, top, top_of_whole),
        jnp.where(fits, left, left_of_whole),
        jnp.where(fits, box_height, whole_height),
        jnp.where(fits, box_width, whole_width),
    )


def device_scale_jitter_box(
    height: jax.Array, width: jax.Array, uniforms: jax.Array, image_size: int, train_resize: Sequence[int]
) -> DeviceBox:
    """Returns the box of scale_jitter_box on the device; height and width are scalars, uniforms (>= 22,)."""
    shortest, longest = train_resize
    resized = shortest + random_whole(uniforms[0], longest - shortest + 1)
    side = jnp.maximum(jnp.round(jnp.minimum(height, width) * image_size / resized).astype(jnp.int32), 1)
    return *device_place(uniforms[2 * TRIES :], height, width, side, side), side, side


def device_random_size(
    uniforms: jax.Array,
    height: jax.Array | int,
    width: jax.Array | int,
    area: Sequence[float],
    aspect: Sequence[float],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the size of a box of random area and aspect ratio that fits into an image.

    Args:
      uniforms: in [0, 1); the first 2 TRIES are used: area and aspect of each try.
      height: of the image, in pixels.
      width: of the image, in pixels.
      area: range of the box's share of the image.
      aspect: range of width / height, drawn uniformly in its logarithm.

    Returns:
      Height and width of the first box that fits, int32, and whether one of the boxes fits.
    """
    area_draws, aspect_draws = uniforms[: 2 * TRIES].reshape(TRIES, 2).T
    pixels, ratios = _drawn(jnp.asarray(height * width, jnp.float32), area, aspect, area_draws, aspect_draws)
    heights, widths = (jnp.round(jnp.sqrt(side)).astype(jnp.int32) for side in (pixels / ratios, pixels * ratios))
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = jnp.argmax(fits)
    return heights[first], widths[first], jnp.any(fits)


def device_place(
    uniforms: jax.Array,
    height: jax.Array | int,
    width: jax.Array | int,
    box_height: jax.Array | int,
    box_width: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """Returns top and left of a box at a random place in an image, given by the first two random numbers."""
    return random_whole(uniforms[0], height - box_height + 1), random_whole(uniforms[1], width - box_width + 1)


def random_whole(uniform: jax.Array, count: jax.Array | int) -> jax.Array:
    """Returns a random whole number from 0 to count - 1, on the device.

    The minimum is needed because in float32 uniform * count may round up to count.
    """
    return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)


def _drawn(
    pixels: Number, area: Sequence[float], aspect: Sequence[float], area_draw: Number, aspect_draw: Number
) -> tuple[Number, Number]:
    """Returns the number of pixels and the aspect ratio of a box, from random numbers in [0, 1), floats or arrays."""
    drawn_pixels = pixels * (area[0] + area_draw * (area[1] - area[0]))
    return drawn_pixels, aspect[0] * (aspect[1] / aspect[0]) ** aspect_draw
