"""The search for the largest batch, and the rows of measurements that fail."""

import weakref

import jax
import numpy as np
import pytest

from analysis import memory, throughput
from analysis.roofline import Ceilings
from configs import base, resnet50_tv2
from training.program import Program
from training.state import make_mesh


def attempt_on(fits):
    """A device on which batches up to a size fit; with larger ones it raises XLA's error."""

    def measured(size):
        if size > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.")
        return [{"batch_size": size}]

    return lambda size: {"batch_size": size} | throughput.guarded(lambda: measured(size))[0]


@pytest.mark.parametrize(
    "fits, first, tried",
    [
        (100, 512, [512, 256, 128, 64, 96, 112, 104]),
        (100, 16, [16, 32, 64, 128, 96, 112, 104]),
        (64, 64, [64, 128, 96, 80, 72]),
        (4, 64, [64, 32, 16, 8]),  # eight devices: no smaller batch
    ],
)
def test_each_step_to_the_largest_batch_is_a_row(fits, first, tried):
    rows = list(throughput.largest_batch_size(attempt_on(fits), first, smallest=8, multiple=8))
    assert [row["batch_size"] for row in rows] == tried
    assert [row["status"] for row in rows] == ["ok" if size <= fits else "out_of_memory" for size in tried]


def test_another_error_ends_the_search():
    def attempt(size):
        return throughput.guarded(lambda: 1 / 0)[0]

    assert [row["status"] for row in throughput.largest_batch_size(attempt, 64, 1, 1)] == ["error"]


@pytest.mark.parametrize("words", ["CUDA_ERROR_OUT_OF_MEMORY: out of memory", "CUDNN_STATUS_ALLOC_FAILED"])
def test_libraries_have_other_words_for_a_full_memory(words):
    def measured():
        raise jax.errors.JaxRuntimeError(f"INTERNAL: {words}")

    assert throughput.guarded(measured)[0]["status"] == "out_of_memory"


def test_a_failure_is_one_line_and_leaves_nothing_in_memory():
    class Array:
        pass

    def measured():
        array = Array()
        kept.append(weakref.ref(array))
        raise RuntimeError("first line\nsecond line")

    kept = []
    assert throughput.guarded(measured) == [{"status": "error", "error": "RuntimeError: first line second line"}]
    assert kept[0]() is None


def test_a_batch_that_would_not_fit_the_host_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 1000)
    monkeypatch.setattr(Program, "initial_state", None)  # nothing may be allocated
    config = throughput.resolve(base.get_config(), "train")
    (row,) = throughput.guarded(lambda: [throughput.measure(config, "train", Ceilings(1e9, 1e9), limit_seconds=0.0)])
    assert row["status"] == "out_of_memory" and row["error"].startswith("the compiled program needs")


def test_inference_takes_batches_that_the_training_of_a_recipe_could_not_cut():
    config = resnet50_tv2.get_config()
    config.batch_size = 3 * jax.device_count()
    with pytest.raises(ValueError, match="batch_size=|bn_virtual_batch_size="):
        throughput.resolve(config, "train")
    assert throughput.resolve(config, "infer").batch_size == config.batch_size


def test_a_loop_of_steps_on_a_cached_dataset_counts_for_its_steps(monkeypatch):
    monkeypatch.setattr(throughput, "make_mesh", lambda: make_mesh(1))
    monkeypatch.setattr(throughput.timing, "time_iterations", lambda step, limit_seconds: np.full(6, 0.3))
    config = base.get_config()
    config.cache, config.batch_size = "device", 8
    config = throughput.resolve(config, "real")
    config.steps_per_dispatch = 3  # a CPU's own is 1
    row = throughput.measure(config, "real", Ceilings(1e9, 1e9), limit_seconds=0.0)
    assert row["images_per_second"] == pytest.approx(3 * 8 / 0.3)
    # LeCun 1998: 416,520 products forward, twice that backward, but 117,600 for the gradient of the image.
    assert row["flops_per_image"] == 2 * (3 * 416_520 - 117_600)
    assert row["input_wait_share"] == 0
