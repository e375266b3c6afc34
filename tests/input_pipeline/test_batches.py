import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from input_pipeline import (
    DamagedImageError,
    Dataset,
    UnreadableImageError,
    eval_batches,
    load_dataset,
    to_device,
    train_batches,
)

pytestmark = pytest.mark.smoke


@pytest.fixture
def numbered():
    """Makes a dataset whose record i has label i and an image of noise."""

    def make(size):
        pixels = np.random.default_rng(0).integers(0, 256, (size, 16, 12, 3), np.uint8)
        return Dataset(
            name="numbered",
            split="train",
            class_names=tuple(str(label) for label in range(size)),
            size=size,
            read=lambda record: (pixels[record], record),
            describe=lambda record: f"record {record}",
        )

    return make


def collect(batches):
    """Returns all batches of an iterator, with each array joined along its rows."""
    with batches:
        batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(batches, expected):
    assert batches.keys() == expected.keys()
    for name in batches:
        np.testing.assert_array_equal(batches[name], expected[name])


def test_every_image_comes_once_an_epoch_in_another_order(numbered, make_config):
    labels = collect(train_batches(numbered(20), make_config(batch_size=8), num_steps=10))["label"]
    epochs = labels.reshape(4, 20)  # 10 batches of 8 are 4 epochs of 20; two epochs end inside a batch
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_have_the_shapes_and_types_promised(numbered, make_config):
    with train_batches(numbered(20), make_config(batch_size=6, image_size=10)) as batches:
        batch = next(batches)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "image": ((6, 10, 10, 3), np.uint8),
        "label": ((6,), np.int32),
    }


def test_seeds_differ_in_order_and_crops(numbered, make_config):
    dataset = numbered(50)
    runs = [collect(train_batches(dataset, make_config(seed=seed), num_steps=25)) for seed in range(3)]
    orders = [tuple(epoch) for run in runs for epoch in run["label"].reshape(4, 50)]
    assert len(set(orders)) == 12  # no two seeds have an epoch with the same order
    first = [run["image"][run["label"] == 0][0] for run in runs]
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[1], first[2])


def test_an_image_is_cropped_anew_each_epoch(numbered, make_config):
    run = collect(train_batches(numbered(8), make_config(), num_steps=4))
    crops = run["image"][run["label"] == 3]
    assert len({crop.tobytes() for crop in crops}) == 4


