"""What XLA makes of the training step for a GPU: the forms of models/gpu_operations.py and training/state.py arrive.

The first test needs nothing. The others need JAX's CUDA plugin, `pip install "jax[cuda13]"`, but no GPU.
"""

import importlib.util
import pathlib
import re

import pytest

from analysis.compiled_traffic import find_kernels, target_mesh
from configs import base
from training.configuration import resolve_network
from training.program import make_program
from training.state import make_mesh

TARGET = pathlib.Path(__file__).parents[2] / "benchmarks/h200.txtpb"
PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")


def trace_step(model, mesh):
    config = base.get_config()
    config.update({"model": model, "num_classes": 10, "dtype": "bfloat16", "batch_size": 64})
    config.update({"weight_decay": 1e-4, "num_steps": 1})
    return make_program(resolve_network(config), mesh, steps_per_epoch=1).trace()


@pytest.fixture(scope="module")
def compiled():
    """Makes a function that compiles the training step of a network for an H200, and returns the program's text."""
    if not (importlib.util.find_spec("jax_plugins") and any(map(importlib.util.find_spec, PLUGINS))):
        pytest.skip("JAX's CUDA plugin is not installed")
    mesh, texts = target_mesh(TARGET), {}

    def text(model):
        if model not in texts:
            compiled = trace_step(model, mesh).lower().compile({"xla_gpu_autotune_level": 0})
            texts[model] = compiled.as_text()
        return texts[model]

    return text


@pytest.mark.parametrize("model", ["resnet18", "vgg11"])
def test_the_gradient_of_max_pooling_is_no_select_and_scatter(model):
    traced = trace_step(model, make_mesh(1))
    assert "select_and_scatter" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "select_and_scatter" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_no_kernel_is_copied_in_float32(compiled):
    """XLA would write it in another order than cuDNN's and copy the result over the old kernel."""
    kernel = r"= f32\[\d+,\d+,\d+,\d+\]\S*"
    assert re.search(rf"{kernel} parameter\(", compiled("resnet18"))
    assert not re.search(rf"{kernel} copy\(", compiled("resnet18"))


def test_each_batch_norm_reads_its_maps_once_for_the_statistics(compiled):
    norms = set(re.findall(r"state__batch_stats____(\w+)____mean__\S* = f32\[\d+\]\S* parameter", compiled("resnet18")))
    smallest_map = 64 * 7 * 7 * 512 * 2  # bytes; the second stages of the sums read less
    readers = [
        kernel
        for kernel in find_kernels(compiled("resnet18"))
        if {"reduce"} <= kernel.operations and "normalize" in kernel.origin and "transpose(" not in kernel.origin
        if kernel.read >= smallest_map
    ]
    assert len(readers) == len(norms) == 20


def test_the_convolutions_apply_bias_and_relu(compiled):
    assert len(re.findall(r"__cudnn\$convBiasActivationForward.*kRelu", compiled("vgg11"))) == 8
