import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import DropoutKey, create_model, dropout_keys, initial_values
from models.layers import (
    BatchNorm,
    Constant,
    Conv,
    Dense,
    Dropout,
    LocalResponseNorm,
    Module,
    Normal,
    Uniform,
    adaptive_average_pool,
    average_pool,
    fan_in_uniform,
    kaiming_normal,
    lecun_uniform,
    max_pool,
)


def materialize(layer):
    nnx.update(layer, jax.device_put(initial_values(layer, 0)))
    return layer


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


# Batch normalisation


@pytest.mark.parametrize("group", [0, 2, 3])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 3)])
def test_batch_norm_normalises_groups_and_keeps_unbiased_variance(group, shape):
    layer = materialize(BatchNorm(3, epsilon=1e-3, momentum=0.8))
    layer.scale.set_value(jnp.array([1.0, 2.0, 3.0]))
    layer.bias.set_value(jnp.array([0.5, 0.0, -1.0]))
    layer.mean.set_value(jnp.array([1.0, 1.0, 1.0]))
    layer.virtual_batch_size = group
    layer.train()
    x = normal(*shape)
    expected, means, variances = [], [], []
    for part in np.split(x.astype(np.float64), len(x) // (group or len(x))):
        values = part.reshape(-1, 3)
        means.append(values.mean(0))
        variances.append(values.var(0, ddof=1))
        expected.append((part - values.mean(0)) / np.sqrt(values.var(0) + 1e-3) * [1, 2, 3] + [0.5, 0, -1])
    np.testing.assert_allclose(layer(x), np.concatenate(expected), atol=1e-5)
    np.testing.assert_allclose(layer.mean.get_value(), 0.8 + 0.2 * np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(layer.var.get_value(), 0.8 + 0.2 * np.mean(variances, 0), rtol=1e-5)


def test_batch_norm_in_evaluation_uses_the_running_values_and_leaves_them():
    layer = materialize(BatchNorm(2, epsilon=0.25))
    layer.mean.set_value(jnp.array([3.0, -1.0]))
    layer.var.set_value(jnp.array([2.0, 0.75]))
    np.testing.assert_allclose(layer(jnp.array([[4.5, 1.0]])), [[1.0, 2.0]], rtol=1e-6)
    np.testing.assert_array_equal(layer.mean.get_value(), [3.0, -1.0])


def test_batch_norm_is_accurate_far_from_zero():
    layer = materialize(BatchNorm(1))
    layer.train()
    x = 10 + 0.01 * normal(64, 8, 8, 1)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(layer(x), exact, atol=1e-3)  # E[x^2] - E[x]^2 errs by 0.1


def test_batch_norm_takes_its_statistics_in_float32():
    layer = materialize(BatchNorm(1))
    layer.dtype = jnp.bfloat16
    layer.train()
    x = 1 + 0.01 * normal(4096, 1)
    y = layer(x)
    assert y.dtype == jnp.bfloat16 and layer.mean.get_value().dtype == jnp.float32
    np.testing.assert_allclose(layer.mean.get_value(), 0.1 * x.mean(), rtol=1e-5)


def test_batch_norm_refuses_what_does_not_divide_and_what_does_not_vary():
    layer = materialize(BatchNorm(1))
    layer.train()
    layer.virtual_batch_size = 4
    with pytest.raises(ValueError, match="6 images do not divide into groups of bn_virtual_batch_size=4"):
        layer(normal(6, 2, 2, 1))
    layer.virtual_batch_size = 1
    with pytest.raises(ValueError, match="groups of 1 images with maps of 1x1 pixels sees one value a channel"):
        layer(normal(6, 1, 1, 1))


# Pooling, against plain loops


def padded_windows(x, window, stride, padding, ceil, fill):
    """Yields the position and the part of the padded map of each window, by PyTorch's rule."""
    size = x.shape[1]
    starts = [start for start in range(-padding, size + padding, stride)]
    if ceil:  # the window may reach over the right padding if it starts in the map or in the left padding
        starts = [
            start for start in starts if start < size and start - stride + window < size + padding or start == -padding
        ]
    else:
        starts = [start for start in starts if start + window <= size + padding]
    edge = padding + window
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)), constant_values=fill)
    for (i, top), (j, left) in itertools.product(enumerate(starts), repeat=2):
        top, left = top + edge, left + edge
        yield (len(starts), i, j), padded[:, top : top + window, left : left + window]


