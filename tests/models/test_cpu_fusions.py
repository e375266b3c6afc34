"""Programs compiled for a CPU compute a map or a gradient once, however many later layers read it."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from families import smallest_size
from flax import nnx

from models import create_model, get_entry
from models.densenet import DenseNet
from models.layers import LocalResponseNorm, max_pool

# The networks with the longest stages of each kind of block. Without operations.store their largest fusions have 185
# operands (ResNet-152), 57 (ResNet-110), 39 (ResNet-164), 41 (Inception-ResNet-v2) and 8 (Xception).
slow = pytest.mark.slow
NETWORKS = ["resnet110", *(pytest.param(name, marks=slow) for name in ("resnet152", "resnet164_v2", "xception"))]


def count_operands(function: Callable, *arguments: Any) -> list[int]:
    """Returns the number of arrays that each fusion of the compiled function reads."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return [len(re.findall("%", fusion)) for fusion in re.findall(r" fusion\((.*?)\), kind", text)]


@pytest.mark.parametrize("name", [*NETWORKS, pytest.param("inception_resnet_v2", marks=slow)])
def test_sums_of_residual_blocks_are_stored(name):
    entry = get_entry(name)
    graph, state = nnx.split(create_model(name, abstract=True))
    side = smallest_size(entry)
    images = jax.ShapeDtypeStruct((2, side, side, entry.channels), jnp.float32)
    operands = count_operands(lambda state, images: nnx.merge(graph, state)(images), nnx.to_pure_dict(state), images)
    assert len(operands) > 100 and max(operands) <= 12


def test_gradients_of_concatenated_maps_are_stored():
    # Each layer adds to the gradient of all earlier maps. If operations.concatenate does not store its result, the
    # largest fusion has 117 operands with these 12 layers, and 227 in DenseNet-121.
    network = DenseNet((12,), num_classes=10, channels=3, dropout_rate=0.0, growth=12, bottleneck=False, cifar=True)
    network.train()
    graph, parameters, rest = nnx.split(network, nnx.Param, ...)

    def loss(parameters: dict, rest: dict, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, parameters, rest)(images).sum()

    state = nnx.to_pure_dict(parameters), nnx.to_pure_dict(rest)
    operands = count_operands(jax.grad(loss), *state, jnp.zeros((2, 16, 16, 3)))
    assert len(operands) > 100 and max(operands) <= 12


def test_local_response_normalisation_computes_its_factors_once():
    # The gradient adds shifted maps. Without operations.store the factor is computed anew for each of the shifts.
    def loss(x: jax.Array) -> jax.Array:
        return max_pool(LocalResponseNorm()(x), window=3, stride=2).sum()

    text = jax.jit(jax.grad(loss)).lower(jnp.zeros((2, 12, 12, 16))).compile().as_text()
    with_factor = [part for part in text.split("\n}\n") if " exponential(" in part]
    assert with_factor and not any(" slice(" in part for part in with_factor)
