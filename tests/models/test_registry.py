import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import SMALL, smallest_size
from flax import nnx
from jax.extend.core import Literal

from analysis.costs import count_macs, walk
from models import REGISTRY, DropoutKey, create_model, dropout_keys, get_stages, googlenet, initial_values, resnet
from models.layers import BatchNorm, ConvReLU

# Trainable parameters, without and with the network's own auxiliary heads. The counts are torchvision 0.28.0's or timm
# 1.0.31's if they have the network, Keras's for MobileNet's multipliers, and otherwise from the papers' tables.
PARAMETERS = {
    "lenet5": (61_706,),
    "alexnet": (60_965_224,),
    "alexnet_ungrouped": (62_378_344,),
    "alexnet_owt": (61_100_840,),
    "vgg11": (132_863_336,),
    "vgg13": (133_047_848,),
    "vgg16": (138_357_544,),
    "vgg19": (143_667_240,),
    "vgg11_bn": (132_868_840,),
    "vgg13_bn": (133_053_736,),
    "vgg16_bn": (138_365_992,),
    "vgg19_bn": (143_678_248,),
    "googlenet": (6_998_552, 13_378_280),
    "googlenet_bn": (7_005_832, 13_385_816),
    "googlenet_bn_3x3": (6_624_904, 13_004_888),
    "resnet18": (11_689_512,),
    "resnet34": (21_797_672,),
    "resnet50": (25_557_032,),
    "resnet101": (44_549_160,),
    "resnet152": (60_192_808,),
    "resnet50_v1": (25_557_032,),
    "resnet101_v1": (44_549_160,),
    "resnet152_v1": (60_192_808,),
    # He 2016: v1's convolutions, a normalisation before each except those of shortcuts, and one at the end.
    "resnet18_v2": (11_687_720,),
    "resnet34_v2": (21_795_880,),
    "resnet50_v2": (25_549_352,),
    "resnet101_v2": (44_541_480,),
    "resnet152_v2": (60_185_128,),
    "resnet34_a": (21_623_848,),  # plain34's: option A has no parameters
    # 13 more projections than resnet34: 3 (64^2 + 2 64) + 3 (128^2 + 2 128) + 5 (256^2 + 2 256) + 2 (512^2 + 2 512)
    "resnet34_c": (21_797_672 + 919_168,),
    "resnet18_blur": (11_689_512,),  # the blur has no parameters
    "plain18": (11_515_688,),
    "plain34": (21_623_848,),
    "resnet20": (269_722,),
    "resnet32": (464_154,),
    "resnet44": (658_586,),
    "resnet56": (853_018,),
    "resnet110": (1_727_962,),
    "plain20": (269_722,),
    "plain32": (464_154,),
    "plain44": (658_586,),
    "plain56": (853_018,),
    "resnet110_v2": (1_727_962,),
    "resnet164_v2": (1_703_258,),
    "zfnet": (62_357_608,),
    "zfnet_wide": (107_627_624,),
    "nin": (7_595_176,),
    "nin_cifar": (966_986,),
    "vgg16_c": (133_638_952,),
    "alexnet_no_lrn": (60_965_224,),
    "googlenet_no_lrn": (6_998_552, 13_378_280),
    # Table 1's widths with 192, 416, 832, 1280, 1728, 2176, 2640, 3344, 4048 features in and 4944 out; heads on 4a, 4d.
    "googlenet_naive": (97_526_008, 104_274_376),
    "inception_v3": (23_834_568, 27_161_264),
    "inception_v4": (42_679_816,),
    "inception_resnet_v2": (55_843_464,),
    "densenet121": (7_978_856,),
    "densenet169": (14_149_480,),
    "densenet201": (20_013_928,),
    "densenet40_k12": (1_019_722,),
    "densenet_bc100_k12": (769_162,),
    "squeezenet1_0": (1_248_424,),
    "squeezenet1_1": (1_235_496,),
    "mobilenet_v1": (4_231_976,),
    "mobilenet_v1_keras": (4_231_976,),
    "mobilenet_v1_075": (2_585_560,),
    "mobilenet_v1_075_keras": (2_585_560,),
    "mobilenet_v1_050": (1_331_592,),
    "mobilenet_v1_050_keras": (1_331_592,),
    "mobilenet_v1_025": (470_072,),
    "mobilenet_v1_025_keras": (470_072,),
    "xception": (22_855_952,),
    "vit_b_16": (86_567_656,),
    "vit_b_32": (88_224_232,),
    "vit_small_patch16_224": (22_050_664,),
    "vit_small_patch32_224": (22_878_952,),
    "vit_tiny_patch16_224": (5_717_416,),
    # Patches of 32 pixels instead of 16: 3 (32^2 - 16^2) 192 more weights, 14^2 - 7^2 fewer positions.
    "vit_tiny_patch32_224": (5_717_416 + 442_368 - 147 * 192,),
    # Fixed positions and no class token, 198 384 fewer; one more dense layer, 384^2 + 384.
    "vit_s16": (22_050_664 - 198 * 384 + 147_840,),
    "convnext_tiny": (28_589_128,),
    "convnext_small": (50_223_688,),
    "convnext_base": (88_591_464,),
}


