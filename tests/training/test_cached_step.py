"""Training on images that live on the devices, several steps a call."""

import itertools
import json
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import train
from configs import base
from input_pipeline import Dataset, DeviceCache
from training.interruption import Interruption
from training.loss import zero_sums
from training.optimizer import make_optimizer, make_schedule
from training.state import abstract_state, create_state, make_mesh, make_model
from training.step import make_train_step

EVERYTHING = {"auto_augment": "trivial", "color_jitter": (0.4, 0.4, 0.4, 0.1), "random_erasing": 0.5}
EVERYTHING |= {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}


@pytest.fixture
def make_cached_run(make_trainer):
    """Makes a function from the ends of the calls to the state they lead to, and the step that took them."""

    def make(num_devices=1, steps_per_dispatch=1, **options):
        trainer = make_trainer(num_devices, **options)
        config = trainer.config
        config.steps_per_dispatch = steps_per_dispatch  # a CPU is always given 1
        random, side = np.random.RandomState(0), config.image_size
        pixels = random.randint(0, 256, (40, side, side, config.channels)).astype(np.uint8)
        labels = random.randint(0, 10, 40)
        dataset = Dataset("pixels", "train", tuple("0123456789"), 40, lambda i: (pixels[i], int(labels[i])), str)
        model, cache = make_model(config, training=True), DeviceCache(dataset, config, trainer.mesh)
        optimizer = make_optimizer(config, make_schedule(config, 10))
        step = make_train_step(config, model, optimizer, trainer.mesh, cache)

        def run(ends):
            state, sums = trainer.state, trainer.sums
            for cached in cache.batches(int(state["step"]), ends):
                state, sums = step(state, sums, cached)
            trainer.state = state
            return jax.device_get((state, sums))

        run.step, run.trainer, run.cache = step, trainer, cache
        return run

    return make


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_however_the_steps_are_cut_into_calls_the_result_is_the_same_to_the_bit(make_cached_run):
    run = make_cached_run(steps_per_dispatch=4)
    expected, sums = run((1, 5, 9))
    assert run.step._cache_size() == 1 and sums["examples"] == 9 * 64 and expected["step"] == 9
    assert_same(make_cached_run(steps_per_dispatch=4)((3, 4, 7, 9))[0], expected)
    assert_same(make_cached_run(steps_per_dispatch=9)((9,))[0], expected)
    single, _ = make_cached_run(steps_per_dispatch=1)(range(1, 10))  # another program: XLA may fuse it otherwise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), single, expected)


def test_losses_do_not_depend_on_the_number_of_devices(make_cached_run):
    options = EVERYTHING | {"image_size": 12, "model": "resnet20", "channels": 3, "bn_virtual_batch_size": 4}
    options |= {"accumulation_steps": 2, "batch_size": 16, "random_flip": True}
    (_, one), (_, two) = (make_cached_run(devices, **options)((1, 2)) for devices in (1, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one, two)
    assert 0 < one["loss"] < 2 * 16 * 10


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_no_image_crosses_the_network(make_cached_run, make_batches, options):
    """Cache and augmentation add no collective to those of the step on batches from the host."""

    def collectives(step, *arguments):
        text = step.lower(*arguments).compile().as_text()
        return sorted(re.findall(r"= (.*) (all-\w+|reduce-scatter|collective-permute)\(", text))

    run = make_cached_run(8, image_size=32, model="lenet5", **options)
    trainer, = (run.trainer,)
    cached = collectives(run.step, trainer.state, trainer.sums, next(run.cache.batches(0, (1,))))
    plain = make_cached_run(8, image_size=32, model="lenet5").trainer
    split = NamedSharding(plain.mesh, PartitionSpec("data"))
    assert cached == collectives(plain.step, plain.state, plain.sums, jax.device_put(make_batches(1, 64)[0], split))
    assert cached and {kind for _, kind in cached} == {"all-reduce"}
