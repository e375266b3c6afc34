"""A training step sends only the data that it must: each gradient, statistic and metric once."""

import math
import re

import pytest
from flax import nnx

from analysis.collectives import Collective, Link, communication_seconds, efficiency, find_collectives
from analysis.summary import trace_train_step
from configs import base
from models.layers import BatchNorm, Conv, Dense
from training.configuration import resolve_network
from training.state import make_mesh, make_model


@pytest.fixture(scope="module")
def compile_step():
    """Compiles the training step of a small network for eight devices; returns its text and the abstract network."""

    def compile_step(**options):
        config = base.get_config()
        config.update({"model": "resnet20", "image_size": 16, "num_classes": 10, "batch_size": 32} | options)
        config = resolve_network(config)
        text = trace_train_step(config, make_mesh(8)).lower().compile().as_text()
        return text, make_model(config, training=True)

    return compile_step


@pytest.fixture(scope="module")
def resnet20(compile_step):
    """Compiles ResNet-20 with batch normalisation over four images, the number on each device."""
    return compile_step(bn_virtual_batch_size=4)


def count_values(model, kind):
    return sum(leaf.get_value().size for leaf in nnx.to_flat_state(nnx.state(model, kind)).leaves)


def test_with_virtual_batches_gradients_statistics_and_metrics_cross_once_and_together(resnet20):
    text, model = resnet20
    (collective,) = find_collectives(text)
    metrics = 3  # loss, top-1, top-5; the number of images is constant
    values = count_values(model, nnx.Param) + count_values(model, nnx.BatchStat) + metrics
    assert (collective.kind, collective.bytes, collective.repeats) == ("all-reduce", 4 * values, 1)


def test_over_the_whole_batch_each_normalisation_communicates(compile_step):
    text, model = compile_step()
    layers = sum(isinstance(module, BatchNorm) for _, module in nnx.iter_modules(model))
    # Forward the mean, then the variance about it; backward both sums in one; at the end all the rest.
    assert len(find_collectives(text)) == pytest.approx(3 * layers + 1, abs=2)


def test_grouped_convolutions_stay_on_their_device(compile_step):
    text, model = compile_step(model="alexnet", image_size=67, dropout_rate=0.0, channels=3)
    (collective,) = find_collectives(text)
    assert (collective.kind, collective.bytes) == ("all-reduce", 4 * (count_values(model, nnx.Param) + 3))


def test_each_layer_is_named_in_the_compiled_program_forward_and_backward(resnet20):
    text, model = resnet20
    operations = re.findall(r'op_name="([^"]*)"', text)
    passes = {"forward": set(), "backward": set()}
    for operation in operations:
        # jit(train_step)/transpose(jvp(stage1.0))/conv1/conv_general_dilated: JAX's wrappers around the layer's name.
        name = re.sub(r"\w+\(|\)", "", operation.removeprefix("jit(train_step)/"))
        passes["backward" if "transpose(" in operation else "forward"].add(name.rpartition("/")[0])
    layers = {
        re.sub(r"/(\d+)", r".\1", "/".join(map(str, path)))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, (Conv, BatchNorm, Dense))
    }
    assert len(layers) == 19 + 19 + 1
    assert layers <= passes["forward"] and layers <= passes["backward"]


def test_the_text_of_other_compilers():
    """Reads an asynchronous all-gather of a GPU, a TPU's layouts, and a reduce-scatter, whose result is a share."""
    text = """HloModule jit_f, num_partitions=8

%body (p: (f32[8])) -> (f32[8]) {
  %rs = f32[4,8]{1,0:T(8,128)S(1)} reduce-scatter(%p), metadata={op_name="jit(f)/scatter"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %s = (bf16[2,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(%x), dimensions={0}
  %d = bf16[16,4]{1,0} all-gather-done(%s), metadata={op_name="jit(f)/gather"}
  %r = (f32[]{:T(128)}, /*index=1*/pred[3]{0}) all-reduce(%a, %b), to_apply=%add
}
"""
    assert find_collectives(text) == [
        Collective("reduce-scatter", "jit(f)/scatter", 8 * 4 * 8 * 4, 3),
        Collective("all-gather", "jit(f)/gather", 16 * 4 * 2, 1),
        Collective("all-reduce", "", 4 + 3, 1),
    ]


def ring_seconds(kind, size, devices, bandwidth):
    """Compares with a simulated ring: in each step a device sends one piece of its data."""
    rounds = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}[kind]
    return sum(size / devices / bandwidth for _ in range(rounds) for _ in range(devices - 1))


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter"])
@pytest.mark.parametrize("devices", [1, 2, 8, 1024])
def test_bytes_take_as_long_as_on_a_ring(kind, devices):
    seconds = communication_seconds([Collective(kind, "", 10**8, 1)], devices, (Link(math.inf, 1e10, 0),))
    assert seconds == pytest.approx(ring_seconds(kind, 10**8, devices, 1e10))


def test_links_between_machines_carry_what_the_links_within_have_shared_out():
    fabric = Link(8, 4e11, 1e-6), Link(math.inf, 5e10, 1e-5)
    gradient = Collective("all-reduce", "", 10**8, 3)
    once = ring_seconds("all-reduce", 10**8, 8, 4e11) + ring_seconds("all-reduce", 10**8 / 8, 128, 5e10)
    latency = 2 * (3 * 1e-6 + 7 * 1e-5)  # a binary tree over 8, and one over 128
    assert communication_seconds([gradient], 1024, fabric) == pytest.approx(3 * (once + latency))
    assert communication_seconds([gradient], 8, fabric) == pytest.approx(
        communication_seconds([gradient], 8, fabric[:1])
    )
    with pytest.raises(ValueError, match="all-to-all"):
        communication_seconds([Collective("all-to-all", "", 1, 1)], 8, fabric)


def test_efficiency():
    assert efficiency(0.03, 0.01) == pytest.approx((0.75, 1.0))
    assert efficiency(0.01, 0.03) == pytest.approx((0.25, 1 / 3))
