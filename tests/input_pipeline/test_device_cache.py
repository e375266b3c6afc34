"""A dataset on the devices: every image comes once an epoch, crops are the host's, and a resume needs only the step."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import base
from input_pipeline import DamagedImageError, Dataset, DeviceCache, cached_eval_batches, crops, eval_batches, images
from input_pipeline.device_cache import BLOCK, resized_crops
from training.state import make_mesh

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 16, 12, 3), np.uint8)


def numbered(shapes=((16, 12),) * 20):
    """Makes a dataset whose record i has label i and an image of noise."""
    return Dataset(
        name="numbered",
        split="train",
        class_names=tuple(str(label) for label in range(len(shapes))),
        size=len(shapes),
        read=lambda record: (np.resize(PIXELS[record % 20], (*shapes[record], 3)), record),
        describe=lambda record: f"record {record}",
    )


@pytest.fixture
def make_config():
    def make(**options):
        config = base.get_config()
        config.update(
            {"image_size": 8, "channels": 3, "batch_size": 8, "eval_batch_size": 8, "num_steps": 100, "cache": "device"}
        )
        config.update({"random_flip": True, "steps_per_dispatch": 1} | options)
        return config

    return make


def collect(cache, start, ends, seed=0):
    """Returns all images and labels of several calls, made as in a step."""
    make_batch, step, batches = jax.jit(cache.make_batch), start, []
    constants = {"seed": np.uint32(seed)}
    for end, cached in zip(ends, cache.batches(start, ends), strict=True):
        assert int(cached["count"]) == end - step
        batches += [jax.device_get(make_batch(cached | constants, np.int32(number))) for number in range(step, end)]
        step = end
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_every_image_comes_once_an_epoch_in_another_order(make_config):
    orders, first_epochs = set(), []
    for seed in (0, 1):
        cache = DeviceCache(numbered(), make_config(seed=seed, image_size=12), make_mesh(1))
        batch = collect(cache, 0, range(1, 11), seed)
        epochs = batch["label"].reshape(4, 20)  # two epochs end inside a batch of 8
        assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
        orders |= {tuple(epoch) for epoch in epochs}
        first_epochs.append(batch["image"][np.argsort(epochs[0])])
    assert len(orders) == 8
    assert np.mean(np.any(first_epochs[0] != first_epochs[1], (1, 2, 3))) > 0.9  # the crops differ too


def test_batches_are_functions_of_the_step(make_config):
    """Holds for any number of steps in a call, any batch size, and a resume at any step."""
    expected = collect(DeviceCache(numbered(), make_config(), make_mesh(1)), 0, range(1, 11))
    several = DeviceCache(numbered(), make_config(steps_per_dispatch=7), make_mesh(1))
    larger = DeviceCache(numbered(), make_config(batch_size=16), make_mesh(1))
    for found in (collect(several, 0, (1, 8, 10)), collect(larger, 0, range(1, 6))):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    resumed = collect(several, 3, (4, 10))
    jax.tree.map(lambda found, whole: np.testing.assert_array_equal(found, whole[24:]), resumed, expected)


def test_copies_of_a_repeated_image_are_the_same_for_any_calls(make_config):
    """Each batch has its part of the epochs with each record three times in a row; crops differ."""
    order = collect(DeviceCache(numbered(), make_config(), make_mesh(1)), 0, range(1, 11))["label"]
    options = {"repeated_augmentation": 3, "image_size": 12}
    repeated = collect(DeviceCache(numbered(), make_config(**options), make_mesh(1)), 0, range(1, 11))
    for batch, part in zip(repeated["label"].reshape(-1, 8), np.repeat(order, 3)[:80].reshape(-1, 8), strict=True):
        assert sorted(batch) == sorted(part) and (batch[0::2] != batch[1::2]).all()
    several = DeviceCache(numbered(), make_config(steps_per_dispatch=9, **options), make_mesh(1))
    for start, ends in ((0, (1, 10)), (4, (5, 10))):
        found = collect(several, start, ends)
        for name, whole in repeated.items():
            np.testing.assert_array_equal(found[name], whole[8 * start :])
    first = repeated["image"][repeated["label"] == order[0]][:3]
    assert len({copy.tobytes() for copy in first}) == 3


def test_padded_crops_lie_where_the_paper_puts_them(make_config):
    """Every crop is part of its image padded by four black pixels; all places occur, mirrored and not mirrored."""
    config = make_config(image_size=12, crop_padding=4)
    batch = collect(DeviceCache(numbered(), config, make_mesh(1)), 0, range(1, 101))
    places = set()
    for image, label in zip(batch["image"], batch["label"], strict=True):
        padded = np.pad(images.resize(PIXELS[label], 12, 12), ((4, 4), (4, 4), (0, 0)))
        found = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (1, -1)
            if np.array_equal(padded[top : top + 12, left : left + 12][:, ::flip], image)
        ]
        assert found
        places |= set(found)
    assert len(places) > 150  # of 162; in 800 draws a given place is missing with a probability of 1 in 140


def test_whole_images_are_the_hosts(make_config):
    config = make_config(train_crop="none", eval_resize=10, random_flip=False)
    batch = collect(DeviceCache(numbered(), config, make_mesh(1)), 0, (1, 2))
    expected = [images.resize_and_centre_crop(PIXELS[label], 8, 10) for label in batch["label"]]
    np.testing.assert_array_equal(batch["image"], expected)


@pytest.mark.parametrize("crop", ["random_resized", "scale_jitter"])
def test_the_same_numbers_give_the_hosts_boxes(crop):
    random = np.random.RandomState(0)
    uniforms, sides = random.rand(500, 24).astype(np.float32), random.randint(8, 300, (500, 2))
    if crop == "random_resized":
        area, aspect = (0.2, 1.0), (3 / 4, 4 / 3)
        expected = [crops.random_resized_box(*side, area, aspect, u) for side, u in zip(sides, uniforms, strict=True)]
        found = jax.vmap(lambda side, u: crops.device_random_resized_box(*side, u, area, aspect))(
            sides, uniforms[:, :23]
        )
    else:
        expected = [crops.scale_jitter_box(*side, 24, (32, 64), u) for side, u in zip(sides, uniforms, strict=True)]
        found = jax.vmap(lambda side, u: crops.device_scale_jitter_box(*side, u, 24, (32, 64)))(sides, uniforms)
    # In float32 a side or a place half-way between two pixels may be rounded differently.
    same = np.all(np.transpose(found) == np.array(expected), axis=1)
    assert same.mean() > 0.99


def test_resized_crops_are_within_one_level_of_the_hosts():
    """The crops grow, shrink a little, shrink a lot, or grow on one side and shrink on the other."""
    random, size = np.random.RandomState(0), 8
    shapes = random.randint(9, 60, (80, 2))
    sources = [random.randint(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    heights, widths = (np.array([random.randint(3, side + 1) for side in sides]) for sides in shapes.T)
    tops, lefts = (shapes - np.stack([heights, widths], 1)).T // 2
    flips = random.rand(len(shapes)) < 0.5
    offsets = np.cumsum([0, *shapes.prod(1)])[:-1]
    pixels = np.concatenate([source.reshape(-1, 3) for source in sources])
    boxes = tuple(map(np.int32, (tops, lefts, heights, widths)))
    found = jax.jit(resized_crops, static_argnums=(5, 6))(pixels, offsets, shapes[:, 1], boxes, flips, size, (9, 9))
    for row, (source, top, left, height, width) in enumerate(zip(sources, *boxes, strict=True)):
        expected = images.resize(source[top : top + height, left : left + width], size, size)
        expected = expected[:, ::-1] if flips[row] else expected
        assert np.abs(np.asarray(found[row], int) - expected).max() <= 1
    longest, shortest = np.maximum(heights, widths), np.minimum(heights, widths)
    for kind in (longest <= 8, (longest > 8) & (longest <= 24), longest > 24, (longest > 8) & (shortest < 8)):
        assert kind.sum() >= 3


def test_images_of_differing_sizes_train(make_config):
    """Each image has one colour, so a pixel that came from the neighbouring image in memory would be noticed."""
    shapes = [(9 + number, 30 - number) for number in range(20)]
    data = numbered(shapes)
    constant = Dataset(
        **{
            **data.__dict__,
            "read": lambda record: (np.full((*shapes[record], 3), 10 * record, np.uint8), record),
        }
    )
    for crop in ("random_resized", "scale_jitter"):
        cache = DeviceCache(constant, make_config(train_crop=crop, train_resize=(8, 12)), make_mesh(1))
        batch = collect(cache, 0, range(1, 11))
        assert np.all(batch["image"] == 10 * batch["label"][:, None, None, None])


SHAPES = tuple((9 + number, 30 - number) for number in range(20))


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 12, "crop_padding": 4, "steps_per_dispatch": 3},
        {"train_crop": "none", "repeated_augmentation": 3},
        {"train_crop": "random_resized"},
        {"train_crop": "scale_jitter", "train_resize": (8, 12)},
    ],
    ids=lambda options: options.get("train_crop", "pad"),
)
@pytest.mark.parametrize("devices", [2, 8])
def test_sharded_over_devices_the_batches_are_the_same_to_the_bit(make_config, options, devices):
    """The images are 20, so on eight devices some hold two and some three of them."""
    config, ends = make_config(**options), range(1, 8)
    whole = DeviceCache(numbered(SHAPES), config, make_mesh(1))
    config = make_config(**options, cache="sharded")
    sharded = DeviceCache(numbered(SHAPES), config, make_mesh(devices))
    jax.tree.map(np.testing.assert_array_equal, collect(sharded, 0, ends), collect(whole, 0, ends))
    longest = max(np.prod(shape) for shape in SHAPES) if "resized" in options.get("train_crop", "") else 0
    held = -(-20 // devices)
    assert sharded.num_bytes <= held * (whole.num_bytes / 20 + 3 * (longest + BLOCK))


def test_fewer_images_than_devices_are_not_sharded(make_config):
    config = make_config(cache="sharded")
    few = DeviceCache(numbered(SHAPES[:7]), config, make_mesh(8))
    assert all(array.sharding.is_fully_replicated for array in few.arrays.values())


def test_evaluation_batches_are_the_loaders(make_config):
    config = make_config(eval_resize=10)
    with eval_batches(numbered(), config) as batches:
        expected = list(batches)
    found = cached_eval_batches(numbered(), config, make_mesh(8))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
    assert found[0]["image"].sharding.spec == jax.sharding.PartitionSpec("data")


def test_bad_images(make_config):
    """In training the next good record replaces a damaged one, as in the host's batches; in evaluation none does."""

    def read(record):
        if record == 0:
            raise ValueError("its checksum is wrong")
        if record in (4, 5, 19):
            return b"no image", record
        return PIXELS[record], record

    bad = Dataset(**{**numbered().__dict__, "read": read})
    with pytest.raises(DamagedImageError, match="split 'train', record 0: its checksum"):
        DeviceCache(bad, make_config(), make_mesh(1))
    config = make_config(on_bad_image="skip", batch_size=20, random_flip=False, train_crop="none")
    cache = DeviceCache(bad, config, make_mesh(1))
    assert cache.bad_images == {0, 4, 5, 19}
    labels = collect(cache, 0, (1,))["label"]
    assert sorted(labels) == sorted([*(set(range(20)) - {0, 4, 5, 19}), 1, 6, 6, 1])
    with eval_batches(bad, config) as batches:
        jax.tree.map(np.testing.assert_array_equal, cached_eval_batches(bad, config, make_mesh(1)), list(batches))


def test_what_does_not_fit_is_refused(make_config, monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 5000, "bytes_in_use": 2000}

    def mesh(size):
        devices = [Device()] * size
        return SimpleNamespace(size=size, local_devices=devices, devices=np.array(devices))

    with pytest.raises(ValueError, match="does not fit: the train images of numbered take .*leave the cache out"):
        DeviceCache(numbered(), make_config(), mesh(1))
    with pytest.raises(ValueError, match="cache=device does not fit: .*give cache=sharded"):
        DeviceCache(numbered(), make_config(), mesh(2))
    with pytest.raises(ValueError, match="cache=sharded does not fit: .*leave the cache out"):
        DeviceCache(numbered(), make_config(cache="sharded", image_size=16), mesh(2))
    with pytest.raises(ValueError, match="cannot crop an image of 300 x 200 pixels to image_size=8"):
        config = make_config(train_crop="random_resized")
        DeviceCache(numbered([(16, 12), (200, 300)]), config, make_mesh(1))
    with pytest.raises(ValueError, match="2\\^32"):
        DeviceCache(numbered(), make_config(num_steps=2**30), make_mesh(1))
