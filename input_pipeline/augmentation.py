"""Augments and normalises a batch on the device, inside the jitted step.

All random numbers depend only on the seed and the global position of the image, so the result is the same on any number
of devices. No image leaves its device.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.crops import TRIES, device_place, device_random_size, random_whole
from input_pipeline.image_operations import OPERATIONS, apply_operation, blend, grayscale, shift_hue

MAGNITUDES = 31
"""The number of strengths of an operation of RandAugment and TrivialAugment: 0 to 30."""


class MixedLabels(NamedTuple):
    """The labels of images that mixup or cutmix made, each from two images.

    Attributes:
      label: (N,) int32, the class with the larger share.
      other: (N,) int32, the other class.
      share: (N,) float32, the share of `label`, 0.5 to 1.
    """

    label: jax.Array
    other: jax.Array
    share: jax.Array


Augmentation = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | MixedLabels]]


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
    """Scales images to zero mean and unit deviation.

    Args:
      images: (N, H, W, C), 0 to 255: uint8, or floats where make_augmentation has erased or mixed pixels.
      mean: mean of each channel, 0 to 1.
      std: standard deviation of each channel, 0 to 1.
      dtype: type of the result; the arithmetic is at least float32.

    Returns:
      (images / 255 - mean) / std, (N, H, W, C) in dtype.
    """
    compute = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(mean, compute), jnp.asarray(std, compute)
    return ((images.astype(compute) / 255 - mean) / std).astype(dtype)


def make_augmentation(config: ConfigDict) -> Augmentation | None:
    """Returns the augmentation that the options ask for, or None if all of it is off.

    The order is: RandAugment or TrivialAugment, colour jitter, random erasing, mixup or cutmix.

    Returns:
      A function of images, uint8 (N, H, W, C), labels, (N,) int32, the images' positions in the run, (N,) uint32, and
      the run's seed, a uint32 scalar. It returns images of 0 to 255, and labels. With random erasing, mixup or cutmix
      the images are float32 (float64 if config.dtype is), else uint8; with mixup or cutmix the labels are MixedLabels.
    """
    changes = []
    if config.auto_augment == "trivial":
        changes.append(("trivial_augment", 3, trivial_augment))
    if config.auto_augment == "rand":
        layer = functools.partial(rand_augment, magnitude=config.rand_augment_magnitude)
        changes += [(f"rand_augment{number}", 3, layer) for number in range(config.rand_augment_layers)]
    if any(config.color_jitter):
        changes.append(("color_jitter", 4, functools.partial(color_jitter, strengths=config.color_jitter)))
    mixes = config.mixup_alpha > 0 or config.cutmix_alpha > 0
    if not (changes or config.random_erasing or mixes):
        return None
    dtype = jnp.promote_types(np.dtype(config.dtype), jnp.float32)

    def augment(
        images: jax.Array, labels: jax.Array, positions: jax.Array, seed: jax.Array
    ) -> tuple[jax.Array, jax.Array | MixedLabels]:
        for purpose, count, change in changes:
            images = jax.vmap(change)(images, draw_uniforms(seed, purpose, positions, count))
        if config.random_erasing or mixes:
            images = images.astype(dtype)
        if config.random_erasing:
            erase = functools.partial(
                random_erasing,
                probability=config.random_erasing,
                area=config.erasing_area,
                aspect=config.erasing_aspect,
                fill=255 * jnp.asarray(config.mean, dtype),
            )
            uniforms = draw_uniforms(seed, "random_erasing", positions, 2 * TRIES + 3)
            images = jax.vmap(erase)(images, uniforms)
        if mixes:
            uniforms = draw_uniforms(seed, "mix", positions, 4)
            images, labels = mix(images, labels, config.mixup_alpha, config.cutmix_alpha, uniforms)
        return images, labels

    return augment


def draw_uniforms(seed: int | jax.Array, purpose: str, positions: jax.Array, count: int) -> jax.Array:
    """Returns random numbers in [0, 1) for each image, float32 (N, count), which depend only on seed and position.

    Args:
      seed: seed of the run.
      purpose: a name; the numbers for different purposes are independent of each other.
      positions: (N,) uint32, positions of the images in the endless sequence of the run.
      count: how many numbers for each image.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))

    def draw(position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, position), (count,), jnp.float32)

    return jax.vmap(draw)(positions)


