"""The counts equal those of plain loops and of examples in lecture notes on convolutional networks."""

import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from analysis.costs import count_backward_macs, count_bytes, count_flops, count_macs, walk
from models.googlenet import Inception, NaiveInception
from models.layers import BatchNorm, Conv, Module


def products(size, in_features, out_features, kernel, stride, padding, groups):
    """Counts a convolution's products for each output element; products with padding count too."""
    positions = [range(0, size + 2 * pad - side + 1, stride) for side, pad in zip(kernel, padding, strict=True)]
    count = 0
    for _ in itertools.product(*positions, range(out_features)):
        for _ in itertools.product(range(kernel[0]), range(kernel[1]), range(in_features // groups)):
            count += 1
    return count


CONVOLUTIONS = {
    "3x3": (6, 2, 3, (3, 3), 1, (1, 1), 1),
    "valid": (6, 2, 3, (3, 3), 1, (0, 0), 1),
    "stride 2": (7, 2, 4, (3, 3), 2, (1, 1), 1),
    "stride 2 on an even map": (8, 2, 4, (3, 3), 2, (1, 1), 1),
    "stride 3, windows that leave pixels out": (11, 2, 2, (2, 2), 3, (0, 0), 1),
    "1x1": (5, 4, 3, (1, 1), 1, (0, 0), 1),
    "1x1, stride 2": (5, 4, 3, (1, 1), 2, (0, 0), 1),
    "1x5": (6, 2, 3, (1, 5), 1, (0, 2), 1),
    "groups": (6, 4, 6, (3, 3), 1, (1, 1), 2),
    "groups, stride 2": (7, 4, 6, (3, 3), 2, (1, 1), 2),
    "depthwise": (6, 4, 4, (3, 3), 1, (1, 1), 4),
    "depthwise, stride 2": (7, 4, 8, (3, 3), 2, (1, 1), 4),
}


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_forward_and_backward(arguments):
    size, in_features, out_features, kernel, stride, padding, groups = arguments
    conv = Conv(in_features, out_features, kernel, stride, padding, groups)
    maps = jax.ShapeDtypeStruct((2, size, size, in_features), np.float32)
    graph, params = nnx.split(conv)
    params = nnx.to_pure_dict(params)

    def loss(params, maps):
        return nnx.merge(graph, params)(maps).sum()

    expected = 2 * products(*arguments)
    forward = jax.make_jaxpr(loss)(params, maps).jaxpr
    assert sum(count_macs(traced.equation) for traced in walk(forward, [])) == expected
    # Each product w x of the output adds w dy to the input's gradient and x dy to the kernel's.
    kernel_only = jax.make_jaxpr(jax.jit(jax.grad(loss)))(params, maps).jaxpr
    assert count_backward_macs(kernel_only).total() == expected
    both = jax.make_jaxpr(jax.jit(jax.grad(loss, argnums=(0, 1))))(params, maps).jaxpr
    assert count_backward_macs(both).total() == 2 * expected


def test_a_loop_counts_as_often_as_it_runs():
    def inner(x, _):
        return lax.scan(lambda x, _: (x @ x, None), x, length=3)[0], None

    jaxpr = jax.make_jaxpr(lambda x: lax.scan(inner, x, length=5)[0])(jnp.zeros((4, 4))).jaxpr
    assert sum(traced.repeats * count_macs(traced.equation) for traced in walk(jaxpr, [])) == 5 * 3 * 4 * 4 * 4


def test_micro_batches_cost_what_the_batch_costs(summary_of):
    whole = summary_of("lenet5", backward=True, batch_size=8)
    cut = summary_of("lenet5", backward=True, batch_size=8, accumulation_steps=4)
    assert cut.backward_macs == whole.backward_macs > whole.macs


def test_inception_modules(layers_of):
    # On 28x28x256, with 128 1x1, 192 3x3 and 96 5x5 filters: lecture notes on GoogLeNet (cs231n, lecture 9).
    naive = layers_of(NaiveInception(256, (128, 0, 192, 0, 96, 0)), 28, 28, 256)
    assert [layer.macs for layer in naive if layer.macs] == [25_690_112, 346_816_512, 481_689_600]
    assert sum(layer.macs for layer in naive) == 854_196_224
    (pool,) = (layer for layer in naive if layer.kind == "max pool")
    assert np.prod(pool.output_shape) == 200_704
    assert naive[-1].kind == "concatenation" and naive[-1].output_shape == (28, 28, 672)

    bottlenecks = layers_of(Inception(256, (128, 64, 192, 64, 96, 64)), 28, 28, 256)
    macs = sorted(layer.macs for layer in bottlenecks if layer.macs)
    assert macs == [12_845_056] * 3 + [25_690_112, 86_704_128, 120_422_400]
    assert sum(macs) == 271_351_808
    assert bottlenecks[-1].output_shape == (28, 28, 480)


class Stack(Module):
    """A chain of convolutions without biases that keep the size of the maps."""

    def __init__(self, features, kernels, groups=()):
        """Builds the layers; features are the numbers of channels before, between and after them."""
        pairs = itertools.pairwise(features)
        groups = groups or [1] * len(kernels)
        self.convs = nnx.List(
            [
                Conv(*pair, kernel, padding=kernel // 2, groups=count, bias=False)
                for pair, kernel, count in zip(pairs, kernels, groups, strict=True)
            ]
        )

    def __call__(self, x):
        """Maps (N, H, W, I) to (N, H, W, O)."""
        for conv in self.convs:
            x = conv(x)
        return x


@pytest.mark.parametrize(
    "kernels, field, weights", [((3, 3), 5, 18), ((5,), 5, 25), ((3, 3, 3), 7, 27), ((7,), 7, 49), ((3,) * 5, 11, 45)]
)
def test_small_filters(layers_of, kernels, field, weights):
    layers = layers_of(Stack([1] * (len(kernels) + 1), kernels), 16, 16, 1)
    assert layers[-1].receptive_field == field
    assert sum(layer.parameters for layer in layers) == weights
    assert sum(layer.macs for layer in layers) == weights * 16 * 16


def test_bottlenecks_and_separable_convolutions(layers_of):
    bottleneck = layers_of(Stack((256, 32, 32, 256), (1, 3, 1)), 8, 8, 256)
    assert [layer.parameters for layer in bottleneck] == [256 * 32, 32 * 9 * 32, 32 * 256]
    assert sum(layer.macs for layer in bottleneck) == 64 * 25_600
    # d w h + d d' weights against d w h d'.
    separable = layers_of(Stack((16, 16, 48), (3, 1), groups=(16, 1)), 8, 8, 16)
    assert [(layer.kind, layer.parameters) for layer in separable] == [("depthwise conv", 144), ("conv", 768)]
    (standard,) = layers_of(Stack((16, 48), (3,)), 8, 8, 16)
    assert standard.parameters == 16 * 9 * 48


def test_normalisation_has_parameters_and_no_macs(layers_of):
    class Normalised(Module):
        def __init__(self):
            self.norm = BatchNorm(8)

        def __call__(self, x):
            return nnx.relu(self.norm(x))

    layer, activation = layers_of(Normalised(), 4, 6, 8)
    assert (layer.name, layer.kind, layer.output_shape) == ("norm", "batch norm", (4, 6, 8))
    assert (layer.parameters, layer.macs, layer.activation_bytes) == (16, 0, 4 * 6 * 8 * 4)
    assert (activation.name, activation.kind, activation.output_shape) == ("activation", "relu", (4, 6, 8))
    assert (activation.parameters, activation.macs, activation.activation_bytes) == (0, 0, 0)


def test_operations_of_a_program():
    jaxpr = jax.make_jaxpr(lambda x, w: (x @ w).sum())(jnp.zeros((4, 8)), jnp.zeros((8, 16))).jaxpr
    assert count_flops(jaxpr) == 2 * 4 * 8 * 16


X, W = jax.ShapeDtypeStruct((4, 8), np.float32), jax.ShapeDtypeStruct((8, 16), np.float32)
PRODUCT = 4 * (4 * 8 + 8 * 16 + 4 * 16)  # both factors read, the result written


@pytest.mark.parametrize(
    "function, arguments, expected",
    [
        (lambda x, w: x @ w, (X, W), PRODUCT),
        # ReLU, a bias and a reshape move no bytes, because they are fused into the product that reads them.
        (lambda x, w: nnx.relu(x.reshape(8, 4) + 1) @ w[:4], (X, W), 4 * (4 * 8 + 4 * 16 + 8 * 16)),
        # An array that is cast before the product is read in the narrower of the two types.
        (lambda x, w: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), (X, W), PRODUCT // 2),
        # The array is used twice and read once; the result of the program is written.
        (lambda x: x * x + x, (X,), 2 * 4 * 32),
        # A barrier moves no bytes.
        (lambda x, w: operator.matmul(*jax.lax.optimization_barrier((x, w))), (X, W), PRODUCT),
        # The optimizer reads the gradient, which the product wrote, and the parameter; it writes the parameter.
        (lambda x, w: w - 0.1 * (x.T @ (x @ w)), (X, W), PRODUCT + 4 * (32 + 64 + 128) + 3 * 4 * 128),
        (lambda x, w: jax.lax.scan(lambda c, _: (c + (x @ w).sum(), None), 0.0, length=3)[0], (X, W), None),
    ],
)
def test_the_fewest_bytes_of_a_program(function, arguments, expected):
    moved = count_bytes(jax.make_jaxpr(jax.jit(function))(*arguments).jaxpr)
    if expected is None:  # a loop moves the bytes of its body in each iteration
        assert moved == pytest.approx(3 * (PRODUCT + 4 * 64), abs=3 * 4 + 12)
    else:
        assert moved == expected