def pool_by_loop(x, window, stride, padding, ceil, reduce, fill):
    parts = list(padded_windows(x, window, stride, padding, ceil, fill))
    count = parts[0][0][0]
    result = np.zeros((len(x), count, count, x.shape[-1]), np.float32)
    for (_, i, j), part in parts:
        result[:, i, j] = reduce(part, axis=(1, 2))
    return result


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize("window, stride, padding", [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 1)])
def test_pooling_is_pytorchs(size, window, stride, padding):
    x = normal(2, size, size, 3) - 3  # negative numbers, so that zeros in the padding would be the maximum
    for ceil in (False, True):
        expected = pool_by_loop(x, window, stride, padding, ceil, np.max, -np.inf)
        np.testing.assert_array_equal(max_pool(x, window, stride, padding, ceil=ceil), expected)
    expected = pool_by_loop(x, window, stride, padding, False, np.mean, 0)
    np.testing.assert_allclose(average_pool(x, window, stride, padding), expected, rtol=1e-5)


def test_known_pooled_sizes():
    # GoogLeNet's maps, Szegedy 2014, Table 1, need rounding up; AlexNet's and ResNet's do not.
    sizes = [max_pool(jnp.zeros((1, size, size, 1)), 3, 2, ceil=True).shape[1] for size in (112, 56, 28, 14, 2)]
    assert sizes == [56, 28, 14, 7, 1]
    assert max_pool(jnp.zeros((1, 55, 55, 1)), 3, 2).shape[1] == 27
    assert max_pool(jnp.zeros((1, 112, 112, 1)), 3, 2, padding=1).shape[1] == 56


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("window, stride, padding", [(3, 1, 1), (3, 2, 1), (2, 2, 0)])
def test_average_pooling_without_the_padding_is_tensorflows(size, window, stride, padding):
    x = normal(2, size, size, 3)
    expected = pool_by_loop(x, window, stride, padding, False, np.nanmean, np.nan)
    np.testing.assert_allclose(average_pool(x, window, stride, padding, count_padding=False), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 6, 7, 8, 13, 14])
def test_adaptive_pooling_is_pytorchs(size):
    x = normal(2, size, size + 1, 3)
    expected = np.zeros((2, 6, 7, 3))
    for i, j in itertools.product(range(6), range(7)):
        rows = slice(int(np.floor(i * size / 6)), int(np.ceil((i + 1) * size / 6)))
        columns = slice(int(np.floor(j * (size + 1) / 7)), int(np.ceil((j + 1) * (size + 1) / 7)))
        expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(adaptive_average_pool(x, (6, 7)), expected, rtol=1e-5, atol=1e-6)


def test_adaptive_pooling_is_the_identity_at_the_native_size():
    x = jnp.zeros((1, 6, 6, 2))
    assert adaptive_average_pool(x, (6, 6)) is x


# Local response normalisation