def trivial_augment(image: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Applies one random operation at a random strength (Müller and Hutter 2021, TrivialAugment, section 3, "wide").

    Args:
      image: uint8 (H, W, C).
      uniforms: (3,) in [0, 1): the operation, its strength, its sign.

    Returns:
      uint8 (H, W, C).
    """
    wide = {"Shear": 0.99, "TranslateX": 32, "TranslateY": 32, "Rotate": 135, "Enhance": 0.99, "Posterize": 6}
    return _augment(image, uniforms, _magnitudes(wide), random_whole(uniforms[1], MAGNITUDES))


def rand_augment(image: jax.Array, uniforms: jax.Array, magnitude: int) -> jax.Array:
    """Applies one random operation at a fixed strength, a layer of RandAugment (Cubuk et al. 2019, section 3).

    Args:
      image: uint8 (H, W, C).
      uniforms: (3,) in [0, 1): the operation, an unused number, the sign.
      magnitude: strength, 0 to 30.

    Returns:
      uint8 (H, W, C).
    """
    height, width = image.shape[:2]
    translate = {"TranslateX": 150 / 331 * width, "TranslateY": 150 / 331 * height}
    space = {"Shear": 0.3, **translate, "Rotate": 30, "Enhance": 0.9, "Posterize": 4}
    return _augment(image, uniforms, _magnitudes(space), magnitude)


def _magnitudes(space: dict[str, float]) -> np.ndarray:
    """Returns the magnitude of each operation at each strength, (14, 31), as in torchvision."""
    strengths = np.linspace(0, 1, MAGNITUDES, dtype=np.float32)
    kinds = dict.fromkeys(("ShearX", "ShearY"), "Shear") | dict.fromkeys(
        ("Brightness", "Color", "Contrast", "Sharpness"), "Enhance"
    )
    table = {name: space.get(kinds.get(name, name), 0) * strengths for name in OPERATIONS}
    table["Posterize"] = 8 - np.round(space["Posterize"] * strengths)
    table["Solarize"] = 255 * (1 - strengths)
    return np.stack(list(table.values())).astype(np.float32)


def _augment(image: jax.Array, uniforms: jax.Array, magnitudes: np.ndarray, strength: jax.Array | int) -> jax.Array:
    operation = random_whole(uniforms[0], len(OPERATIONS))
    signed = np.array([name not in ("Posterize", "Solarize") for name in OPERATIONS])
    sign = jnp.where(jnp.asarray(signed)[operation] & (uniforms[2] < 0.5), -1, 1)
    return apply_operation(image, operation, sign * jnp.asarray(magnitudes)[operation, strength])


def color_jitter(image: jax.Array, uniforms: jax.Array, strengths: Sequence[float]) -> jax.Array:
    """Changes brightness, contrast, saturation and hue at random, in this order (Howard 2013, section 2.2).

    Args:
      image: uint8 (H, W, C).
      uniforms: (4,) in [0, 1).
      strengths: of brightness, contrast and saturation, whose factors are drawn from [1 - strength, 1 + strength] and
        are at least 0; and of hue, whose shift, a share of the colour circle, is drawn from [-strength, strength].

    Returns:
      uint8 (H, W, C).
    """
    brightness, contrast, saturation, hue = strengths

    def factor(uniform: jax.Array, strength: float) -> jax.Array:
        lowest = max(1 - strength, 0)
        return lowest + uniform * (1 + strength - lowest)

    if brightness:
        image = blend(image, 0, factor(uniforms[0], brightness))
    if contrast:
        image = blend(image, grayscale(image).astype(jnp.float32).mean(), factor(uniforms[1], contrast))
    if saturation:
        image = blend(image, grayscale(image), factor(uniforms[2], saturation))
    return shift_hue(image, hue * (2 * uniforms[3] - 1)) if hue else image


def random_erasing(
    image: jax.Array,
    uniforms: jax.Array,
    probability: float,
    area: Sequence[float],
    aspect: Sequence[float],
    fill: jax.Array,
) -> jax.Array:
    """Sets a random rectangle to one colour (Zhong et al. 2017, section 3; the caller passes the mean pixel).

    Args:
      image: floats (H, W, C).
      uniforms: (23,) in [0, 1).
      probability: share of the images in which a rectangle is erased.
      area: range of the rectangle's share of the image.
      aspect: range of the rectangle's width over its height.
      fill: (C,) or (1,), the colour of the rectangle.

    Returns:
      (H, W, C).
    """
    height, width = image.shape[:2]
    box_height, box_width, fits = device_random_size(uniforms, height, width, area, aspect)
    top, left = device_place(uniforms[2 * TRIES :], height, width, box_height, box_width)
    erased = fits & (uniforms[-1] < probability)
    return jnp.where(erased & _inside((height, width), top, left, box_height, box_width)[..., None], fill, image)


def mix(
    images: jax.Array, labels: jax.Array, mixup_alpha: float, cutmix_alpha: float, uniforms: jax.Array
) -> tuple[jax.Array, MixedLabels]:
    """Mixes each image with its neighbour. Rows 0 and 1, 2 and 3 and so on are neighbours; the batch is shuffled.

    mixup (Zhang et al. 2017, section 2) returns share * image + (1 - share) * neighbour. cutmix (Yun et al. 2019,
    section 3.1) pastes a rectangle of the neighbour, about 1 - share of the area, at the same place. The share has the
    distribution Beta(alpha, alpha) and is drawn for each image. If both are on, each image gets one of the two at
    random.

    Args:
      images: floats (N, H, W, C), N even.
      labels: (N,) int32.
      mixup_alpha: alpha of mixup; 0: no mixup.
      cutmix_alpha: alpha of cutmix; 0: no cutmix.
      uniforms: (N, 4) in [0, 1).

    Returns:
      The mixed images, (N, H, W, C), and their labels.
    """
    height, width = images.shape[1:3]
    weights = []
    if mixup_alpha:
        share = beta_quantile(mixup_alpha, uniforms[:, 1])
        weights.append(jnp.broadcast_to(share[:, None, None], images.shape[:3]))
    if cutmix_alpha:
        cut = jax.vmap(functools.partial(_cutmix_box, height, width))
        weights.append(1 - cut(beta_quantile(cutmix_alpha, uniforms[:, 1]), uniforms[:, 2:]))
    weight = jnp.where(uniforms[:, 0, None, None] < 0.5, weights[0], weights[-1])
    share, weight = weight.mean((1, 2)), weight[..., None].astype(images.dtype)
    mixed = weight * images + (1 - weight) * _neighbours(images)
    others, lighter = _neighbours(labels), share < 0.5
    label, other = jnp.where(lighter, others, labels), jnp.where(lighter, labels, others)
    return mixed, MixedLabels(label, other, jnp.maximum(share, 1 - share))


def _neighbours(rows: jax.Array) -> jax.Array:
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


def _cutmix_box(height: int, width: int, share: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Returns a mask, float32 (H, W), that is 1 in cutmix's rectangle: around a random pixel, clipped to the image."""
    half = 0.5 * jnp.sqrt(1 - share)
    sides = []
    for size, uniform in ((height, uniforms[0]), (width, uniforms[1])):
        centre, reach = random_whole(uniform, size), (half * size).astype(jnp.int32)
        sides.append((jnp.maximum(centre - reach, 0), jnp.minimum(centre + reach, size)))
    (top, bottom), (left, right) = sides
    return _inside((height, width), top, left, bottom - top, right - left).astype(jnp.float32)


def beta_quantile(alpha: float, uniforms: jax.Array) -> jax.Array:
    """Returns the quantiles of Beta(alpha, alpha) at numbers in [0, 1), float32.

    They are interpolated linearly in a table of 1,025 exact values. Rejection sampling would need a loop over the whole
    batch that is as long as the slowest image's.
    """
    from scipy.special import betaincinv

    table = jnp.asarray(betaincinv(alpha, alpha, np.linspace(0, 1, 1025)), jnp.float32)
    place = uniforms * 1024
    below = place.astype(jnp.int32)
    return table[below] + (place - below) * (table[below + 1] - table[below])


def _inside(shape: tuple[int, int], top: jax.Array, left: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Returns a mask, bool (H, W), that is True inside a box."""
    y, x = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])[None, :]
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
