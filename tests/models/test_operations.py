"""The CPU's and the GPU's forms equal plain operations, formulas and loops; each platform compiles its own forms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from models import gpu_operations
from models.operations import add_bias, convolve, max_pool, mean_and_variance, normalize, relu, store


@pytest.fixture(autouse=True)
def float64():
    """Enables float64 for each test, so that equal sums agree to many digits."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape)


def with_gradients(function, *arguments):
    """Returns the function's value y and its gradients for the cotangent normal(*y.shape), compiled together."""

    def both(*arguments):
        y, gradients = jax.vjp(function, *arguments)
        return y, *gradients(normal(*y.shape))

    return jax.jit(both)(*arguments)


def plain_convolve(x, kernel, stride, padding, groups):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


CONVOLUTIONS = {
    "1x1": ((1, 1, 6, 4), 1, ((0, 0), (0, 0)), 1),
    "1x1, stride 2": ((1, 1, 6, 4), 2, ((0, 0), (0, 0)), 1),
    "1x1, padded": ((1, 1, 6, 4), 1, ((1, 1), (1, 1)), 1),
    "depthwise": ((3, 3, 1, 6), 1, ((1, 1), (1, 1)), 6),
    "depthwise, stride 2": ((3, 3, 1, 6), 2, ((0, 1), (0, 1)), 6),
    "depthwise, 1x1": ((1, 1, 1, 6), 1, ((0, 0), (0, 0)), 6),
    "depthwise, not square": ((2, 3, 1, 6), 1, ((1, 0), (1, 1)), 6),
    "depthwise, two a feature": ((3, 3, 1, 12), 2, ((1, 1), (1, 1)), 6),
    "few positions": ((3, 3, 6, 4), 4, ((1, 1), (1, 1)), 1),
    "one position": ((7, 8, 6, 4), 1, ((0, 0), (0, 0)), 1),
    "larger than the map": ((9, 9, 6, 4), 1, ((4, 4), (4, 4)), 1),
    "groups": ((3, 3, 3, 4), 2, ((1, 1), (1, 1)), 2),
}


@pytest.mark.parametrize("shape, stride, padding, groups", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_and_their_gradients_are_the_plain_ones(shape, stride, padding, groups):
    x, kernel = normal(2, 7, 8, 6), normal(*shape)
    results = (
        with_gradients(lambda x, kernel, f=function: f(x, kernel, stride, padding, groups), x, kernel)
        for function in (convolve, plain_convolve)
    )
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_depthwise_convolutions_in_bfloat16_are_rounded_once():
    x, kernel = (jnp.asarray(normal(*shape), jnp.bfloat16) for shape in ((2, 7, 8, 6), (3, 3, 1, 6)))
    padding = ((1, 1), (1, 1))

    def apply(x, kernel, function):
        y, gradients = jax.vjp(lambda x, kernel: function(x, kernel, 1, padding, 6), x, kernel)
        return y, *gradients(jnp.ones_like(y))

    found = jax.jit(apply, static_argnums=2)(x, kernel, convolve)
    exact = apply(x.astype(float), kernel.astype(float), plain_convolve)
    for ours, value in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours.astype(float), value, rtol=2**-8, atol=1e-3)


def test_the_gradient_of_a_bias():
    x, bias = normal(2, 3, 4, 5), normal(5)
    y, *gradients = with_gradients(add_bias, x, bias)
    np.testing.assert_allclose(y, x + bias)
    np.testing.assert_array_equal(gradients[0], x)
    np.testing.assert_allclose(gradients[1], x.sum((0, 1, 2)), rtol=1e-12)