@pytest.mark.parametrize("crop", ["random_resized", "scale_jitter", "pad"])
@pytest.mark.parametrize("processes, threads", [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_same_global_batches_for_any_processes_and_threads(numbered, make_config, crop, processes, threads):
    dataset = numbered(20)
    config = make_config(batch_size=12, train_crop=crop, decode_threads=2)
    expected = collect(train_batches(dataset, config, num_steps=3))
    config.decode_threads = threads
    parts = [
        collect(train_batches(dataset, config, process_index=index, process_count=processes, num_steps=3))
        for index in range(processes)
    ]
    for name in expected:
        batches = [part[name].reshape(3, 12 // processes, *part[name].shape[1:]) for part in parts]
        np.testing.assert_array_equal(np.concatenate(batches, axis=1).reshape(expected[name].shape), expected[name])


@pytest.mark.parametrize("step, threads", [(1, 2), (4, 1), (7, 5)])
def test_resume_gives_the_tail_of_the_whole_run(numbered, make_config, step, threads):
    dataset, config = numbered(20), make_config(batch_size=8)
    whole = collect(train_batches(dataset, config, num_steps=8))
    config.decode_threads = threads
    tail = collect(train_batches(dataset, config, start_step=step, num_steps=8))
    assert_same(tail, {name: array[8 * step :] for name, array in whole.items()})


def test_crops_do_not_depend_on_the_batch_size(numbered, make_config):
    dataset = numbered(20)
    runs = [
        collect(train_batches(dataset, make_config(batch_size=batch_size), num_steps=60 // batch_size))
        for batch_size in (5, 12)
    ]
    assert_same(*runs)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 8, 10, 30])
def test_evaluation_covers_every_record_once_in_order(numbered, make_config, batch_size, processes):
    config = make_config(eval_batch_size=batch_size)
    runs = []
    for index in range(processes):
        with eval_batches(numbered(13), config, process_index=index, process_count=processes) as batches:
            runs.append(list(batches))
    assert [len(run) for run in runs] == [-(-13 // batch_size)] * processes
    labels, masks = (
        np.concatenate([batch[name] for batches in zip(*runs, strict=True) for batch in batches])
        for name in ("label", "mask")
    )
    assert labels[masks == 1].tolist() == list(range(13))
    assert masks.sum() == 13 and masks.dtype == np.float32
    for run in runs:
        for batch in run:
            assert batch["image"].shape == (batch_size // processes, 8, 8, 3)
            assert not batch["image"][batch["mask"] == 0].any()


def test_batch_size_must_divide_over_the_processes(numbered, make_config):
    with pytest.raises(ValueError, match="batch_size=10 must be a positive multiple of the 4 processes"):
        train_batches(numbered(20), make_config(batch_size=10), process_count=4)
    with pytest.raises(ValueError, match="eval_batch_size=0 must be a positive multiple"):
        eval_batches(numbered(20), make_config(eval_batch_size=0))


def test_damaged_image_is_named(make_config, tmp_path):
    for number in range(8):
        path = tmp_path / "train" / "cat" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10)).save(path)
    (tmp_path / "val").symlink_to(tmp_path / "train")
    path.write_bytes(path.read_bytes()[:40])
    config = make_config(dataset=f"image_folder:{tmp_path}", batch_size=4)
    train, evaluation = load_dataset(config, "train"), load_dataset(config, "eval")
    message = f"damaged image in dataset 'image_folder:{tmp_path}', split '{{}}', record 7, file {{}}: cannot decode"
    # The error passes from the threads to the consumer.
    with to_device(train_batches(train, config), data_mesh(1)) as batches, pytest.raises(ValueError) as raised:
        for _ in range(2):
            next(batches)
    assert message.format("train", path) in str(raised.value)
    with eval_batches(evaluation, config) as batches, pytest.raises(ValueError) as raised:
        list(batches)
    assert message.format("val", Path(tmp_path, "val", "cat", "7.png")) in str(raised.value)


@pytest.fixture
def damaged(numbered):
    """Makes a dataset in which some records raise an error."""

    def make(size, error, bad):
        def read(record):
            if record in bad:
                raise error
            return whole.read(record)

        whole = numbered(size)
        return Dataset("damaged", "train", whole.class_names, size, read, lambda record: f"record {record}")

    return make


@pytest.mark.parametrize("processes, threads", [(1, 1), (1, 4), (2, 2)])
def test_the_next_good_image_takes_the_place_of_a_bad_one(numbered, damaged, make_config, capsys, processes, threads):
    config = make_config(batch_size=12, on_bad_image="skip", train_crop="none", random_flip=False)
    expected = collect(train_batches(numbered(20), config, num_steps=5))
    replaced = {3: 5, 4: 5, 19: 0}  # records 3 and 4 are neighbours; record 0 follows the last record
    config.decode_threads = threads
    dataset = damaged(20, ValueError(f"{processes} and {threads}"), replaced)
    parts, bad_images = [], set()
    for index in range(processes):
        batches = train_batches(dataset, config, process_index=index, process_count=processes, num_steps=5)
        parts.append(collect(batches))
        bad_images |= batches.bad_images
    labels = np.concatenate([part["label"].reshape(5, -1) for part in parts], axis=1).ravel()
    np.testing.assert_array_equal(labels, [replaced.get(label, label) for label in expected["label"]])
    images = {label: image for label, image in zip(expected["label"].tolist(), expected["image"], strict=True)}
    for part in parts:
        for label, image in zip(part["label"].tolist(), part["image"], strict=True):
            np.testing.assert_array_equal(image, images[label])
    assert bad_images == set(replaced)
    said = capsys.readouterr().err.splitlines()  # one message for each record, in three epochs
    assert sorted(said) == [
        f"left out: damaged image in dataset 'damaged', split 'train', record {record}: {processes} and {threads}; "
        "replace or remove it"
        for record in sorted(replaced, key=str)
    ]


def test_evaluation_leaves_bad_images_out(damaged, make_config):
    config = make_config(eval_batch_size=8, on_bad_image="skip")
    batches = eval_batches(damaged(13, ValueError("bad"), {2, 9}), config)
    run = collect(batches)
    assert run["label"][run["mask"] == 1].tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12]
    assert not run["image"][run["mask"] == 0].any() and batches.bad_images == {2, 9}


@pytest.mark.parametrize("options, error, bad, message", [
    ({}, ValueError("bad"), {1}, "record 1: bad; replace or remove it, or set on_bad_image=skip"),
    ({}, OSError("the disk is gone"), {1}, "cannot read an image of dataset 'damaged', split 'train', record 1: "),
    ({"on_bad_image": "skip"}, OSError("the disk is gone"), {1}, "record 1: the disk is gone"),
    ({"on_bad_image": "skip"}, ValueError("bad"), set(range(20)), "no image of dataset 'damaged', split 'train'"),
    ({}, RuntimeError("a bug in a loader's thread"), {1}, "a bug in a loader's thread"),
])  # fmt: skip
def test_an_error_in_a_thread_ends_the_run_and_the_threads(damaged, make_config, options, error, bad, message):
    before = set(threading.enumerate())
    batches = train_batches(damaged(20, error, bad), make_config(**options))
    raised = {ValueError: DamagedImageError, OSError: UnreadableImageError, RuntimeError: RuntimeError}[type(error)]
    with pytest.raises(raised, match=message):
        with to_device(batches, data_mesh(1)) as on_device:
            list(on_device)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.mark.parametrize("consumed", [0, 1, 3])
def test_close_ends_the_threads(numbered, make_config, consumed):
    before = set(threading.enumerate())
    with to_device(train_batches(numbered(20), make_config()), data_mesh(1)) as batches:
        for _ in range(consumed):
            next(batches)
        assert set(threading.enumerate()) - before
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=10)  # Grain's end by themselves
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetch_is_bounded_and_changes_nothing(numbered, make_config, prefetch):
    reads = []
    dataset = numbered(1000)
    expected = collect(train_batches(dataset, make_config(batch_size=4), num_steps=6))
    counted = Dataset(
        "numbered", "train", dataset.class_names, 1000, lambda i: (reads.append(i), dataset.read(i))[1], str
    )
    host = train_batches(counted, make_config(batch_size=4, prefetch_batches=prefetch), num_steps=200)
    with to_device(host, data_mesh(1), prefetch) as batches:
        labels = np.concatenate([next(batches)["label"] for _ in range(6)])
    np.testing.assert_array_equal(labels, expected["label"])
    # Six batches were consumed; the last of them counts as being in memory.
    assert len(reads) <= 4 * 5 + batches.num_bytes // (8 * 8 * 3)


def test_small_batches_keep_all_threads_busy(numbered, make_config):
    for threads, batch_size, ahead in ((2, 8, 2), (16, 8, 4), (32, 4, 16)):
        with train_batches(numbered(20), make_config(decode_threads=threads, batch_size=batch_size)) as batches:
            assert batches.threads == threads
            assert batches.num_bytes == (ahead + 1) * batch_size * 8 * 8 * 3


def data_mesh(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def test_to_device_splits_the_rows_over_the_mesh_without_hidden_transfers(numbered, make_config):
    devices = min(4, len(jax.devices()))
    dataset, config = numbered(20), make_config()
    expected = collect(train_batches(dataset, config, num_steps=3))
    mesh = data_mesh(devices)
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        with to_device(train_batches(dataset, config, num_steps=3), mesh) as batches:
            arrived = list(batches)
            wait_seconds = batches.wait_seconds
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert len(arrived) == 3 and wait_seconds > 0
    for batch in arrived:
        for array in batch.values():
            assert array.sharding.spec == jax.sharding.PartitionSpec("data")
            assert [shard.data.shape[0] for shard in array.addressable_shards] == [8 // devices] * devices
    joined = {name: np.concatenate([batch[name] for batch in arrived]) for name in expected}
    assert_same(joined, expected)


# Repeated augmentation


@pytest.mark.parametrize("copies", [2, 3])
def test_a_batch_has_its_part_of_the_sequence_with_each_record_several_times(numbered, make_config, copies):
    """The sequence is timm's and torchvision's (RASampler): the shuffled epochs with each record c times in a row."""
    options = {"batch_size": 8, "decode_threads": 2}
    order = collect(train_batches(numbered(20), make_config(**options), num_steps=20))["label"]
    found = collect(train_batches(numbered(20), make_config(repeated_augmentation=copies, **options), num_steps=20))[
        "label"
    ]
    for batch, expected in zip(found.reshape(-1, 8), np.repeat(order, copies)[:160].reshape(-1, 8), strict=True):
        assert sorted(batch) == sorted(expected)
        assert (batch[0::2] != batch[1::2]).all()  # mixup and cutmix mix these
    assert np.bincount(found[: 40 * copies]).tolist() == [2 * copies] * 20  # after 2c epochs, whole batches of 8


def test_copies_are_cropped_independently(numbered, make_config):
    config = make_config(repeated_augmentation=4, batch_size=16, train_crop="random_resized")
    batch = next(train_batches(numbered(20), config, num_steps=1))
    for label in set(batch["label"].tolist()):
        copies = batch["image"][batch["label"] == label]
        assert len(copies) == 4 and len({copy.tobytes() for copy in copies}) == 4


@pytest.mark.parametrize(("processes", "start"), [(1, 5), (2, 0), (4, 3)])
def test_repeated_batches_are_the_same_for_any_processes_and_after_a_resume(numbered, make_config, processes, start):
    config = make_config(repeated_augmentation=3, batch_size=8)
    expected = collect(train_batches(numbered(20), config, num_steps=9))
    parts = [
        collect(
            train_batches(
                numbered(20), config, start_step=start, process_index=index, process_count=processes, num_steps=9
            )
        )
        for index in range(processes)
    ]
    for name, whole in expected.items():
        rows = [part[name].reshape(9 - start, 8 // processes, *whole.shape[1:]) for part in parts]
        np.testing.assert_array_equal(np.concatenate(rows, 1).reshape(-1, *whole.shape[1:]), whole[8 * start :])


# The size of the training images by epoch


def test_each_step_has_its_size_and_the_crops_of_a_run_at_that_size(numbered, make_config):
    """Epoch 1 begins at step 2.5, which rounds to 2, epoch 2 at step 5; a resume and two processes change nothing."""
    config = make_config(train_sizes=((0, 6), (1, 8), (2, 11)))
    sides = [6, 6, 8, 8, 8, 11, 11]
    runs = {}
    for side in (6, 8, 11):
        with train_batches(numbered(20), make_config(image_size=side, eval_resize=12), num_steps=7) as batches:
            runs[side] = list(batches)
    for start in (0, 4):
        with train_batches(numbered(20), config, start_step=start, num_steps=7) as batches:
            for step, batch in enumerate(batches, start):
                assert batch["image"].shape == (8, sides[step], sides[step], 3)
                assert_same(batch, runs[sides[step]][step])
    with train_batches(numbered(20), config, process_index=1, process_count=2, num_steps=7) as batches:
        for step, batch in enumerate(batches):
            assert_same(batch, {name: rows[4:] for name, rows in runs[sides[step]][step].items()})


def test_arrays_that_need_no_decoding_are_resized_too(make_config):
    config = make_config(train_sizes=((0, 6),), train_crop="none", eval_resize=0)
    with train_batches(load_dataset(config, "train"), config, num_steps=1) as batches:
        assert next(batches)["image"].shape == (8, 6, 6, 3)
