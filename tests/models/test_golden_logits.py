"""The logits equal those of torchvision's and timm's networks in float64, which tests more than shapes and counts."""

import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import make_state_dict

from models import create_model, get_entry
from models.torch_names import from_torch, torch_shapes

LOGITS = pathlib.Path(__file__).parents[1] / "golden" / "logits"
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name, torch_name",
    [
        ("alexnet_owt", "alexnet"),
        ("googlenet_bn_3x3", "googlenet"),
        ("resnet18", "resnet18"),
        ("resnet18_blur", "resnet18_blur"),
        ("resnet50", "resnet50"),
        pytest.param("vgg11", "vgg11", marks=slow),
        pytest.param("vgg16_bn", "vgg16_bn", marks=slow),
        ("squeezenet1_1", "squeezenet1_1"),
        ("mobilenet_v1", "mobilenet_v1"),
        ("densenet121", "densenet121"),
        ("inception_v3", "inception_v3"),
        pytest.param("inception_v4", "inception_v4", marks=slow),
        pytest.param("xception", "xception", marks=slow),
        ("vit_b_16", "vit_b_16"),
        ("vit_small_patch16_224", "vit_small_patch16_224"),
        ("convnext_tiny", "convnext_tiny"),
    ],
)
def test_logits_are_pytorchs(name, torch_name):
    entry = get_entry(name)
    size = entry.image_size
    expected = np.load(LOGITS / f"{name}.npz")
    images = np.random.RandomState(zlib.crc32(torch_name.encode())).standard_normal((2, 3, size, size))
    with jax.enable_x64(True):
        model = create_model(name, aux_heads=entry.aux_heads, dtype=jnp.float64, abstract=True)
        values = from_torch(entry, model, make_state_dict(torch_shapes(entry, model)))
        graph = nnx.graphdef(model)
        outputs = jax.jit(lambda values, images: nnx.merge(graph, values)(images))(values, images.transpose(0, 2, 3, 1))
    logits, aux_logits = outputs if entry.aux_heads else (outputs, [])
    assert len(expected.files) == 1 + len(aux_logits)
    for actual, wanted in zip((logits, *aux_logits), expected.values(), strict=True):
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())