def is_large(name):
    return name not in (*SMALL.values(), "resnet18")


def slow_where(is_slow):
    return [pytest.param(name, marks=pytest.mark.slow) if is_slow(name) else name for name in REGISTRY]


def trace(model, batch, size, channels):
    """Returns the jaxpr and the output shapes of (variables, images) -> outputs, without computing anything."""
    graph, *state = nnx.split(model, nnx.Param, ...)
    variables = tuple(map(nnx.to_pure_dict, state))
    images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.float32)
    return jax.make_jaxpr(lambda variables, images: nnx.merge(graph, *variables)(images), return_shape=True)(
        variables, images
    )


def used_inputs(jaxpr, output=slice(None)):
    """Returns which inputs the outputs, or some of them, depend on; a call is treated as one equation."""
    needed = set(jaxpr.outvars[output])
    for equation in reversed(jaxpr.eqns):
        if needed & set(equation.outvars):
            needed |= {variable for variable in equation.invars if not isinstance(variable, Literal)}
    return [variable in needed for variable in jaxpr.invars]


def count_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    heads = REGISTRY[name].aux_heads
    counts = [count_parameters(create_model(name, abstract=True))]
    if heads:
        counts.append(count_parameters(create_model(name, aux_heads=heads, abstract=True)))
    assert tuple(counts) == PARAMETERS[name]


@pytest.mark.parametrize("name", REGISTRY)
def test_native_size(name):
    entry = REGISTRY[name]
    jaxpr, logits = trace(create_model(name, abstract=True), 2, entry.image_size, entry.channels)
    assert (logits.shape, logits.dtype) == ((2, entry.num_classes), jnp.float32)
    # At its own size a network with dense layers on a map needs no adaptive pooling, which concatenates rows, columns.
    if entry.family in ("lenet", "alexnet", "zfnet", "vgg"):
        assert not re.search(r"concatenate\[dimension=[12]\]", str(jaxpr))
    assert all(used_inputs(jaxpr.jaxpr))


