"""The operations of RandAugment and TrivialAugment on one uint8 image on the device, with torchvision's results."""

import jax
import jax.numpy as jnp

OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""The fourteen operations of Cubuk et al. 2019, RandAugment, section 3; an operation's number is its index here."""

_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}


def apply_operation(image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Applies one of OPERATIONS.

    There are three kinds of operations: moving pixels, replacing levels by a table of 256, and blending with another
    image. The operation is only known on the device, so all three kinds are computed and two of them change nothing.

    Args:
      image: uint8 (H, W, C), C 1 or 3.
      operation: index in OPERATIONS, an integer scalar.
      magnitude: a float scalar: a slope (shear), pixels (translate), degrees (rotate), a number that is added to a
        factor of 1 (brightness, color, contrast, sharpness), bits kept (posterize) or the lowest level to invert
        (solarize).

    Returns:
      uint8 (H, W, C).
    """
    image = _moved(image, operation, magnitude)
    factor = 1 + magnitude
    tables = {
        "Brightness": lambda levels: blend(levels, 0, factor),
        "Contrast": lambda levels: blend(levels, grayscale(image).astype(jnp.float32).mean(), factor),
        "Posterize": lambda levels: levels & -(2 ** (8 - magnitude.astype(jnp.int32))).astype(jnp.uint8),
        "Solarize": lambda levels: jnp.where(levels >= magnitude, 255 - levels, levels),
        "AutoContrast": lambda levels: _autocontrast(image, levels),
        "Equalize": lambda levels: _equalize(image, levels),
    }
    levels = table = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8)[:, None], (256, image.shape[-1]))
    for name, make in tables.items():
        table = jnp.where(operation == _NUMBER[name], make(levels), table)
    image = table[image.astype(jnp.int32), jnp.arange(image.shape[-1])]

    other = jnp.where(operation == _NUMBER["Color"], grayscale(image), _blurred(image))
    blends = (operation == _NUMBER["Color"]) | (operation == _NUMBER["Sharpness"])
    return jnp.where(blends, blend(image, other, factor), image)


def blend(image: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    """Returns factor * image + (1 - factor) * other, clipped to 0 and 255 and rounded down, uint8."""
    blended = factor * image + (1 - factor) * other
    return jnp.clip(blended + 1e-4, 0, 255).astype(jnp.uint8)  # 1e-4 because rounding errors may reduce a whole number


def grayscale(image: jax.Array) -> jax.Array:
    """Returns the brightness of uint8 (H, W, C) as uint8 (H, W, 1); returns a grey image unchanged."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.split(image.astype(jnp.float32), 3, axis=-1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).astype(jnp.uint8)


def shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Shifts the hue of uint8 (H, W, C) by a share of the colour circle, -0.5 to 0.5; returns grey images unchanged."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = (plane[..., 0] for plane in jnp.split(image.astype(jnp.float32) / 255, 3, axis=-1))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    spread = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(spread == 0, 1, spread)
    sector = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = 6 * ((sector / 6 + shift) % 1)
    # Along the colour circle of six sectors each channel is at its highest value for two sectors, falls by the spread
    # within one, stays there for two, and rises within one.
    channels = [value - spread * jnp.clip(jnp.minimum((n + hue) % 6, 4 - (n + hue) % 6), 0, 1) for n in (5, 3, 1)]
    return jnp.clip(jnp.stack(channels, -1) * 255.999, 0, 255).astype(jnp.uint8)


def _moved(image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Shears, translates or rotates with nearest-neighbour interpolation; pixels from outside are black."""
    height, width = image.shape[:2]
    y, x = jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)[None, :]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    cosine, sine = jnp.cos(jnp.deg2rad(magnitude)), jnp.sin(jnp.deg2rad(magnitude))
    sources = {
        "ShearX": (y, x + magnitude * (y + 0.5)),
        "ShearY": (y + magnitude * (x + 0.5), x),
        "TranslateX": (y, x - jnp.trunc(magnitude)),
        "TranslateY": (y - jnp.trunc(magnitude), x),
        "Rotate": (
            middle_y + sine * (x - middle_x) + cosine * (y - middle_y),
            middle_x + cosine * (x - middle_x) - sine * (y - middle_y),
        ),
    }
    from_y, from_x = jnp.broadcast_to(y, (height, width)), jnp.broadcast_to(x, (height, width))
    for name, (moved_y, moved_x) in sources.items():
        chosen = operation == _NUMBER[name]
        from_y, from_x = jnp.where(chosen, moved_y, from_y), jnp.where(chosen, moved_x, from_x)
    from_y, from_x = jnp.round(from_y).astype(jnp.int32), jnp.round(from_x).astype(jnp.int32)
    inside = (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    return jnp.where(inside[..., None], image.at[from_y, from_x].get(mode="clip"), 0)


def _autocontrast(image: jax.Array, levels: jax.Array) -> jax.Array:
    """Returns the table that stretches the levels of each channel to 0 to 255."""
    lowest, highest = image.min((0, 1)).astype(jnp.float32), image.max((0, 1)).astype(jnp.float32)
    stretched = (levels - lowest) * (255 / jnp.maximum(highest - lowest, 1))
    return jnp.where(highest > lowest, jnp.clip(stretched, 0, 255).astype(jnp.uint8), levels)


def _equalize(image: jax.Array, levels: jax.Array) -> jax.Array:
    """Returns the table that makes the levels of each channel about equally frequent, as Pillow does."""
    channels = jnp.arange(image.shape[-1])
    counts = jnp.zeros((256, len(channels)), jnp.int32).at[image.astype(jnp.int32), channels].add(1)
    step = (counts.sum(0) - counts[image.max((0, 1)), channels]) // 255
    below = jnp.cumsum(counts, 0) - counts
    equal = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255).astype(jnp.uint8)
    return jnp.where(step > 0, equal, levels)


def _blurred(image: jax.Array) -> jax.Array:
    """Returns the weighted mean over 3x3 pixels, where the middle has the weight 5; the border is unchanged."""
    if min(image.shape[:2]) <= 2:
        return image
    pixels = image.astype(jnp.float32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * pixels[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set(jnp.round(total / 13).astype(jnp.uint8))
