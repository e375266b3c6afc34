"""Frozen parameters cost nothing in a step and keep their values; learning rates fall from the head to the stem."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx.traversals import flatten_mapping, unflatten_mapping
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

from analysis.collectives import find_collectives
from configs import base
from models import REGISTRY, create_model
from training.configuration import resolve_network
from training.fine_tuning import class_axes, few_images_note, frozen_paths, rate_factors
from training.optimizer import make_optimizer
from training.program import make_program
from training.state import make_mesh, make_model
from training.transfer import Source, initialize_from


def make_config(**options):
    """ResNet-20 on images of 16 pixels, ten classes."""
    config = base.get_config()
    small = {"model": "resnet20", "image_size": 16, "num_classes": 10, "batch_size": 8, "num_steps": 4}
    config.update(small | options)
    return resolve_network(config)


def parts(paths):
    return {path[0] for path in paths}


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        (("backbone",), {"head"}),
        (("stem",), {"stage1", "stage2", "stage3", "head"}),
        (("stem", "stage[12]"), {"stage3", "head"}),
        (("conv1", "norm1", "stage1", "stage2.*", "head.*"), {"stage3"}),
    ],
)
def test_names_of_parts(freeze, trained):
    config = make_config(freeze=freeze)
    frozen, params = frozen_paths(config), flatten_mapping(make_program(config, make_mesh(1), 1).target["params"])
    assert parts(set(params) - frozen) == trained and parts(frozen) == {path[0] for path in params} - trained


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("stage9",), "resnet20 has no part 'stage9'; did you mean stage"),
        (("zzzz",), "it has backbone, stem, stage1.0"),
        (("*",), "leaves nothing to train"),
    ],
)
def test_names_that_fit_nothing_are_refused(freeze, message):
    with pytest.raises(ValueError, match=message):
        make_config(freeze=freeze)


@pytest.mark.parametrize(
    "name", sorted(set(REGISTRY) & {"lenet5", "alexnet", "vgg11", "nin", "squeezenet1_1", "resnet18_v2"})
)
def test_a_linear_probe_of_any_family_trains_the_layers_of_the_classes(name):
    config = base.get_config()
    config.update({"model": name, "num_classes": 7, "freeze": ("backbone",)})
    frozen = frozen_paths(config)
    params = flatten_mapping(nnx.to_pure_dict(nnx.state(create_model(name, num_classes=7, abstract=True), nnx.Param)))
    trained = {path: params[path].shape for path in set(params) - frozen}
    assert all(7 in shape for shape in trained.values()) and 1 <= len(trained) <= 2


def test_rates_by_depth_are_those_of_timm():
    """timm 1.0.31: param_groups_layer_decay(create_model("resnet18"), layer_decay=0.75) has these scales."""
    config = make_config(model="resnet18", image_size=32, layer_decay=0.75, head_rate_factor=10.0)
    factors = rate_factors(config)
    expected = {"conv1": 0.75**9, "norm1": 0.75**9, "stage1.0": 0.75**8, "stage1.1": 0.75**7, "stage2.0": 0.75**6}
    expected |= {"stage2.1": 0.75**5, "stage3.0": 0.75**4, "stage3.1": 0.75**3, "stage4.0": 0.75**2, "stage4.1": 0.75}
    for path, factor in factors.items():
        name = ".".join(map(str, path[:2])) if path[0].startswith("stage") else path[0]
        assert factor == pytest.approx((expected | {"head": 10.0})[name], rel=1e-9), path
    assert rate_factors(make_config()) == {}


def test_a_factor_is_a_factor_of_the_learning_rate():
    """Two steps of momentum and weight decay, for each array at its own learning rate."""
    options = {"layer_decay": 0.5, "head_rate_factor": 3.0, "weight_decay": 0.1, "learning_rate": 0.2}
    config = make_config(**options)
    factors = rate_factors(config)
    optimizer = make_optimizer(config, lambda _: config.learning_rate)
    shapes = make_program(config, make_mesh(1), 1).target["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(lambda leaf: 0.5 * leaf, params), state, params)
        params = optax.apply_updates(params, updates)
    for path, value in flatten_mapping(params).items():
        rate, expected, velocity = 0.2 * factors[path], 1.0, 0.0
        for _ in range(2):
            velocity = 0.9 * velocity + 0.6 * expected
            expected -= rate * velocity
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def weight_gradients(traced):
    """Returns how many convolutions the step has, after what no result needs is left out."""
    jaxpr, _ = partial_eval.dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.jaxpr.outvars))

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += equation.primitive.name == "conv_general_dilated"
            total += sum(map(count, jaxprs_in_params(equation.params)))
        return total

    return count(jaxpr)


@pytest.mark.parametrize(
    ("freeze", "convolutions"),
    [
        # ResNet-20 has 19 convolutions. Each has a forward pass; those trained have the gradient of the weights, and
        # of the maps too, but for the first one trained, behind which nothing needs a gradient.
        ((), 19 + 19 + 18),
        (("stem",), 19 + 18 + 17),
        (("stem", "stage1"), 19 + 12 + 11),
        (("stage2",), 19 + 13 + 18),  # the gradient passes through the frozen stage to those before it
        (("backbone",), 19),
    ],
)
def test_frozen_parameters_have_no_gradient_no_optimizer_state_and_no_traffic(freeze, convolutions):
    config = make_config(freeze=freeze, bn_virtual_batch_size=1, batch_size=8)
    program = make_program(config, make_mesh(8), 1)
    frozen, target = frozen_paths(config), program.target
    trained = {path: leaf for path, leaf in flatten_mapping(target["params"]).items() if path not in frozen}
    sizes = sum(leaf.size for leaf in trained.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(target["opt_state"])) == sizes + 1  # the momentum, the step count
    assert weight_gradients(program.trace()) == convolutions
    if freeze == ("backbone",):  # tests/analysis/test_collectives.py has the same for a run without frozen parts
        collectives = find_collectives(program.trace().lower().compile().as_text())
        assert sum(each.bytes for each in collectives) == 4 * (sizes + 3)  # the head's gradient, loss, top-1, top-5


def test_frozen_parts_keep_their_weights_and_statistics(make_batches):
    options = {"ema_decay": 0.9, "accumulation_steps": 2, "optimizer": "rmsprop", "log_gradient_norms": True}
    config = make_config(freeze=("stem", "stage1"), **options)
    program = make_program(config, make_mesh(1), 1)
    state = program.initial_state()
    before = jax.device_get(state)
    for batch in make_batches(2, batch_size=8, image_size=16, channels=3):
        state, sums = program.train_step(state, program.zero_sums(), batch | program.constants)
    after = jax.device_get(state)
    assert {name for name in sums if name.startswith("gradient_norm/")} == {
        f"gradient_norm/{part}" for part in ("stage2", "stage3", "head")
    }
    for kind in ("params", "batch_stats", *({"ema", "ema_batch_stats"} & set(after))):
        old = flatten_mapping(before[kind])
        for path, value in flatten_mapping(after[kind]).items():
            is_frozen = path[0] in ("conv1", "norm1", "stage1")
            assert np.array_equal(value, old[path]) == is_frozen or kind == "ema_batch_stats", (kind, path)


def test_the_gradients_of_the_others_are_the_same(make_batches):
    """Without batch normalisation nothing else changes: LeNet-5's trained arrays move as if nothing were frozen."""
    moved = {}
    for freeze in ((), ("conv1",)):
        config = make_config(model="lenet5", image_size=32, freeze=freeze)
        program = make_program(config, make_mesh(1), 1)
        state, (batch,) = program.initial_state(), make_batches(1, batch_size=8)
        state, _ = program.train_step(state, program.zero_sums(), batch | program.constants)
        moved[freeze] = flatten_mapping(jax.device_get(state["params"]))
    for path, value in moved[("conv1",)].items():
        assert np.allclose(value, moved[()][path], rtol=1e-6, atol=1e-7) == (path[0] != "conv1"), path