def test_local_response_norm_is_the_papers():
    x = normal(2, 3, 3, 8) * 10
    expected = np.zeros_like(x)
    for channel in range(8):  # Krizhevsky 2012, section 3.3: j from max(0, i - n/2) to min(N - 1, i + n/2)
        neighbours = x[..., max(0, channel - 2) : min(7, channel + 2) + 1]
        expected[..., channel] = x[..., channel] / (2 + 0.1 * (neighbours**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(LocalResponseNorm(alpha=0.1)(x), expected, rtol=1e-5)
    assert LocalResponseNorm()(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    layer = LocalResponseNorm()
    assert (layer.size, layer.alpha, layer.beta, layer.k) == (5, 1e-4, 0.75, 2)


# Convolutions and dense layers


def test_convolution_against_a_loop():
    layer = materialize(Conv(4, 6, kernel=(3, 2), stride=2, padding=(1, 0), groups=2))
    x, kernel = normal(2, 5, 6, 4), np.asarray(layer.kernel.get_value())
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    expected = np.zeros((2, 3, 3, 6))
    for i, j, out in np.ndindex(3, 3, 6):
        group = out // 3
        part = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2, 2 * group : 2 * group + 2]
        expected[:, i, j, out] = (part * kernel[..., out]).sum((1, 2, 3)) + layer.bias.get_value()[out]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, stride, edges", [(6, 2, (0, 1)), (7, 2, (1, 1)), (6, 1, (1, 1)), (1, 2, (1, 1))])
def test_same_padding_is_tensorflows(size, stride, edges):
    # There are max((ceil(size / stride) - 1) stride + 3 - size, 0) pixels of padding; an odd one is below or right.
    same, valid = (materialize(Conv(2, 4, kernel=3, stride=stride, padding=padding)) for padding in ("SAME", 0))
    x = normal(2, size, size, 2)
    padded = np.pad(x, ((0, 0), edges, edges, (0, 0)))
    np.testing.assert_allclose(same(x), valid(padded), rtol=1e-4, atol=1e-5)
    assert same(x).shape[1] == -(-size // stride)


def test_dense_layer_on_a_map():
    layer = materialize(Dense((2, 3, 4), 5))
    x, kernel = normal(6, 2, 3, 4), np.asarray(layer.kernel.get_value())
    expected = x.reshape(6, 24) @ kernel.reshape(24, 5) + layer.bias.get_value()
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


# Dropout


def drop(rate, seed, shape=(200, 500)):
    model = nnx.Sequential(Dropout(rate), Dropout(rate))
    model.train()
    graph, _ = nnx.split(model, DropoutKey)
    layers = nnx.merge(graph, dropout_keys(model, jax.random.key(seed)))
    return [np.asarray(layer(jnp.ones(shape))) for layer in layers.layers]


def test_dropout_keeps_the_share_and_the_mean():
    dropped, other = drop(0.7, seed=0)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.3], rtol=1e-6)
    assert abs((dropped > 0).mean() - 0.3) < 0.01  # 7 standard deviations
    assert (dropped != other).any()


def test_dropout_is_a_function_of_the_key():
    np.testing.assert_array_equal(drop(0.5, seed=3), drop(0.5, seed=3))
    assert np.any(drop(0.5, seed=3)[0] != drop(0.5, seed=4)[0])


def test_dropout_is_the_identity_in_evaluation_and_needs_no_key():
    layer = Dropout(0.5)
    x = jnp.ones((3, 4))
    assert layer(x) is x
    layer.train()
    assert len(jax.tree.leaves(nnx.to_flat_state(nnx.state(layer)).paths)) == 1
    with pytest.raises(ValueError, match="dropout in training mode needs a key"):
        layer(x)
    layer.eval()
    assert layer(x) is x and not nnx.to_flat_state(nnx.state(layer)).paths


def test_dropout_in_a_compiled_training_step():
    model = create_model("alexnet_owt", num_classes=2, abstract=True)
    model.train()
    graph, params, keys = nnx.split(model, nnx.Param, DropoutKey)
    assert nnx.to_pure_dict(keys) == {"dropout6": {"key": None}, "dropout7": {"key": None}}

    def step(params, key, images):
        return nnx.merge(graph, params, dropout_keys(model, key))(images)

    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(step)(nnx.to_pure_dict(params), jax.eval_shape(jax.random.key, 0), images)
    assert str(jaxpr).count("random_fold_in") == 2


# Names


class Block(Module):
    def __init__(self):
        self.conv2 = Conv(3, 3, kernel=3, padding=1)

    def __call__(self, x):
        return jnp.sin(self.conv2(x))


class Network(Module):
    def __init__(self):
        self.stages = nnx.List([nnx.List([Block(), Block()])])
        self.head = Conv(3, 3, kernel=3, padding=1)

    def __call__(self, x):
        for block in self.stages[0]:
            x = block(x)
        return jnp.cos(self.head(x))


def test_name_stacks_are_paths():
    model = materialize(Network())
    jaxpr = jax.make_jaxpr(lambda x: model(x))(jnp.zeros((1, 4, 4, 3)))
    names = [
        (equation.primitive.name, str(equation.source_info.name_stack))
        for equation in jaxpr.eqns
        if equation.primitive.name in ("conv_general_dilated", "sin", "cos")
    ]
    assert names == [
        ("conv_general_dilated", "stages.0.0/conv2"),
        ("sin", "stages.0.0"),
        ("conv_general_dilated", "stages.0.1/conv2"),
        ("sin", "stages.0.1"),
        ("conv_general_dilated", "head"),
        ("cos", ""),
    ]


# Initial values


def test_initial_distributions():
    random = np.random.default_rng(0)
    values = kaiming_normal(random, (3, 3, 64, 128))
    np.testing.assert_allclose([values.mean(), values.std()], [0, np.sqrt(2 / (9 * 128))], atol=5e-4)
    assert abs(values).max() > 4 * values.std()  # not truncated
    for initializer, shape, bound in (
        (fan_in_uniform, (3, 3, 64, 128), 1 / np.sqrt(9 * 64)),
        (fan_in_uniform, (6, 6, 16, 128), 1 / np.sqrt(36 * 16)),
        (lecun_uniform, (5, 5, 16, 64), np.sqrt(3 / (25 * 16))),
        (Uniform(0.25), (300, 300), 0.25),
    ):
        values = initializer(random, shape)
        np.testing.assert_allclose(
            [values.min(), values.max(), values.std()], [-bound, bound, bound / 3**0.5], rtol=0.02
        )
        assert values.dtype == np.float32
    assert abs(Normal(0.01)(random, (400, 400)).std() - 0.01) < 1e-4
    np.testing.assert_array_equal(Constant(0.2)(random, (2,)), np.float32([0.2, 0.2]))


def test_default_bias_is_pytorchs():
    bias = initial_values(Conv(4, 10_000, 5), 0)["bias"]
    np.testing.assert_allclose([bias.min(), bias.max()], [-0.1, 0.1], rtol=0.01)


def test_initial_values_of_alexnet_are_section_5():
    values = initial_values(create_model("alexnet", abstract=True), 0)
    biases = {name: set(np.unique(layer["bias"]).tolist()) for name, layer in values.items()}
    ones = {"conv2", "conv4", "conv5", "dense6", "dense7"}
    assert biases == {name: {float(name in ones)} for name in (*ones, "conv1", "conv3", "head")}
    assert abs(values["dense7"]["kernel"].std() - 0.01) < 1e-5


def test_initial_values_depend_on_seed_and_path_alone():
    values = initial_values(create_model("googlenet", abstract=True), 0)
    with_heads = initial_values(create_model("googlenet", aux_heads=("inception4a",), abstract=True), 0)
    assert with_heads.keys() - values.keys() == {"inception4a_head"}
    jax.tree.map(np.testing.assert_array_equal, values, {name: with_heads[name] for name in values})
    other = initial_values(create_model("googlenet", abstract=True), 1)
    assert np.any(other["conv1"]["conv"]["kernel"] != values["conv1"]["conv"]["kernel"])
    block = initial_values(create_model("resnet20", abstract=True), 0)["stage1"][0]
    assert np.any(block["conv1"]["kernel"] != block["conv2"]["kernel"])


def test_a_made_model_holds_its_initial_values_in_evaluation_mode():
    model = create_model("resnet20", seed=5)
    expected = initial_values(create_model("resnet20", abstract=True), 5)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), expected)
    assert model.norm1.use_running_average


def test_float64_parameters_are_float64():
    with jax.enable_x64(True):
        state = nnx.to_pure_dict(nnx.state(create_model("resnet20", dtype=jnp.float64)))
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype(np.float64)}
