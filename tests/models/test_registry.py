import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Literal

from models import REGISTRY, DropoutKey, create_model, dropout_keys

# Trainable parameters, without and with auxiliary heads. torchvision 0.28.0's where it has the network; else counted
# from the papers' tables: LeCun 1998, Krizhevsky 2012, Szegedy 2014 and He 2015 (0.27M, 0.46M, 0.66M, 0.85M, 1.7M).
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
    "resnet20": (269_722,),
    "resnet32": (464_154,),
    "resnet44": (658_586,),
    "resnet56": (853_018,),
    "resnet110": (1_727_962,),
    "plain20": (269_722,),
    "plain32": (464_154,),
    "plain44": (658_586,),
    "plain56": (853_018,),
}


def trace(model, batch, size, channels):
    """Returns the jaxpr and the outputs' shapes of (variables, images) -> outputs, nothing being computed."""
    graph, *state = nnx.split(model, nnx.Param, ...)
    variables = tuple(map(nnx.to_pure_dict, state))
    images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.float32)
    return jax.make_jaxpr(lambda variables, images: nnx.merge(graph, *variables)(images), return_shape=True)(
        variables, images
    )


def used_inputs(jaxpr):
    """Returns which inputs the outputs depend on, calls being taken as one."""
    needed = set(jaxpr.outvars)
    for equation in reversed(jaxpr.eqns):
        if needed & set(equation.outvars):
            needed |= {variable for variable in equation.invars if not isinstance(variable, Literal)}
    return [variable in needed for variable in jaxpr.invars]


def count_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))))


@pytest.mark.parametrize("name", REGISTRY)
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
    # At its own size a network with dense layers on a map needs no adaptive pooling, whose windows are concatenated.
    if entry.family in ("lenet", "alexnet", "vgg"):
        assert "concatenate" not in str(jaxpr)
    assert all(used_inputs(jaxpr.jaxpr))


@pytest.mark.parametrize("name", REGISTRY)
def test_other_size_classes_channels_and_type_in_training(name):
    entry = REGISTRY[name]
    options = {"num_classes": 7, "channels": 4 - entry.channels, "aux_heads": entry.aux_heads, "dropout_rate": 0.0}
    model = create_model(name, dtype=jnp.bfloat16, abstract=True, **options)
    model.train()
    jaxpr, outputs = trace(model, 3, entry.image_size + 37, 4 - entry.channels)
    logits, aux_logits = outputs if entry.aux_heads else (outputs, [])
    assert len(aux_logits) == len(entry.aux_heads)
    assert all((each.shape, each.dtype) == ((3, 7), jnp.float32) for each in (logits, *aux_logits))
    params = len(jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    assert all(used_inputs(jaxpr.jaxpr)[:params])
    convolutions = [equation for equation in jaxpr.eqns if equation.primitive.name == "conv_general_dilated"]
    assert convolutions and all(each.outvars[0].aval.dtype == jnp.bfloat16 for each in convolutions)


@pytest.mark.parametrize(
    "name, size",
    [("lenet5", 32), ("alexnet", 67), ("alexnet_owt", 63), ("googlenet", 33), ("resnet18", 32), ("resnet20", 8)],
)
def test_gradients_are_finite_and_reach_every_parameter(name, size):
    entry = REGISTRY[name]
    model = create_model(name, num_classes=10, aux_heads=entry.aux_heads)
    model.train()
    graph, params, batch_stats, _ = nnx.split(model, nnx.Param, nnx.BatchStat, DropoutKey)
    params, batch_stats = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
    images = np.random.default_rng(0).standard_normal((4, size, size, entry.channels), np.float32)

    def loss(params):
        network = nnx.merge(graph, params, batch_stats, dropout_keys(model, jax.random.key(0)))
        outputs = network(images)
        return sum(jnp.square(logits - 1).sum() for logits in jax.tree.leaves(outputs)), nnx.to_pure_dict(
            nnx.state(network, nnx.BatchStat)
        )

    # Quickly compiled code, as nothing is measured here.
    derivative = jax.jit(jax.grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    gradients, new_stats = derivative(params)
    for path, gradient in nnx.traversals.flatten_mapping(gradients).items():
        assert np.isfinite(gradient).all() and np.any(gradient), path
    assert all(jax.tree.leaves(jax.tree.map(lambda old, new: np.any(old != new), batch_stats, new_stats)))


def test_registry_describes_itself():
    assert PARAMETERS.keys() == REGISTRY.keys()
    assert all(name == entry.name and entry.paper for name, entry in REGISTRY.items())
    assert (REGISTRY["alexnet"].image_size, REGISTRY["alexnet_owt"].image_size) == (227, 224)
    assert REGISTRY["googlenet"].dropout_rate == 0.4 and REGISTRY["vgg16"].dropout_rate == 0.5


def test_one_head_alone():
    model = create_model("googlenet", aux_heads=("inception4d",), num_classes=5, abstract=True)
    _, (logits, aux_logits) = trace(model, 1, 224, 3)
    assert logits.shape == (1, 5) and [each.shape for each in aux_logits] == [(1, 5)]


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
        ({"name": "resnet18", "aux_heads": ("layer2",)}, "resnet18 has no auxiliary head 'layer2'"),
        ({"name": "googlenet", "aux_heads": ("inception4b",)}, "choose of inception4a, inception4d"),
        ({"name": "lenet5", "num_classes": 0}, "num_classes=0 is too small"),
        ({"name": "lenet5", "dropout_rate": 1.0}, "dropout_rate=1.0 is no share"),
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