def test_new_arrays_are_not_frozen():
    config = make_config(freeze=("head", "stage1"))
    state = make_program(config, make_mesh(1), 1).initial_state()
    flat = flatten_mapping(state["params"]) | flatten_mapping(state["batch_stats"])
    values = unflatten_mapping(jax.device_get(flat))
    classes = tuple("abcdefghij")
    with pytest.raises(ValueError, match="freeze=head,stage1 would keep random values, as elsewhere lacks head.bias"):
        initialize_from(state, Source("elsewhere", values, classes), config, tuple("abcdefghiz"))


def test_a_frozen_batch_normalisation_uses_its_running_statistics():
    config = make_config(freeze=("stem", "stage1.0.norm1"))
    model = make_model(config, training=True)
    assert model.norm1.use_running_average and model.stage1[0].norm1.use_running_average
    assert not model.stage1[0].norm2.use_running_average
    assert set(class_axes(config).values()) == {0, 1}


def test_a_small_folder_with_random_weights_points_to_the_recipe():
    config = make_config(dataset="image_folder:/data/flowers")
    assert "49 images a class are few" in few_images_note(config, 490, 10)
    assert "configs/finetune.py" in few_images_note(config, 490, 10)
    assert few_images_note(config, 500, 10) == ""
    assert few_images_note(make_config(), 10, 10) == ""
    config.init_from = "torchvision/resnet50"
    assert few_images_note(config, 10, 10) == ""