ACTIVATIONS = {None: lambda x: x, "relu": lambda x: jnp.where(x > 0, x, 0), "relu6": lambda x: jnp.clip(x, 0, 6)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 4, 3, 5, 6), (3, 2, 3, 5, 6), (2, 4, 1, 1, 6)])
def test_normalisation_and_its_gradient_are_those_of_the_formula(shape, activation):
    def formula(x, scale, bias):
        mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
        return ACTIVATIONS[activation]((x - mean) / jnp.sqrt(var + 1e-3) * scale + bias)

    def ours(*arguments):
        return normalize(*arguments, shift=jnp.ones(6), epsilon=1e-3, activation=activation)[0]

    arguments = 3 + 2 * normal(*shape)[::-1], 6 * normal(6), normal(6) ** 2
    for found, expected in zip(*(with_gradients(f, *arguments) for f in (ours, formula)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_statistics_over_more_positions_than_an_int32_counts(dtype):
    """As over the whole batch of 1,024 devices with 256 images each; it is only traced."""
    maps = jax.ShapeDtypeStruct((1, 2**18, 112, 112, 1), dtype)
    features = jax.ShapeDtypeStruct((1,), jnp.float32)

    def loss(*arguments):
        return normalize(*arguments, epsilon=1e-5)[0].astype(jnp.float32).sum()

    assert jax.eval_shape(jax.grad(loss), maps, features, features, features).shape == maps.shape


@pytest.mark.parametrize("mean, deviation, shift", [(0, 1, 0), (3, 1, 0), (10, 0.25, 9), (-100, 8, -90)])
def test_one_pass_gives_the_statistics_of_bfloat16_maps(mean, deviation, shift):
    maps = jnp.asarray(mean + deviation * normal(1, 64, 14, 14, 8), jnp.bfloat16)
    exact = np.asarray(maps, np.float64)
    found = mean_and_variance(maps, jnp.full(8, shift, jnp.float32))
    np.testing.assert_allclose(found[0].ravel(), exact.mean((0, 1, 2, 3)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1].ravel(), exact.var((0, 1, 2, 3)), rtol=1e-3)


def test_the_statistics_of_float32_maps_survive_a_large_mean():
    maps = jnp.asarray(10 + 0.01 * normal(1, 64, 14, 14, 8), jnp.float32)
    variance = mean_and_variance(maps, jnp.zeros(8, jnp.float32))[1].ravel()
    np.testing.assert_allclose(variance, np.asarray(maps, np.float64).var((0, 1, 2, 3)), rtol=1e-4)


def test_relu_passes_its_gradient_where_the_result_is_positive():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.inf])
    np.testing.assert_array_equal(relu(x), [0, 0, 0, 3, jnp.inf])
    np.testing.assert_array_equal(jax.grad(lambda x: relu(x).sum())(x), [0, 0, 0, 1, 1])
    assert jnp.isnan(relu(jnp.nan))


