"""Effective receptive fields of convolutions with known gradients, and of networks, within the theoretical field."""

import jax
import numpy as np
import pytest
from flax import nnx
from numpy.polynomial import polynomial
from PIL import Image

from analysis.effective_receptive_field import EffectiveField, draw, measure, measure_network
from configs import base
from models import initial_values
from models.layers import Conv, Module
from training.configuration import resolve_network
from training.state import make_model


class Convolutions(Module):
    """A chain of 3x3 convolutions with one channel."""

    def __init__(self, count):
        self.convs = nnx.List(Conv(1, 1, 3, padding=1) for _ in range(count))

    def __call__(self, x):
        for conv in self.convs:
            x = conv(x)
        return x


def measure_convolutions(count, size, weight):
    """Measures the field of convolutions whose weights are all equal, on one image."""
    graph, variables = nnx.split(Convolutions(count))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, weight, np.float32), nnx.to_pure_dict(variables))
    images = np.random.default_rng(0).standard_normal((1, size, size, 1), np.float32)
    return measure(lambda variables, images: nnx.merge(graph, variables)(images), variables, [(images, np.ones(1))])


@pytest.mark.parametrize("size, first", [(9, 3), (10, 4)])
def test_one_convolution_sees_three_pixels(size, first):
    field = measure_convolutions(1, size, 0.5)
    expected = np.zeros((size, size))
    expected[first : first + 3, first : first + 3] = 1 / 9
    np.testing.assert_allclose(field.influence, expected, rtol=1e-6)
    assert field.window == ((first, first + 3), (first, first + 3))
    assert field.side() == field.theoretical_side == 3 and field.side(0.1) == 1


def test_equal_weights_make_a_gaussian():
    """Luo 2016, section 2.2: n uniform kernels of side k give a distribution with the variance n (k^2 - 1) / 12."""
    field = measure_convolutions(10, 31, 1.0)
    coefficients = np.pad(polynomial.polypow([1, 1, 1], 10) / 3**10, 5)
    np.testing.assert_allclose(field.influence, np.outer(coefficients, coefficients), rtol=1e-5, atol=1e-12)
    marginal = field.influence.sum(0)
    assert marginal @ (np.arange(31) - 15) ** 2 == pytest.approx(10 * 8 / 12, rel=1e-5)
    assert field.theoretical_side == 21
    held = [coefficients[15 - reach : 16 + reach].sum() ** 2 for reach in range(16)]
    assert held[5] < 0.9545 < held[6] and field.side() == 2 * 6 + 1


def measure_named(name, size, images, mask):
    config = base.get_config()
    config.update({"model": name, "image_size": size, "num_classes": 10})
    config = resolve_network(config)
    model = make_model(config, training=False)
    values = initial_values(model, 0)
    return measure_network(config, model, values, values, [{"image": images, "mask": mask}])


@pytest.mark.parametrize("name, size", [("lenet5", 32), ("nin_cifar", 48)])
def test_the_influence_fills_the_theoretical_field_and_no_more(summary_of, name, size):
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 1 if name == "lenet5" else 3), np.uint8)
    field = measure_named(name, size, images, np.ones(4))
    (top, bottom), (left, right) = field.window
    rows, columns = np.nonzero(field.influence)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (top, bottom, left, right)
    assert 0 < top < bottom < size and field.side() <= field.theoretical_side
    assert field.theoretical_side in {layer.receptive_field for layer in summary_of(name, image_size=size).layers}
    assert field.influence.sum() == pytest.approx(1)


def test_padding_of_a_batch_does_not_count():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    two = measure_named("lenet5", 32, images[:2], np.ones(2)).influence
    padded = measure_named("lenet5", 32, images, np.array([1, 1, 0, 0])).influence
    np.testing.assert_allclose(two, padded, rtol=1e-4, atol=1e-9)
    assert not np.allclose(two, measure_named("lenet5", 32, images, np.ones(4)).influence, rtol=1e-4)


def test_a_unit_that_nothing_moves_is_refused():
    with pytest.raises(ValueError, match="zero or not finite"):
        measure_convolutions(2, 9, 0.0)


def test_a_field_wider_than_the_image_is_drawn(tmp_path):
    influence = np.outer(np.hanning(18)[1:-1], np.hanning(18)[1:-1])
    field = EffectiveField(influence / influence.sum(), ((-92, 108), (-92, 108)))
    draw(field, "a title", tmp_path / "field.png")
    assert min(Image.open(tmp_path / "field.png").size) > 300
