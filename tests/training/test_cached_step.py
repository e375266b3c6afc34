"""Training on images that are stored on the devices, with several steps in a call."""

import json

import jax
import numpy as np
import pytest
from interrupted import InterruptedAfter
from jax.sharding import NamedSharding, PartitionSpec

import train
from analysis.collectives import find_collectives
from configs import base
from input_pipeline import Dataset, DeviceCache
from training import feed
from training.program import make_program
from training.state import make_mesh

EVERYTHING = {"auto_augment": "trivial", "color_jitter": (0.4, 0.4, 0.4, 0.1), "random_erasing": 0.5}
EVERYTHING |= {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "train_crop": "random_resized"}


@pytest.fixture
def make_cached_run(make_trainer):
    """Makes a function that trains in calls with the given ends, and returns the state and the compiled step."""

    def make(num_devices=1, steps_per_dispatch=1, **options):
        trainer = make_trainer(num_devices, **options)
        config = trainer.config
        config.steps_per_dispatch = steps_per_dispatch  # resolving the options sets 1 on a CPU
        random, side = np.random.RandomState(0), config.image_size
        pixels = random.randint(0, 256, (40, side, side, config.channels)).astype(np.uint8)
        labels = random.randint(0, 10, 40)
        dataset = Dataset("pixels", "train", tuple("0123456789"), 40, lambda i: (pixels[i], int(labels[i])), str)
        cache = DeviceCache(dataset, config, trainer.mesh)
        step = make_program(config, trainer.mesh, 10, cache).train_step

        def run(ends):
            state, sums = trainer.state, trainer.sums
            for cached in cache.batches(int(state["step"]), ends):
                state, sums = step(state, sums, cached | trainer.constants)
            trainer.state = state
            return jax.device_get((state, sums))

        run.step, run.trainer, run.cache = step, trainer, cache
        return run

    return make


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_however_the_steps_are_cut_into_calls_the_result_is_the_same_to_the_bit(make_cached_run):
    run = make_cached_run(steps_per_dispatch=3, batch_size=8)
    middle, _ = run((1, 3))
    expected, sums = run((5,))
    assert run.step._cache_size() == 1 and sums["examples"] == 2 * 8 and expected["step"] == 5
    resumed = make_cached_run(steps_per_dispatch=4, batch_size=8)
    resumed.trainer.state = jax.device_put(middle, jax.tree.map(lambda leaf: leaf.sharding, run.trainer.state))
    assert_same(resumed((4, 5))[0], expected)
    single, _ = make_cached_run(steps_per_dispatch=1, batch_size=8)(range(1, 6))
    # Without a loop the program is a different one, and XLA may fuse it differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), single, expected)


def test_one_program_serves_all_seeds(make_cached_run):
    texts = set()
    for seed in (0, 1):
        run = make_cached_run(seed=seed, batch_size=8, train_crop="random_resized")
        cached = next(run.cache.batches(0, (1,))) | run.trainer.constants
        texts.add(run.step.lower(run.trainer.state, run.trainer.sums, cached).as_text())
    assert len(texts) == 1


def test_losses_do_not_depend_on_the_number_of_devices(make_cached_run):
    options = EVERYTHING | {
        "auto_augment": "",
        "accumulation_steps": 2,
        "batch_size": 16,
        "random_flip": True,
        "ema_decay": 0.9,
        "log_gradient_norms": True,
    }
    (one, one_sums), (two, two_sums) = (make_cached_run(devices, **options)((1, 2, 3)) for devices in (1, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one_sums, two_sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one["ema"], two["ema"])


def test_no_image_crosses_the_network(make_cached_run, make_batches):
    """Cache, augmentation and gradient norms add no collectives to the step on batches from the host."""

    def collectives(step, *arguments):
        found = find_collectives(step.lower(*arguments).compile().as_text())
        return sorted((each.kind, each.bytes) for each in found)

    run = make_cached_run(8, batch_size=16, log_gradient_norms=True, **EVERYTHING)
    trainer = run.trainer
    cached = collectives(run.step, trainer.state, trainer.sums, next(run.cache.batches(0, (1,))) | trainer.constants)
    plain = make_cached_run(8, batch_size=16).trainer
    split = NamedSharding(plain.mesh, PartitionSpec("data"))
    batch = jax.device_put(make_batches(1)[0], split) | plain.constants
    assert cached == collectives(plain.step, plain.state, plain.sums, batch)
    assert cached and {kind for kind, _ in cached} == {"all-reduce"}


@pytest.mark.parametrize("crop", ["pad", "random_resized"])
def test_a_sharded_cache_sends_each_image_of_a_batch_once(make_cached_run, crop):
    """The step has the collectives of a whole cache, and reduce-scatters of the batch's images and labels."""

    def collectives(cache):
        run = make_cached_run(8, batch_size=16, cache=cache, train_crop=crop)
        arguments = run.trainer.state, run.trainer.sums, next(run.cache.batches(0, (1,))) | run.trainer.constants
        found = find_collectives(run.step.lower(*arguments).compile().as_text())
        return sorted((each.kind, each.bytes) for each in found)

    whole, sharded = collectives("device"), collectives("sharded")
    exchanged = 16 * (32 * 32 + 4 * (3 if crop == "random_resized" else 1))  # height and width too; or only the label
    assert sum(size for kind, size in sharded if kind == "reduce-scatter") == exchanged
    assert [each for each in sharded if each[0] != "reduce-scatter"] == whole


def test_calls_end_where_the_host_has_something_to_do():
    config = base.get_config()
    config.update({"num_steps": 100, "steps_per_dispatch": 7})
    ends = list(feed.last_steps(config, 3, lambda step: train.is_due(step, 22.5) or train.is_due(step, 10)))
    assert ends[0] == 4 and ends[-1] == 100  # the first call takes one step; the speed is measured from the second on
    assert {10, 20, 23, 30, 40, 45, 50, 60, 68, 70, 80, 90} <= set(ends)
    assert all(1 <= end - begin <= 7 for begin, end in zip(ends, ends[1:], strict=False))
    due = {step for step in range(4, 101) if step % 10 == 0 or step in (23, 45, 68, 90)}
    assert len(ends) == 1 + sum(
        -(-(end - begin) // 7) for begin, end in zip([4, *sorted(due)], sorted(due), strict=False)
    )


@pytest.fixture
def digits_config(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # on a TPU several steps go into a call
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(1))
    config = base.get_config()
    config.update({"cache": "device", "batch_size": 8, "num_steps": 12, "log_every_steps": 4})
    config.update({"steps_per_dispatch": 3, "compilation_cache_dir": "", "validation_share": 0.02})
    return config


@pytest.mark.slow
def test_interrupted_in_mid_epoch_and_resumed_it_ends_the_same_to_the_bit(digits_config, tmp_path):
    for name, calls, per_call in (("whole", 10**6, 3), ("cut", 5, 2), ("cut", 10**6, 5)):
        digits_config.steps_per_dispatch = per_call
        train.train(digits_config, tmp_path / name, InterruptedAfter(calls))
    whole, cut = (
        json.loads((tmp_path / name / "checkpoints" / "12" / "checksums" / "metadata").read_text())
        for name in ("whole", "cut")
    )
    assert whole == cut
    steps = [json.loads(line)["step"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12, 12]
    assert len(list((tmp_path / "cut" / "checkpoints").glob("[0-9]*"))) == 2  # the interruption's, and the last
