import re

import numpy as np
import pytest
from flax import nnx
from golden import make_state_dict

from models import REGISTRY, create_model, get_entry, initial_values
from models.torch_names import from_torch, rename_old, to_torch, torch_shapes

# Names in the files that akamaster/pytorch_resnet_cifar10 publishes for ResNet-20, without the prefix `module.`.
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


def test_names_and_shapes_of_networks_without_golden_logits():
    """Checks names of torchvision 0.28.0 and timm 1.0.31 at the first and last layers to which a rule applies."""
    for name, tensors in {
        "vgg19": {"features.34.weight": (512, 512, 3, 3), "classifier.0.weight": (4096, 25088)},
        "vgg19_bn": {"features.49.weight": (512, 512, 3, 3), "features.50.running_var": (512,)},
        "resnet152": {"layer3.35.conv3.weight": (1024, 256, 1, 1), "layer4.0.downsample.1.bias": (2048,)},
        "densenet201": {
            "features.denseblock3.denselayer48.norm1.weight": (1760,),
            "features.transition3.conv.weight": (896, 1792, 1, 1),
            "features.norm5.running_mean": (1920,),
        },
        "squeezenet1_0": {
            "features.5.expand3x3.weight": (128, 32, 3, 3),
            "features.10.squeeze.bias": (64,),
            "features.12.expand1x1.weight": (256, 64, 1, 1),
            "classifier.1.weight": (1000, 512, 1, 1),
        },
    }.items():
        shapes = torch_shapes(get_entry(name), create_model(name, abstract=True))
        assert {tensor: shapes.get(tensor) for tensor in tensors} == tensors


def test_old_names_of_densenet_are_read():
    """Names as in densenet121-a639ec97.pth; torchvision's loader also removes the dot, and only in dense layers."""
    entry, model = get_entry("densenet121"), create_model("densenet121", abstract=True)
    old = {
        "features.norm0.weight": "features.norm0.weight",
        "features.denseblock1.denselayer1.norm.1.weight": "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock1.denselayer1.conv.1.weight": "features.denseblock1.denselayer1.conv1.weight",
        "features.denseblock3.denselayer24.norm.2.running_var": "features.denseblock3.denselayer24.norm2.running_var",
        "features.denseblock4.denselayer16.conv.2.weight": "features.denseblock4.denselayer16.conv2.weight",
        "features.transition1.norm.weight": "features.transition1.norm.weight",
        "features.transition3.conv.weight": "features.transition3.conv.weight",
    }
    assert list(rename_old(entry, old)) == list(old.values()) and old.keys() - torch_shapes(entry, model).keys()
    state_dict = {name: np.zeros(shape, np.float32) for name, shape in torch_shapes(entry, model).items()}
    assert rename_old(entry, state_dict).keys() == state_dict.keys()
    file = {re.sub(r"(r\d+\.\w+)(\d\.)", r"\1.\2", name): array for name, array in state_dict.items()}
    assert len(file.keys() - state_dict.keys()) == 58 * (2 * 4 + 2)
    from_torch(entry, model, rename_old(entry, file))


def test_names_of_inception_resnet_v2_are_timms():
    stem = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a", "conv2d_7b")
    blocks = {  # the convolutions of each branch, one by its branch's name alone, and whether the block is residual
        "mixed_5b": (("branch0", "branch1.0", "branch1.1", "branch2.0", "branch2.1", "branch2.2", "branch3.1"), False),
        **{
            f"repeat.{block}": (("branch0", "branch1.0", "branch1.1", "branch2.0", "branch2.1", "branch2.2"), True)
            for block in range(10)
        },
        "mixed_6a": (("branch0", "branch1.0", "branch1.1", "branch1.2"), False),
        **{f"repeat_1.{block}": (("branch0", "branch1.0", "branch1.1", "branch1.2"), True) for block in range(20)},
        "mixed_7a": (
            ("branch0.0", "branch0.1", "branch1.0", "branch1.1", "branch2.0", "branch2.1", "branch2.2"),
            False,
        ),
        **{f"repeat_2.{block}": (("branch0", "branch1.0", "branch1.1", "branch1.2"), True) for block in range(9)},
        "block8": (("branch0", "branch1.0", "branch1.1", "branch1.2"), True),
    }
    convs = [*stem, *(f"{block}.{conv}" for block, (convs, _) in blocks.items() for conv in convs)]
    leaves = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    plain = [f"{block}.conv2d" for block, (_, residual) in blocks.items() if residual]
    expected = {
        *(f"{conv}.{leaf}" for conv in convs for leaf in leaves),
        *(f"{layer}.{leaf}" for layer in (*plain, "classif") for leaf in ("weight", "bias")),
    }
    shapes = torch_shapes(get_entry("inception_resnet_v2"), create_model("inception_resnet_v2", abstract=True))
    assert shapes.keys() == expected
    assert shapes["repeat_2.3.branch1.1.conv.weight"] == (224, 192, 1, 3)
    assert shapes["block8.conv2d.weight"] == (2080, 448, 1, 1)


@pytest.mark.parametrize(  # one network of each kind of names
    "name",
    {entry.torch_names: name for name, entry in REGISTRY.items() if entry.torch_names and "vgg" not in name}.values(),
)
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
