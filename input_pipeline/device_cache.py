"""Keeps a whole dataset on the devices and makes its batches inside the jitted step, without work on the host.

The records form an endless sequence, shuffled anew for each epoch. Batch k holds the positions
[k batch_size, (k + 1) batch_size) of the sequence and may span two epochs. Order, crops and flips depend only on the
seed and the position, so a resume needs nothing but the step.
"""

import copy
import functools
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.augmentation import draw_uniforms
from input_pipeline.batches import read_good_image, read_image, skip_image
from input_pipeline.crops import (
    TRIES,
    DeviceBox,
    device_place,
    device_random_resized_box,
    device_scale_jitter_box,
    whole,
)
from input_pipeline.dataset import DamagedImageError, Dataset
from input_pipeline.repetition import place_of_record

Arrays = dict[str, jax.Array]
MOST_TAPS = 64
"""The most source pixels of one pixel of a crop; each of them adds an operation to the compiled step."""


class DeviceCache:
    """The training images on every device, and the function that makes a step's batch of them.

    If a crop is as large as the image (train_crop is pad or none), the images are resized once, on the host. Otherwise
    the images are stored one after the other in their own sizes, and each step resizes its crops.

    Attributes:
      arrays: on the devices: `label`, int32 (images,), and `pixels`. If all images have one size, `pixels` is uint8
        (images, image_size, image_size, channels). Otherwise it is uint8 (pixels of all images, channels), and there
        are each image's `offset`, `height` and `width`, int32 (images,).
      bad_images: indices of damaged records that were replaced by others, if on_bad_image is 'skip'.
    """

    def __init__(self, dataset: Dataset, config: ConfigDict, mesh: Mesh):
        """Decodes the whole dataset and puts it on the devices.

        Args:
          dataset: the training records.
          config: batch_size, num_steps, repeated_augmentation, seed, image_size, channels, the crop's options,
            steps_per_dispatch, decode_threads, on_bad_image.
          mesh: the devices; each holds the whole dataset.

        Raises:
          ValueError: if the dataset does not fit into a device's memory.
          DamagedImageError: if an image cannot be decoded.
        """
        if config.num_steps * config.batch_size >= 2**32:
            raise ValueError(
                f"num_steps={config.num_steps} of batch_size={config.batch_size} are more images than cache=device "
                "counts, 2^32; train shorter, or leave the cache out"
            )
        self._config, self._num_images = config, len(dataset)
        self._resizes = config.train_crop in ("random_resized", "scale_jitter")
        self.bad_images: set[int] = set()

        def read(record: int, transform: Callable) -> tuple[np.ndarray, int]:
            return read_good_image(dataset, record, transform, self.bad_images, config)

        pixels, labels, shapes = _read_all(dataset, config, mesh, _own_size if self._resizes else _final_size, read)
        if self._resizes:
            offsets = np.cumsum(np.append(0, shapes.prod(1)))
            if offsets[-1] >= 2**31:
                raise ValueError(
                    f"{dataset.name} has {offsets[-1]:,} pixels, and cache=device takes 2^31; leave it out"
                )
            self._taps = _most_taps(config, *shapes.T)
            arrays = {"pixels": pixels.reshape(-1, config.channels), "label": labels}
            arrays |= {"offset": offsets[:-1].astype(np.int32), "height": shapes[:, 0], "width": shapes[:, 1]}
        else:
            shape = len(dataset), config.image_size, config.image_size, config.channels
            arrays = {"pixels": pixels.reshape(shape), "label": labels}
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.arrays = {name: _put(array, self.replicated) for name, array in arrays.items()}

    @property
    def num_bytes(self) -> int:
        """Memory on each device, bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def make_batch(self, cached: Arrays, step: jax.Array) -> Arrays:
        """Returns the batch of a step. It is called inside jit, where each device makes its own rows.

        Args:
          cached: the arrays and the order of the epochs, from `batches`.
          step: steps done before, an integer scalar.

        Returns:
          `image`, uint8 (batch_size, image_size, image_size, channels), and `label`, int32 (batch_size,).
        """
        config = self._config
        rows = jnp.arange(config.batch_size, dtype=jnp.uint32)
        positions = places = step.astype(jnp.uint32) * config.batch_size + rows
        if config.repeated_augmentation > 1:
            places = place_of_record(step.astype(jnp.uint32), rows, config.batch_size, config.repeated_augmentation)
        epochs = places // self._num_images - cached["first_epoch"]
        records = cached["order"][epochs, places % self._num_images]
        uniforms = draw_uniforms(config.seed, "crop", positions, 2 * TRIES + 3 if self._resizes else 3)
        flips = uniforms[:, -1] < (0.5 if config.random_flip else 0)
        if self._resizes:
            heights, widths = cached["height"][records], cached["width"][records]
            if config.train_crop == "random_resized":
                box = functools.partial(device_random_resized_box, area=config.crop_area, aspect=config.crop_aspect)
            else:
                box = functools.partial(
                    device_scale_jitter_box, image_size=config.image_size, train_resize=config.train_resize
                )
            boxes = jax.vmap(box)(heights, widths, uniforms)
            sources = cached["pixels"], cached["offset"][records], widths
            images = resized_crops(*sources, boxes, flips, config.image_size, self._taps)
        else:
            padding = config.crop_padding if config.train_crop == "pad" else 0
            images = padded_crops(cached["pixels"], records, padding, flips, uniforms)
        return {"image": images, "label": cached["label"][records]}

    def with_config(self, config: ConfigDict) -> "DeviceCache":
        """Returns a cache with the same arrays for another batch_size."""
        other = copy.copy(self)
        other._config = config
        return other

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes, types and shardings of an item of `batches`."""
        order = (epochs_of_call(self._config, self._num_images), self._num_images)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
        shapes |= {name: (array.shape, array.dtype) for name, array in self.arrays.items()}
        shapes |= {"order": (order, np.int32), "first_epoch": ((), np.uint32), "count": ((), np.int32)}
        return {name: jax.ShapeDtypeStruct(*shape, sharding=self.replicated) for name, shape in shapes.items()}

    def batches(self, start: int, ends: Iterable[int]) -> "CachedBatches":
        """Returns an iterator of the third argument of make_train_step's step, one item for each call.

        Args:
          start: steps done before the first call.
          ends: for each call, the steps done after it.
        """
        return CachedBatches(self, self._config, self._num_images, start, ends)