@pytest.mark.parametrize("shape, stride, padding", [((7, 7), 2, 3), ((3, 3), 2, 0), ((11, 11), 4, 2), ((5, 4), 3, 1)])
@pytest.mark.parametrize("size", [(23, 24), (22, 25)])
def test_a_gpus_strided_convolution_of_an_image_is_the_plain_one(shape, stride, padding, size):
    x, kernel = normal(2, *size, 3), normal(*shape, 3, 4)
    case = stride, ((padding, padding), (padding, padding)), 1
    ours = gpu_operations.find_convolution(x.shape, kernel.shape, *case)
    plain = functools.partial(plain_convolve, stride=stride, padding=case[1], groups=1)
    for found, expected in zip(*(with_gradients(f, x, kernel) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_a_gpus_gradient_of_max_pooling_goes_to_the_first_maximum():
    x = jnp.zeros((1, 4, 4, 1))
    gradient = jax.grad(lambda x: gpu_operations.max_pool(x, (2, 2), 2, ((0, 0), (0, 0))).sum())(x)
    np.testing.assert_array_equal(gradient[0, ..., 0], [[1, 0, 1, 0], [0] * 4, [1, 0, 1, 0], [0] * 4])


@pytest.mark.parametrize(
    "height, width, window, stride, padding",
    [
        (6, 7, 3, 2, (0, 0)),
        (5, 8, 3, 2, (1, 1)),
        (6, 7, 3, 2, (0, 1)),
        (6, 7, 2, 2, (0, 0)),
        (4, 5, 3, 1, (1, 1)),
        (5, 8, 3, 3, (1, 2)),
        (6, 7, 2, 3, (0, 0)),
    ],
)
def test_the_first_of_equal_maxima_has_the_gradient(height, width, window, stride, padding):
    x = np.random.default_rng(0).integers(0, 3, (2, height, width, 2)).astype(float)  # many are equal
    y, found = with_gradients(lambda x: max_pool(x, window, stride, (padding, padding)), x)
    dy, expected = normal(*y.shape), np.zeros_like(x)
    for image, row, column, feature in np.ndindex(y.shape):
        places = itertools.product(
            *(range(start, start + window) for start in (row * stride - padding[0], column * stride - padding[0]))
        )
        places = [(i, j) for i, j in places if 0 <= i < height and 0 <= j < width]
        first = max(places, key=lambda place: x[image, *place, feature])  # Python's max returns the first
        assert y[image, row, column, feature] == x[image, *first, feature]
        expected[image, *first, feature] += dy[image, row, column, feature]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_maximum_with_nan_is_nan():
    assert np.isnan(max_pool(np.array([1.0, np.nan, 2.0, 3.0]).reshape(1, 2, 2, 1), 2, 2, ((0, 0), (0, 0)))).all()


def test_several_features_of_each_feature_are_one_convolution():
    def apply(x, kernel):
        return convolve(x, kernel, 1, ((1, 1), (1, 1)), groups=4)

    text = jax.jit(apply).lower(normal(2, 6, 6, 4), normal(3, 3, 1, 8)).as_text()
    assert text.count("stablehlo.convolution") == 1


def test_each_platform_compiles_its_own_forms():
    def step(x, kernel, depthwise, large, strided):
        x = convolve(convolve(x, kernel, 1, ((0, 0), (0, 0)), 1), depthwise, 1, ((1, 1), (1, 1)), 4)
        x = convolve(x, large, 1, ((3, 3), (3, 3)), 1)
        return max_pool(convolve(x, strided, 2, ((1, 1), (1, 1)), 1), 2, 2, ((0, 0), (0, 0))).sum()

    traced = jax.jit(jax.grad(step, (0, 1, 2, 3, 4)))
    kernels = normal(1, 1, 4, 4), normal(3, 3, 1, 4), normal(7, 7, 4, 4), normal(3, 3, 4, 4)
    traced = traced.trace(normal(2, 8, 8, 4), *kernels)
    tpu, gpu, cpu = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cuda", "cpu"))
    for accelerator in (tpu, gpu):
        assert accelerator.count("stablehlo.convolution") == 12 and "dot_general" not in accelerator
    assert "select_and_scatter" in tpu and "select_and_scatter" not in gpu and "select_and_scatter" not in cpu
    assert "stride = [2, 2]" in tpu and "stride = [2, 2]" not in gpu
    assert cpu.count("stablehlo.convolution") == 6  # those of the two larger kernels


@pytest.mark.parametrize(
    "function, shapes",
    [
        (lambda x, kernel: convolve(x, kernel, 1, ((0, 0), (0, 0)), 1), [(2, 7, 8, 6), (1, 1, 6, 4)]),
        (lambda x, kernel: convolve(x, kernel, 2, ((1, 1), (1, 1)), 6), [(2, 7, 8, 6), (3, 3, 1, 6)]),
        (lambda x, kernel: convolve(x, kernel, 1, ((0, 0), (0, 0)), 1), [(2, 7, 8, 6), (7, 8, 6, 4)]),
        (lambda x: max_pool(x, 3, 2, ((1, 1), (1, 1))), [(2, 7, 8, 6)]),
        (lambda x, scale, bias: normalize(x, scale, bias, np.zeros(6), 1e-3), [(2, 2, 7, 8, 6), (6,), (6,)]),
        (lambda x, scale, bias: normalize(x, scale, bias, np.zeros(6), 1e-3, "relu"), [(2, 2, 7, 8, 6), (6,), (6,)]),
        (relu, [(2, 7, 8, 6)]),
        (store, [(2, 7, 8, 6)]),
        (lambda x: gpu_operations.max_pool(x, (3, 3), 2, ((1, 1), (1, 1))), [(2, 7, 8, 6)]),
        (add_bias, [(2, 7, 8, 6), (6,)]),
    ],
    ids=[
        "1x1",
        "depthwise",
        "one position",
        "max pool",
        "batch norm",
        "batch norm and ReLU",
        "ReLU",
        "block sum",
        "max pool on a GPU",
        "bias",
    ],
)
def test_first_and_second_derivatives_forward_and_backward(function, shapes):
    arguments = [normal(*shape) for shape in shapes]
    check_grads(jax.jit(function), arguments, order=2, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)
    one_by_one = jax.vmap(jax.grad(lambda *arguments: sum(y.sum() for y in jax.tree.leaves(function(*arguments)))))
    gradients = one_by_one(*(np.stack([argument] * 2) for argument in arguments))
    for gradient in gradients if isinstance(gradients, tuple) else (gradients,):
        np.testing.assert_allclose(gradient[0], gradient[1], rtol=1e-12)
