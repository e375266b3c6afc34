"""All of JAX's derivatives work for every family in training mode: forward mode, and forward over backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, SMALL, smallest_size
from flax import nnx

from models import REGISTRY, DropoutKey, create_model, dropout_keys, operations


def plain_only(plain, *arrays, **forms):
    """operations._choose, but for the choice."""
    return plain(*arrays)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def make_loss(family):
    """Returns a loss in training mode, where it is differentiated, and a direction; the statistics are the batch's.

    Its arguments are the images and all parameters but the largest, which say nothing new and take gigabytes.
    """
    entry = REGISTRY[SMALL[family]]
    model = create_model(entry.name, num_classes=3, dtype=jnp.float64)
    model.train()
    graph, params, batch_stats, _ = nnx.split(model, nnx.Param, nnx.BatchStat, DropoutKey)
    params = nnx.traversals.flatten_mapping(nnx.to_pure_dict(params))
    small = {path: leaf for path, leaf in params.items() if leaf.size < 1e5}
    random, size = np.random.default_rng(0), smallest_size(entry)
    images = random.standard_normal((4, size, size, entry.channels))

    def loss(images, small):
        variables = nnx.traversals.unflatten_mapping(params | small), nnx.to_pure_dict(batch_stats)
        network = nnx.merge(graph, *variables, dropout_keys(model, jax.random.key(0)))
        logits = network(images)
        statistics = jax.tree.leaves(nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)))
        return jnp.square(logits - jnp.arange(3)).mean() + sum(statistic.mean() for statistic in statistics)

    arguments = images, small
    direction = jax.tree.map(lambda leaf: 0.1 * random.standard_normal(leaf.shape), arguments)
    return loss, arguments, direction


def each_family(is_quick):
    return [family if is_quick(family) else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]


def is_small(family):
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(create_model(SMALL[family], abstract=True), nnx.Param))]
    return len(sizes) < 60 and sum(sizes) < 2e7


@pytest.mark.parametrize("family", each_family(is_small))
def test_the_forward_derivative_is_the_difference_quotient(family, float64):
    loss, arguments, direction = make_loss(family)

    def value_and_derivative(step):
        at = jax.tree.map(lambda leaf, part: leaf + step * part, arguments, direction)
        return jax.jvp(loss, at, direction)

    # A step this small rarely crosses the kink of a ReLU or of a maximum.
    value_and_derivative, step = jax.jit(value_and_derivative), 1e-8
    quotient = (value_and_derivative(step)[0] - value_and_derivative(-step)[0]) / (2 * step)
    np.testing.assert_allclose(value_and_derivative(0.0)[1], quotient, rtol=1e-5)


@pytest.mark.parametrize("family", each_family(lambda family: family in ("lenet", "resnet")))
def test_hessian_vector_products_are_those_of_the_plain_operations(family, float64, monkeypatch):
    loss, arguments, direction = make_loss(family)

    def product(arguments):
        return jax.jvp(jax.grad(loss, (0, 1)), arguments, direction)[1]

    found = jax.jit(product)(arguments)
    monkeypatch.setattr(operations, "_choose", plain_only)
    jax.clear_caches()  # otherwise JAX would reuse traces of the other operations
    expected = jax.jit(lambda arguments: product(arguments))(arguments)
    jax.clear_caches()
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-7, atol=1e-9 * np.abs(plain).max())


def test_accelerators_compile_forward_derivatives_too():
    model = create_model("mobilenet_v1_025", num_classes=3, dropout_rate=0.0)
    model.train()
    graph, state = nnx.split(model)
    state = nnx.to_pure_dict(state)

    def loss(images):
        return nnx.merge(graph, state)(images).sum()

    images = np.zeros((2, 32, 32, 3), np.float32)
    traced = jax.jit(lambda images: jax.jvp(jax.grad(loss), (images,), (images,))).trace(images)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "feature_group_count = 64" in text