def epochs_of_call(config: ConfigDict, num_images: int) -> int:
    """Returns the largest number of epochs that one call of the step can take images from."""
    copies = config.repeated_augmentation
    records = (config.steps_per_dispatch * config.batch_size - 1) // copies + (2 if copies > 1 else 1)
    return (num_images - 1 + records - 1) // num_images + 1


class CachedBatches:
    """An iterator of the arguments of the cached step, made by DeviceCache.batches.

    Attributes:
      host: the cache.
      wait_seconds: always 0, because no call waits for input.
    """

    wait_seconds = 0.0

    def __init__(self, cache: DeviceCache, config: ConfigDict, num_images: int, start: int, ends: Iterable[int]):
        self.host, self._batch_size, self._num_images = cache, config.batch_size, num_images
        self._copies = config.repeated_augmentation
        self._step, self._ends, self._epoch = start, iter(ends), None
        epochs = epochs_of_call(config, num_images)

        def shuffle(first_epoch: jax.Array) -> Arrays:
            key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(b"order"))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first_epoch + jnp.arange(epochs, dtype=jnp.uint32))
            records = jnp.arange(num_images, dtype=jnp.int32)
            order = jax.vmap(jax.random.permutation, (0, None))(keys, records)
            return {"order": order, "first_epoch": first_epoch}

        self._shuffle = jax.jit(shuffle, out_shardings=cache.replicated)

    def __iter__(self) -> "CachedBatches":
        return self

    def __next__(self) -> Arrays:
        end = next(self._ends)
        epoch, count = self._step * self._batch_size // self._copies // self._num_images, end - self._step
        if epoch != self._epoch:
            self._order, self._epoch = self._shuffle(self._scalar(np.uint32(epoch))), epoch
        self._step = end
        return self.host.arrays | self._order | {"count": self._scalar(np.int32(count))}

    def _scalar(self, value: np.generic) -> jax.Array:
        return _put(value, self.host.replicated)

    def __enter__(self) -> "CachedBatches":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def cached_eval_batches(dataset: Dataset, config: ConfigDict, mesh: Mesh) -> list[Arrays]:
    """Returns the same batches as input_pipeline.eval_batches, on the devices, with rows split over the mesh.

    Raises:
      ValueError: if the batches do not fit into the devices' memory.
      DamagedImageError: if an image cannot be decoded.
    """
    shape, mask = (config.image_size, config.image_size, config.channels), np.ones(len(dataset), np.float32)

    def read(record: int, transform: Callable) -> tuple[np.ndarray, int]:
        try:
            return read_image(dataset, record, transform)
        except DamagedImageError as error:
            skip_image(error, record, set(), config)
            mask[record] = 0
            return np.zeros(shape, np.uint8), 0

    pixels, labels, _ = _read_all(dataset, config, mesh, _evaluated, read)
    arrays = {"image": pixels.reshape(-1, *shape), "label": labels, "mask": mask}
    missing = -len(dataset) % config.eval_batch_size
    arrays = {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in arrays.items()}
    split, rows = NamedSharding(mesh, PartitionSpec("data")), config.eval_batch_size // jax.process_count()
    firsts = range(jax.process_index() * rows, len(arrays["mask"]), config.eval_batch_size)
    return [{name: _put(array[first : first + rows], split) for name, array in arrays.items()} for first in firsts]


