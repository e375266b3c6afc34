import re

import numpy as np
import pytest
from flax import nnx
from golden import make_state_dict

from models import REGISTRY, create_model, get_entry, initial_values
from models.torch_names import from_torch, to_torch, torch_shapes

# Of the files that akamaster/pytorch_resnet_cifar10 publishes for ResNet-20, without the prefix `module.`.
CIFAR_BLOCK = [
    *("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"),
    *("conv2.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"),
]
CIFAR_NAMES = [
    *CIFAR_BLOCK[:5],
    *(f"layer{stage}.{block}.{name}" for stage in (1, 2, 3) for block in range(3) for name in CIFAR_BLOCK),
    *("linear.weight", "linear.bias"),
]


@pytest.fixture(scope="module")
def resnet20():
    entry = get_entry("resnet20")
    model = create_model("resnet20", abstract=True)
    return entry, model, make_state_dict(torch_shapes(entry, model))


def test_cifar_names_are_those_of_the_published_weights(resnet20):
    assert sorted(resnet20[2]) == sorted(CIFAR_NAMES)


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.torch_names and "vgg" not in name])
def test_weights_survive_the_way_to_torch_and_back(name):
    entry, model = (
        get_entry(name),
        create_model(name, num_classes=2, aux_heads=get_entry(name).aux_heads, abstract=True),
    )
    state_dict = {
        name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        for name, shape in torch_shapes(entry, model).items()
    }
    back = to_torch(entry, model, from_torch(entry, model, state_dict))
    assert back.keys() == state_dict.keys()
    assert all(np.array_equal(back[name], state_dict[name]) for name in state_dict)


def test_dense_layer_on_a_map_reads_torchs_flattened_order():
    entry, model = get_entry("alexnet_owt"), create_model("alexnet_owt", abstract=True)
    state_dict = {name: np.zeros(shape, np.float32) for name, shape in torch_shapes(entry, model).items()}
    state_dict["classifier.1.weight"][7, 200 * 36 + 4 * 6 + 5] = 1  # channel 200, row 4, column 5
    assert from_torch(entry, model, state_dict)["dense6"]["kernel"][4, 5, 200, 7] == 1


def test_count_of_batches_and_unwanted_heads_are_left_out(resnet20):
    entry, model, state_dict = resnet20
    from_torch(entry, model, state_dict | {"bn1.num_batches_tracked": np.array(3)})
    entry = get_entry("googlenet_bn_3x3")
    full = create_model(entry.name, aux_heads=entry.aux_heads, abstract=True)
    state_dict = {name: np.zeros(shape, np.float32) for name, shape in torch_shapes(entry, full).items()}
    model = create_model(entry.name, abstract=True)
    values = from_torch(entry, model, state_dict)
    assert (
        nnx.traversals.flatten_mapping(values).keys() == nnx.traversals.flatten_mapping(initial_values(model, 0)).keys()
    )


def test_wrong_weights_are_refused(resnet20):
    entry, model, state_dict = resnet20
    missing = {name: array for name, array in state_dict.items() if name != "linear.bias"}
    with pytest.raises(ValueError, match="lack 'linear.bias'"):
        from_torch(entry, model, missing)
    with pytest.raises(ValueError, match="hold 'layer9.weight'"):
        from_torch(entry, model, state_dict | {"layer9.weight": np.zeros(3)})
    with pytest.raises(ValueError, match=re.escape("'linear.bias' has shape (7,), resnet20 needs (10,)")):
        from_torch(entry, model, state_dict | {"linear.bias": np.zeros(7)})
    with pytest.raises(ValueError, match="lenet5 has no counterpart"):
        torch_shapes(get_entry("lenet5"), create_model("lenet5", abstract=True))
