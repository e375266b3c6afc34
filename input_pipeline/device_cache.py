"""Keeps a dataset on the devices and makes its batches inside the jitted step, without work on the host.

The records form an endless sequence, shuffled anew for each epoch. Batch k holds the positions
[k batch_size, (k + 1) batch_size) of the sequence and may span two epochs. Order, crops and flips depend only on the
seed and the position, so a resume needs nothing but the step.
"""

import copy
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.augmentation import draw_uniforms
from input_pipeline.batches import num_decode_threads, read_good_image, read_image, skip_image
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
BLOCK = 128
"""With cache=sharded each image of its own size begins at a multiple of this many pixels, because a device may hold
more pixels than an int32 can count."""


class DeviceCache:
    """The training images on the devices, and the function that makes a step's batch of them.

    With cache=device every device holds all images. With cache=sharded the first of n devices holds the images 0, n, 2n
    and so on, the next one 1, n + 1, 2n + 1, and in each step the devices exchange the images of the batch. The batches
    are the same.

    If a crop is as large as the image (train_crop is pad or none), the images are resized once, on the host. Otherwise
    the images are stored one after the other in their own sizes, and each step resizes its crops.

    Attributes:
      arrays: on the devices: `label`, int32 (images,), and `pixels`. If all images have one size, `pixels` is uint8
        (images, image_size, image_size, channels). Otherwise it is uint8 (pixels of all images, channels), and there
        are each image's `offset`, `height` and `width`, int32 (images,). With cache=sharded each array is split along
        its first axis, and each device's part is filled up to the length of the longest part. `pixels` of images in
        their own sizes is then uint8 (blocks, BLOCK, channels), and `offset` counts the blocks of the device's part.
      bad_images: indices of damaged records that were replaced by others, if on_bad_image is 'skip'.
    """

    def __init__(self, dataset: Dataset, config: ConfigDict, mesh: Mesh):
        """Decodes the dataset and puts it on the devices. Until then the host holds the images of its devices.

        Args:
          dataset: the training records.
          config: cache, batch_size, num_steps, repeated_augmentation, seed, image_size, channels, the crop's options,
            steps_per_dispatch, decode_threads, on_bad_image.
          mesh: the devices. If there are more of them than images, each holds all images.

        Raises:
          ValueError: if the dataset does not fit into a device's memory.
          DamagedImageError: if an image cannot be decoded.
        """
        if config.num_steps * config.batch_size >= 2**32:
            raise ValueError(
                f"num_steps={config.num_steps} of batch_size={config.batch_size} are more images than "
                f"cache={config.cache} counts, 2^32; train shorter, or leave the cache out"
            )
        self._config, self._mesh, self._num_images = config, mesh, len(dataset)
        self._resizes = config.train_crop in ("random_resized", "scale_jitter")
        self._sharded = config.cache == "sharded" and 1 < mesh.size <= len(dataset)
        self._block = BLOCK if self._sharded and self._resizes else 1
        self.bad_images: set[int] = set()

        def read(record: int, transform: Callable) -> tuple[np.ndarray, int]:
            return read_good_image(dataset, record, transform, self.bad_images, config)

        devices, multiple = mesh.size if self._sharded else 1, self._block * config.channels
        transform = _own_size if self._resizes else _final_size
        parts = _read_all(dataset, config, mesh, transform, read, devices, devices, multiple)
        if self._resizes:
            self._bound_crops(dataset.name, np.concatenate([np.array(part.shapes) for part in parts.values()]))
        arrays = {number: self._arrays(part) for number, part in parts.items()}
        self.replicated = NamedSharding(mesh, PartitionSpec())
        if self._sharded:
            names = next(iter(arrays.values()))
            self.arrays = {name: _put_parts({n: part[name] for n, part in arrays.items()}, mesh) for name in names}
        else:
            self.arrays = {name: _put(array, self.replicated) for name, array in arrays[0].items()}

    def _bound_crops(self, name: str, shapes: np.ndarray) -> None:
        """Finds the most source pixels of an image and of a pixel of a crop, over all processes.

        Args:
          name: of the dataset.
          shapes: heights and widths of this process's images, (images, 2).

        Raises:
          ValueError: if they are too many.
        """
        blocks = -(-shapes.prod(1) // self._block)
        largest = _largest_of_all_processes(blocks.max(), *_most_taps(self._config, *shapes.T))
        self._most_blocks, self._taps = largest[0], tuple(largest[1:])
        # Pixels have int32 indices: all pixels of the dataset, or with cache=sharded those that a step exchanges.
        images = self._config.batch_size // self._mesh.size
        pixels = images * self._most_blocks * BLOCK if self._sharded else blocks.sum()
        if pixels >= 2**31:
            what = f"{images} of the largest images of {name} have" if self._sharded else f"{name} has"
            raise ValueError(f"{what} {pixels:,} pixels, and cache={self._config.cache} takes 2^31; leave it out")

    def _arrays(self, part: "_Images") -> dict[str, np.ndarray]:
        """Returns the arrays of decoded images, on the host."""
        pixels, config = np.frombuffer(part.pixels, np.uint8), self._config
        arrays: dict[str, np.ndarray] = {"label": np.array(part.labels, np.int32)}
        if not self._resizes:
            return arrays | {"pixels": pixels.reshape(-1, config.image_size, config.image_size, config.channels)}
        shapes = np.array(part.shapes, np.int32)
        offsets = np.cumsum(np.append(0, -(-shapes.prod(1) // self._block)))[:-1].astype(np.int32)
        arrays["pixels"] = pixels.reshape(-1, *([BLOCK] if self._sharded else []), config.channels)
        return arrays | {"offset": offsets, "height": shapes[:, 0], "width": shapes[:, 1]}

    @property
    def num_bytes(self) -> int:
        """Memory on each device, bytes."""
        return sum(array.addressable_shards[0].data.nbytes for array in self.arrays.values())

    def make_batch(self, cached: Arrays, step: jax.Array) -> Arrays:
        """Returns the batch of a step. It is called inside jit, where each device makes its own rows.

        Args:
          cached: the arrays and the order of the epochs, from `batches`, and `seed`, the run's, a uint32 scalar.
          step: steps done before, an integer scalar.

        Returns:
          `image`, uint8 (batch_size, image_size, image_size, channels), and `label`, int32 (batch_size,).
        """
        cached = {name: cached[name] for name in [*self.arrays, "order", "first_epoch", "seed"]}
        if not self._sharded:
            return self._make_rows(cached, step)
        split, whole = PartitionSpec("data"), PartitionSpec()
        specs = {name: split if name in self.arrays else whole for name in cached}
        return jax.shard_map(self._make_rows, mesh=self._mesh, in_specs=(specs, whole), out_specs=split)(cached, step)

    def _make_rows(self, cached: Arrays, step: jax.Array) -> Arrays:
        """Returns the batch of a step; if the images are sharded, this device's rows of it."""
        config, step = self._config, step.astype(jnp.uint32)
        rows = jnp.arange(config.batch_size, dtype=jnp.uint32)
        places = step * config.batch_size + rows
        if config.repeated_augmentation > 1:
            places = place_of_record(step, rows, config.batch_size, config.repeated_augmentation)
        epochs = places // self._num_images - cached["first_epoch"]
        records = cached["order"][epochs, places % self._num_images]
        if self._sharded:
            images = {name: cached[name] for name in self.arrays}
            cached |= _exchange(images, records, self._most_blocks if self._resizes else None)
            records = jnp.arange(config.batch_size // self._mesh.size)
            rows = rows[: len(records)] + jax.lax.axis_index("data").astype(jnp.uint32) * len(records)
        positions = step * config.batch_size + rows
        uniforms = draw_uniforms(cached["seed"], "crop", positions, 2 * TRIES + 3 if self._resizes else 3)
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
        shapes: dict[str, tuple[tuple[int, ...], Any]]
        shapes = {"order": (order, np.int32), "first_epoch": ((), np.uint32), "count": ((), np.int32)}
        others = {name: jax.ShapeDtypeStruct(*shape, sharding=self.replicated) for name, shape in shapes.items()}
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.arrays) | others

    def batches(self, start: int, ends: Iterable[int]) -> "CachedBatches":
        """Returns an iterator of the third argument of make_train_step's step without the constants, one item a call.

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

        def shuffle(seed: jax.Array, first_epoch: jax.Array) -> Arrays:
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"order"))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first_epoch + jnp.arange(epochs, dtype=jnp.uint32))
            records = jnp.arange(num_images, dtype=jnp.int32)
            order = jax.vmap(jax.random.permutation, (0, None))(keys, records)
            return {"order": order, "first_epoch": first_epoch}

        self._shuffle = jax.jit(shuffle, out_shardings=cache.replicated)
        self._seed = self._scalar(np.uint32(config.seed))

    def __iter__(self) -> "CachedBatches":
        return self

    def __next__(self) -> Arrays:
        end = next(self._ends)
        epoch, count = self._step * self._batch_size // self._copies // self._num_images, end - self._step
        if epoch != self._epoch:
            self._order, self._epoch = self._shuffle(self._seed, self._scalar(np.uint32(epoch))), epoch
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

    images = _read_all(dataset, config, mesh, _evaluated, read, devices=mesh.size)[0]
    pixels = np.frombuffer(images.pixels, np.uint8).reshape(-1, *shape)
    arrays: dict[str, np.ndarray] = {"image": pixels, "label": np.array(images.labels, np.int32), "mask": mask}
    missing = -len(dataset) % config.eval_batch_size
    arrays = {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in arrays.items()}
    split, rows = NamedSharding(mesh, PartitionSpec("data")), config.eval_batch_size // jax.process_count()
    firsts = range(jax.process_index() * rows, len(arrays["mask"]), config.eval_batch_size)
    return [{name: _put(array[first : first + rows], split) for name, array in arrays.items()} for first in firsts]


def _exchange(arrays: Arrays, records: jax.Array, most_blocks: int | None) -> Arrays:
    """Gives each device the images of its rows of a batch; it is called inside jax.shard_map.

    For all rows each device fills in the images that it holds, and zeros for the others. A reduce-scatter adds up these
    rows and gives each device its own. The sum is exact, because only one device has other numbers than zeros.

    Args:
      arrays: this device's part of the attribute `arrays` of a sharded cache.
      records: indices of the images of the whole batch, (batch_size,).
      most_blocks: of an image, if the images have their own sizes.

    Returns:
      The images of this device's rows in their order, as `arrays` of a cache that is not sharded.
    """
    devices, index = jax.lax.axis_size("data"), jax.lax.axis_index("data")
    places, held = records // devices, records % devices == index

    def sum_up(rows: jax.Array) -> jax.Array:
        rows = jnp.where(held.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)
        return jax.lax.psum_scatter(rows, "data", tiled=True)

    names = arrays.keys() - {"pixels", "offset"}
    found = {name: sum_up(arrays[name][places]) for name in sorted(names)}  # a set has another order in each process
    if most_blocks is None:
        return found | {"pixels": sum_up(arrays["pixels"][places])}
    blocks = arrays["offset"][places][:, None] + jnp.arange(most_blocks)  # those after the image's last are not used
    pixels = sum_up(arrays["pixels"].at[blocks].get(mode="clip"))
    offsets = jnp.arange(len(pixels), dtype=jnp.int32) * (most_blocks * BLOCK)
    return found | {"pixels": pixels.reshape(-1, pixels.shape[-1]), "offset": offsets}


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
            f"cache={config.cache} cannot crop an image of {widths[largest]} x {heights[largest]} pixels to "
            f"image_size={config.image_size} fast enough: shrink the images by prepare.py --max_side, or leave it out"
        )
    return taps


def _put(value: np.ndarray | np.generic, sharding: NamedSharding) -> jax.Array:
    """Puts this process's part of an array on its devices."""
    # train.py forbids implicit copies to the devices; with several processes JAX counts this copy as one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(sharding, value)


def _put_parts(parts: dict[int, np.ndarray], mesh: Mesh) -> jax.Array:
    """Puts an array on the devices, split along its first axis.

    Args:
      parts: the part of each device of this process, by the device's place in the mesh. All parts are filled up with
        zeros to the length of the longest part of any process.
      mesh: the devices.
    """
    (length,) = _largest_of_all_processes(max(map(len, parts.values())))
    on_devices = []
    for number, part in sorted(parts.items()):
        filled = np.pad(part, [(0, length - len(part))] + [(0, 0)] * (part.ndim - 1))
        on_devices.append(jax.device_put(filled, mesh.devices.flat[number]))
    shape, split = (mesh.size * length, *part.shape[1:]), NamedSharding(mesh, PartitionSpec("data"))
    return jax.make_array_from_single_device_arrays(shape, split, on_devices)


def _largest_of_all_processes(*numbers: int) -> list[int]:
    """Returns the largest of each number over all processes; all of them must call it."""
    return multihost_utils.process_allgather(np.array(numbers, np.int32)).max(axis=0).tolist()


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


@dataclasses.dataclass
class _Images:
    """Decoded images.

    Attributes:
      pixels: the bytes of one image after the other.
      labels: of each image.
      shapes: height and width of each image.
    """

    pixels: bytearray = dataclasses.field(default_factory=bytearray)
    labels: list[int] = dataclasses.field(default_factory=list)
    shapes: list[tuple[int, int]] = dataclasses.field(default_factory=list)


def _read_all(
    dataset: Dataset,
    config: ConfigDict,
    mesh: Mesh,
    make_transform: Callable[[ConfigDict], Callable],
    read: Callable[[int, Callable], tuple[np.ndarray, int]],
    devices: int,
    num_parts: int = 1,
    multiple: int = 1,
) -> dict[int, _Images]:
    """Reads records on a pool of threads.

    Args:
      dataset: the records.
      config: the options.
      mesh: the devices whose memory must suffice.
      make_transform: returns the function that decodes and resizes an image.
      read: reads a record.
      devices: over how many devices the images will be split.
      num_parts: 1, or the number of devices; part n then has the records n, n + num_parts and so on.
      multiple: an image takes a multiple of so many bytes.

    Returns:
      The images of each part. If there are several, a process reads only the parts of its devices.
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

    ours = [number for number, device in enumerate(mesh.devices.flat) if device in mesh.local_devices]
    parts = {number: _Images() for number in (ours if num_parts > 1 else [0])}
    records = [record for record in range(len(dataset)) if record % num_parts in parts]
    # Each task has many records, because submitting a task takes as long as decoding a small image.
    tasks = [records[first : first + 64] for first in range(0, len(records), 64)]
    pool = ThreadPoolExecutor(num_decode_threads(config), thread_name_prefix="decode")
    try:
        results = pool.map(lambda records: [read(record, transform) for record in records], tasks)
        for task, examples in zip(tasks, results, strict=True):
            for record, (image, label) in zip(task, examples, strict=True):
                part = parts[record % num_parts]
                part.pixels += image.tobytes() + bytes(-image.size % multiple)
                part.labels.append(label)
                part.shapes.append(image.shape[:2])
            size, done = (sum(len(getattr(part, name)) for part in parts.values()) for name in ("pixels", "labels"))
            needed = size * len(dataset) // done // devices
            if needed > free:
                shards = config.cache == "device" and needed // mesh.size < free
                raise ValueError(
                    f"cache={config.cache} does not fit: the {dataset.split} images of {dataset.name} take about "
                    f"{needed / 2**20:,.1f} MiB on a device, which has {free / 2**20:,.1f} MiB free; "
                    + ("give cache=sharded" if shards else "leave the cache out")
                )
    finally:
        pool.shutdown(cancel_futures=True)
    return parts