@pytest.mark.parametrize("name", slow_where(is_large))
def test_any_size_classes_channels_and_type_in_training_with_all_heads(name):
    entry, stages, random = REGISTRY[name], get_stages(name), np.random.default_rng(zlib.crc32(name.encode()))
    assert set(entry.aux_heads) <= set(stages)
    size, num_classes, images, channels = draw_options(random, entry, fewest_images=2)
    options = {"channels": channels, "aux_heads": tuple(stages), "dropout_rate": 0.0}
    model = create_model(name, dtype=jnp.bfloat16, num_classes=num_classes, abstract=True, **options)
    model.train()
    jaxpr, (logits, aux_logits) = trace(model, images, size, channels)
    assert len(aux_logits) == len(stages)
    assert all((each.shape, each.dtype) == ((images, num_classes), jnp.float32) for each in (logits, *aux_logits))
    params = len(jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    assert all(used_inputs(jaxpr.jaxpr)[:params])
    assert map_dtypes(jaxpr) == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", slow_where(is_large))
def test_any_size_classes_channels_and_type_in_evaluation(name):
    entry, random = REGISTRY[name], np.random.default_rng([1, zlib.crc32(name.encode())])
    size, num_classes, images, channels = draw_options(random, entry, fewest_images=1)
    dtype = random.choice(["float32", "bfloat16"])
    model = create_model(name, dtype=dtype, num_classes=num_classes, channels=channels, abstract=True)
    jaxpr, logits = trace(model, images, size, channels)
    assert (logits.shape, logits.dtype) == ((images, num_classes), jnp.float32)
    assert all(used_inputs(jaxpr.jaxpr))
    assert map_dtypes(jaxpr) == {jnp.dtype(dtype)}


def map_dtypes(jaxpr):
    """Returns the types of what the convolutions give, those in inner programs included."""
    equations = [traced.equation for traced in walk(jaxpr.jaxpr, [])]
    return {each.outvars[0].aval.dtype for each in equations if each.primitive.name == "conv_general_dilated"}


def draw_options(random, entry, fewest_images):
    """Returns a size from the smallest to half as large again as the native one, classes, a batch size, channels."""
    size = random.integers(smallest_size(entry), entry.image_size * 3 // 2, endpoint=True)
    return int(size), int(random.integers(1, 2000)), int(random.integers(fewest_images, 9)), int(random.integers(1, 5))


def make_loss(name, abstract):
    """Returns a loss (params, images, batch_stats) in training mode, its first and last argument, the images' shape."""
    entry = REGISTRY[name]
    model = create_model(name, num_classes=10, aux_heads=entry.aux_heads, abstract=abstract)
    model.train()
    graph, params, batch_stats, _ = nnx.split(model, nnx.Param, nnx.BatchStat, DropoutKey)
    params, batch_stats = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

    def loss(params, images, batch_stats):
        network = nnx.merge(graph, params, batch_stats, dropout_keys(model, jax.random.key(0)))
        outputs = network(images)
        new_stats = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
        return sum(jnp.square(logits - 1).sum() for logits in jax.tree.leaves(outputs)), new_stats

    size = smallest_size(entry)
    return loss, params, batch_stats, (2, size, size, entry.channels)


@pytest.mark.parametrize("name", slow_where(is_large))
def test_the_gradient_of_every_parameter_depends_on_the_images(name):
    loss, params, batch_stats, shape = make_loss(name, abstract=True)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    jaxpr = jax.make_jaxpr(jax.grad(loss, has_aux=True))(params, images, batch_stats).jaxpr
    dependent = {jaxpr.invars[len(jax.tree.leaves(params))]}
    for equation in jaxpr.eqns:
        if any(not isinstance(value, Literal) and value in dependent for value in equation.invars):
            dependent.update(equation.outvars)
    for (path, _), gradient in zip(jax.tree_util.tree_leaves_with_path(params), jaxpr.outvars, strict=False):
        assert not isinstance(gradient, Literal) and gradient in dependent, path


# These take 25 to 50 seconds each to compile.
COMPILE_SLOWLY = ("convnext", "densenet", "googlenet", "inception", "mobilenet", "xception")


@pytest.mark.parametrize("name", slow_where(lambda name: is_large(name) or name.startswith(COMPILE_SLOWLY)))
def test_gradients_are_finite_and_not_zero(name):
    loss, params, old_stats, shape = make_loss(name, abstract=False)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    derivative = jax.jit(jax.grad(loss, has_aux=True))
    gradients, new_stats = derivative(params, images, old_stats)
    for path, gradient in nnx.traversals.flatten_mapping(gradients).items():
        assert np.isfinite(gradient).all() and np.any(gradient), path
    assert all(jax.tree.leaves(jax.tree.map(lambda old, new: np.any(old != new), old_stats, new_stats)))


def test_registry_describes_itself():
    assert PARAMETERS.keys() <= REGISTRY.keys()
    assert all(name == entry.name and entry.paper for name, entry in REGISTRY.items())
    assert (REGISTRY["alexnet"].image_size, REGISTRY["alexnet_owt"].image_size) == (227, 224)
    assert REGISTRY["googlenet"].dropout_rate == 0.4 and REGISTRY["vgg16"].dropout_rate == 0.5


def test_one_head_alone():
    model = create_model("googlenet", aux_heads=("inception4d",), num_classes=5, abstract=True)
    _, (logits, aux_logits) = trace(model, 1, 224, 3)
    assert logits.shape == (1, 5) and [each.shape for each in aux_logits] == [(1, 5)]


def test_a_head_reads_the_map_of_its_stage_and_the_logits_come_by_depth():
    model = create_model("resnet20", aux_heads=("stage2", "stage1"), abstract=True)
    jaxpr, _ = trace(model, 1, 32, 3)
    params = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for output, head, deeper in ((1, "stage1_head", "stage2"), (2, "stage2_head", "stage3")):
        is_used = used_inputs(jaxpr.jaxpr, slice(output, output + 1))
        used = {path[0].key for (path, _), needed in zip(params, is_used, strict=False) if needed}
        assert head in used and deeper not in used


def test_a_head_that_is_not_asked_for_costs_nothing():
    for name in ("googlenet", "inception_v3", "resnet20"):
        parts = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(create_model(name, abstract=True))))
        assert not any(path[0].endswith("_head") for path in parts)