def padded_crops(
    pixels: jax.Array, records: jax.Array, padding: int, flips: jax.Array, uniforms: jax.Array
) -> jax.Array:
    """Pads images with black, crops them to their old size at random places (He 2015, section 4.2), and mirrors some.

    Args:
      pixels: uint8 (images, H, W, C).
      records: (N,) indices of the images.
      padding: pixels on each side.
      flips: (N,) bool, True for images to mirror.
      uniforms: (N, >= 2) in [0, 1); the first two numbers give the place of the crop.

    Returns:
      uint8 (N, H, W, C).
    """
    height, width = pixels.shape[1:3]
    place = jax.vmap(lambda u: device_place(u, height + 2 * padding, width + 2 * padding, height, width))
    tops, lefts = place(uniforms)
    y = tops[:, None] - padding + jnp.arange(height)
    x = jnp.arange(width)
    x = lefts[:, None] - padding + jnp.where(flips[:, None], x[::-1], x)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    crops = pixels.at[records[:, None, None], y[:, :, None], x[:, None, :]].get(mode="clip")
    return jnp.where(inside[..., None], crops, 0) if padding else crops


def resized_crops(
    pixels: jax.Array,
    offsets: jax.Array,
    widths: jax.Array,
    boxes: DeviceBox,
    flips: jax.Array,
    image_size: int,
    taps: Sequence[int],
) -> jax.Array:
    """Resizes crops of images that are stored one after the other, in the same way as input_pipeline.images.resize.

    Args:
      pixels: uint8 (pixels of all images, C).
      offsets: (N,) index of the first pixel of each image.
      widths: (N,) width of each image, pixels.
      boxes: top, left, height and width of the crops, (N,) each.
      flips: (N,) bool, True for crops to mirror.
      image_size: side of the result, pixels.
      taps: the most source pixels, down and across, of a pixel of the result.

    Returns:
      uint8 (N, image_size, image_size, C), within one level of the host's result.
    """
    tops, lefts, heights, widths_of_boxes = boxes
    longest = jnp.maximum(heights, widths_of_boxes)
    shrinks, far = longest > image_size, longest > 3 * image_size
    y, weights_y = _sources(heights, shrinks, far, image_size, taps[0])
    x, weights_x = _sources(widths_of_boxes, shrinks, far, image_size, taps[1])
    x, weights_x = (jnp.where(flips[:, None, None], array[:, ::-1], array) for array in (x, weights_x))
    first_of_row = offsets[:, None, None] + (tops[:, None, None] + y) * widths[:, None, None]
    column = lefts[:, None, None] + x
    total = 0.0
    for down in range(taps[0]):
        for across in range(taps[1]):
            weight = weights_y[:, :, None, down] * weights_x[:, None, :, across]
            source = pixels[first_of_row[:, :, None, down] + column[:, None, :, across]]
            total += weight[..., None] * source.astype(jnp.float32)
    return jnp.round(total).astype(jnp.uint8)


