"""Receptive fields equal published ones, and the pixels that a gradient reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.layers import Conv, Module, adaptive_average_pool, average_pool, max_pool


@pytest.mark.parametrize(
    "name, field",
    # Araujo, Norris, Sim 2019 (Distill) and the table of their library, for TensorFlow's networks: alexnet_v2, vgg_16,
    # mobilenet_v1, resnet_v1_50 to 152, inception_v3, inception_v4, inception_resnet_v2; before the global pooling.
    [
        ("alexnet_owt", 195),
        ("vgg16", 212),
        ("mobilenet_v1", 315),
        ("mobilenet_v1_075", 315),
        ("resnet50_v1", 483),
        ("resnet101_v1", 1027),
        ("resnet152_v1", 1507),
        ("inception_v3", 1311),
        ("inception_v4", 2071),
        ("inception_resnet_v2", 3039),
    ],
)
def test_published_fields(summary_of, name, field):
    assert summary_of(name).receptive_field == field


class Branches(Module):
    """A network with strides, padding, pooling, branches, a strided shortcut and a long kernel."""

    def __init__(self, pooled):
        """Builds the layers; pooled is the map's size after adaptive pooling, or None."""
        self.conv1 = Conv(1, 2, 5, stride=2, padding=2)
        self.conv2 = Conv(2, 2, 3, padding=1)
        self.shortcut = Conv(2, 2, 1, stride=2)
        self.conv3 = Conv(2, 2, (1, 5), padding=(0, 2))
        self.conv4 = Conv(4, 1, (7, 1), padding=(3, 0))
        self.pooled = pooled

    def __call__(self, x):
        """Maps (N, H, W, 1) to (N, H', W', 1)."""
        x = self.conv1(x)
        x = average_pool(self.conv2(x), 3, 2, padding=1) + self.shortcut(x)
        if self.pooled:
            x = adaptive_average_pool(x, (self.pooled, self.pooled))
        x = jnp.concatenate([self.conv3(x), x], axis=-1)
        return self.conv4(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))))


def extents(module, size, units):
    """Returns the first and last rows and columns of pixels that each unit depends on; all weights are set to 1."""
    nnx.update(module, jax.tree.map(lambda leaf: jnp.ones(leaf.shape), nnx.to_pure_dict(nnx.state(module, nnx.Param))))
    gradient = jax.jit(jax.grad(lambda image, row, column: module(image)[0, row, column, 0]))
    found = [np.nonzero(gradient(jnp.ones((1, size, size, 1)), *unit)[0, :, :, 0]) for unit in units]
    return [(rows.min(), rows.max(), columns.min(), columns.max()) for rows, columns in found]


def test_the_gradient_reaches_exactly_the_field(layers_of):
    *_, last = layers_of(Branches(None), 96, 96, 1)
    (top, bottom, left, right), (next_top, *_) = extents(Branches(None), 96, [(12, 12), (13, 12)])
    assert last.receptive_field == max(bottom - top, right - left) + 1
    assert last.jump == next_top - top == 4


def test_adaptive_pooling_sees_the_whole_map(layers_of):
    *_, last = layers_of(Branches(1), 45, 45, 1)
    assert extents(Branches(1), 45, [(3, 0)]) == [(0, 44, 0, 44)]
    (before,) = (layer for layer in layers_of(Branches(None), 45, 45, 1) if layer.name == "sum")
    assert before.output_shape == (12, 12, 2)
    assert last.receptive_field == before.receptive_field + 11 * before.jump


def test_maxima_and_global_pools(layers_of):
    class Pools(Module):
        def __call__(self, x):
            return max_pool(x, 3, 2).max((1, 2))

    windows, whole = layers_of(Pools(), 9, 9, 4)
    assert (windows.name, windows.kernel, windows.stride, windows.receptive_field) == ("max_pool", (3, 3), (2, 2), 3)
    assert (whole.kind, whole.output_shape, whole.receptive_field) == ("global max pool", (4,), 9)


@pytest.mark.parametrize("size", [224, 256, 161])
def test_a_dense_layer_sees_the_whole_image_at_any_size(summary_of, size):
    layers = {layer.name: layer for layer in summary_of("vgg16", image_size=size).layers}
    # The dense layer sees the whole last map; VGG's five poolings make the fields of its units 32 pixels apart.
    assert layers["dense1"].receptive_field == 212 + 32 * (size // 32 - 1)