def test_naive_and_bottleneck_inception_modules_of_the_worked_example():
    """Counts products of 1x1x128, 3x3x192 and 5x5x96 on 28x28x256, with and without bottlenecks of width 64."""
    for module, multiplications in ((googlenet.NaiveInception, 854_196_224), (googlenet.Inception, 271_351_808)):
        layer = module(256, (128, 64, 192, 64, 96, 64), ConvReLU, 5)
        jaxpr, maps = trace(layer, 1, 28, 256)
        assert sum(count_macs(traced.equation) for traced in walk(jaxpr.jaxpr, [])) == multiplications
        assert maps.shape == (1, 28, 28, layer.features)


def test_pre_activation_leaves_the_shortcut_clean():
    """He 2016: where the residual function is zero, the block is the identity, below zero too; v1's is not."""
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 8), np.float32)
    for block, last, is_identity in (
        (resnet.PreActivationBlock, "conv2", True),
        (resnet.PreActivationBottleneck, "conv3", True),
        (resnet.BasicBlock, "conv2", False),
    ):
        layer = block(8, 8 // block.expansion, 1, "B")
        nnx.update(layer, jax.device_put(initial_values(layer, 0)))
        kernel = getattr(layer, last).kernel
        kernel.set_value(jnp.zeros_like(kernel.get_value()))
        assert np.array_equal(layer(x), x if is_identity else np.maximum(x, 0))


@pytest.mark.parametrize("name", [name for name in REGISTRY if name.startswith("mobilenet") and "keras" in name])
def test_mobilenets_for_kerass_weights(name):
    """Keras pads by zeros below and on the right before each stride of 2, and has an epsilon of 1e-3."""
    model = create_model(name)
    features, random = model.stage2[0].depthwise.kernel.get_value().shape[-1], np.random.default_rng(0)
    for layer, in_features, groups in ((model.conv1, 3, 1), (model.stage2[0].depthwise, features, features)):
        x = random.standard_normal((1, 8, 8, in_features), np.float32)
        padded, kernel = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), layer.kernel.get_value()
        numbers = "NHWC", "HWIO", "NHWC"
        expected = jax.lax.conv_general_dilated(padded, kernel, (2, 2), "VALID", None, None, numbers, groups)
        np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    norms = [node for _, node in nnx.iter_graph(model) if isinstance(node, BatchNorm)]
    assert len(norms) == 27 and {norm.epsilon for norm in norms} == {1e-3}


def test_a_dropout_rate_of_zero_turns_all_dropout_off():
    def count_keys(**options):
        model = create_model("googlenet", aux_heads=("inception4a", "inception4d"), abstract=True, **options)
        model.train()
        return len(nnx.to_flat_state(nnx.state(model, DropoutKey)))

    assert count_keys() == 3
    assert count_keys(dropout_rate=0.0) == 0


def test_wrong_options_are_refused_in_one_line():
    for options, message in (
        ({"name": "resnet_18"}, "unknown model 'resnet_18'; did you mean 'resnet18'\\?"),
        ({"name": "resnet18", "aux_heads": ("stages2",)}, "resnet18 has no stage 'stages2'; did you mean 'stage2'\\?"),
        ({"name": "inception_v3", "aux_heads": ("Mixed_6e",)}, "did you mean 'mixed_6e'\\?"),
        ({"name": "lenet5", "num_classes": 0}, "num_classes=0 is too small"),
        ({"name": "lenet5", "dropout_rate": 1.0}, "dropout_rate=1.0 is out of range"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            create_model(**options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, size", [("vgg11", 31), ("alexnet", 66), ("lenet5", 15)])
def test_a_map_that_would_be_empty_is_refused(name, size):
    model, channels = create_model(name, abstract=True), REGISTRY[name].channels
    with pytest.raises(ValueError, match="image too small: a .* window does not fit"):
        trace(model, 1, size, channels)
    trace(model, 1, size + 1, channels)