def _sources(
    lengths: jax.Array, shrinks: jax.Array, far: jax.Array, size: int, taps: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the source pixels of each pixel of the result along one side: places in the box and weights.

    Both have the shape (N, size, taps).
    """
    lengths, shrinks, far = (sides[:, None, None] for sides in (lengths.astype(jnp.float32), shrinks, far))
    scale, pixel = lengths / size, jnp.arange(size, dtype=jnp.float32)[:, None]

    def centre(share: float | jax.Array) -> jax.Array:
        """Returns where a point of each result pixel (share 0: its beginning, 1: its end) is in the box, in pixels.

        The point is limited to the range between the centres of the box's first and last pixel.
        """
        return jnp.clip((pixel + share) * scale, 0.5, lengths - 0.5)

    average = far & (lengths > size)  # a crop may shrink a lot on one side and grow on the other: that is interpolated
    halves = jnp.where(shrinks & ~far, 0.25, 0.0)
    first, second = centre(0.5 - halves), centre(0.5 + halves)
    begin, end = pixel * scale, (pixel + 1) * scale
    place = jnp.floor(jnp.where(average, begin, first - 0.5)) + jnp.arange(taps, dtype=jnp.float32)
    area = jnp.minimum(place + 1, end) - jnp.maximum(place, begin)
    linear = sum(jnp.maximum(1 - jnp.abs(place + 0.5 - point), 0) for point in (first, second))
    weights = jnp.where(average, jnp.maximum(area, 0), linear)
    return jnp.minimum(place, lengths - 1).astype(jnp.int32), weights / weights.sum(-1, keepdims=True)


def _most_taps(config: ConfigDict, heights: np.ndarray, widths: np.ndarray) -> tuple[int, int]:
    """Returns the most source pixels, down and across, of a pixel of any crop of these images."""
    if config.train_crop == "random_resized":
        narrowest, widest = config.crop_aspect
        highest = np.minimum(heights, widths / narrowest + 1)
        widest = np.minimum(widths, heights * widest + 1)
    else:
        highest = widest = np.minimum(heights, widths) * config.image_size / config.train_resize[0] + 1
    scales = highest.max() / config.image_size, widest.max() / config.image_size
    taps = tuple(math.ceil(scale) + 1 if scale > 3 else math.ceil(scale / 2) + 2 for scale in scales)
    if math.prod(taps) > MOST_TAPS:
        largest = np.argmax(heights * widths)
        raise ValueError(
            f"cache=device cannot crop an image of {widths[largest]} x {heights[largest]} pixels to "
            f"image_size={config.image_size} fast enough: shrink the images by prepare.py --max_side, or leave it out"
        )
    return taps


def _put(value: np.ndarray | np.generic, sharding: NamedSharding) -> jax.Array:
    """Puts this process's part of an array on its devices."""
    # train.py forbids implicit copies to the devices; with several processes JAX counts this copy as one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(sharding, value)


def _own_size(config: ConfigDict) -> Callable:
    from input_pipeline import images

    decode = images.box_decoder(config)
    return lambda image: decode(image, whole, math.inf)


def _final_size(config: ConfigDict) -> Callable:
    if config.train_crop == "none":
        return _evaluated(config)
    from input_pipeline import images

    decode, size = images.box_decoder(config), config.image_size
    return lambda image: images.resize(decode(image, whole, size), size, size, config.interpolation)


def _evaluated(config: ConfigDict) -> Callable:
    from input_pipeline import images

    return images.evaluation_transform(config)


def _read_all(
    dataset: Dataset,
    config: ConfigDict,
    mesh: Mesh,
    make_transform: Callable[[ConfigDict], Callable],
    read: Callable[[int, Callable], tuple[np.ndarray, int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads every record on a pool of threads.

    Returns:
      The bytes of all images, uint8; labels, int32 (images,); heights and widths, int32 (images, 2).
    """
    shape = config.image_size, config.image_size, config.channels
    try:
        first = dataset[0][0]
    except (ValueError, OSError):
        first = None  # the error is raised below, where all records are read
    # Arrays that need no transform do not need OpenCV either, which may not be installed.
    ready = isinstance(first, np.ndarray) and first.shape == shape and not config.eval_resize
    transform = (lambda image: image) if ready else make_transform(config)
    statistics = [device.memory_stats() or {} for device in mesh.local_devices]
    free = min((s["bytes_limit"] - s["bytes_in_use"] for s in statistics if "bytes_limit" in s), default=math.inf)

    pixels, labels, shapes = bytearray(), [], []
    # Each task has many records, because submitting a task takes as long as decoding a small image.
    tasks = [range(first, min(first + 64, len(dataset))) for first in range(0, len(dataset), 64)]
    pool = ThreadPoolExecutor(config.decode_threads or None, thread_name_prefix="decode")
    try:
        for examples in pool.map(lambda records: [read(record, transform) for record in records], tasks):
            for image, label in examples:
                pixels += image.tobytes()
                labels.append(label)
                shapes.append(image.shape[:2])
            needed = len(pixels) * len(dataset) // len(labels)
            if needed > free:
                raise ValueError(
                    f"cache=device does not fit: the {dataset.split} images of {dataset.name} take about "
                    f"{needed / 2**20:,.1f} MiB, and a device has {free / 2**20:,.1f} MiB free; leave the cache out"
                )
    finally:
        pool.shutdown(cancel_futures=True)
    return np.frombuffer(pixels, np.uint8), np.array(labels, np.int32), np.array(shapes, np.int32)
