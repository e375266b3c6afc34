"""Transformers on images of other sizes, weights in timm's names, and what attention needs of analysis and of JAX."""

import pathlib
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import make_state_dict

from models import create_model, get_entry, get_stages, gpu_operations, operations
from models.torch_names import from_torch, rename_old, torch_shapes
from models.vit import SinCosEmbedding, resize_positions

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "positions.npz")


@pytest.mark.parametrize("grid", [(7, 9), (3, 2), (5, 5), (12, 4), (1, 1)])
def test_resized_positions_are_torchs(grid):
    position = np.random.RandomState(0).standard_normal((1, 26, 3))
    expected = GOLDEN[f"{grid[0]}x{grid[1]}"]
    np.testing.assert_allclose(resize_positions(position, grid), expected, rtol=0, atol=1e-12)
    traced = jax.jit(resize_positions, static_argnums=1)(position.astype(np.float32), grid)
    np.testing.assert_allclose(traced, expected, rtol=0, atol=2e-6)


def logits_of(name, images, image_size=None):
    """Returns float64 logits with golden weights, which have the network's own image size."""
    entry = get_entry(name)
    state_dict = make_state_dict(torch_shapes(entry, create_model(name, abstract=True)))
    with jax.enable_x64(True):
        model = create_model(name, image_size=image_size, dtype=jnp.float64, abstract=True)
        values, graph = from_torch(entry, model, state_dict), nnx.graphdef(model)
        return np.asarray(jax.jit(lambda values, images: nnx.merge(graph, values)(images))(values, images)), values


def test_logits_at_another_size_are_timms():
    """timm's dynamic_img_size; the images are not square, so that rows and columns cannot be mixed up."""
    name = "vit_tiny_patch16_224"
    images = np.random.RandomState(zlib.crc32(name.encode())).standard_normal((2, 3, 64, 96)).transpose(0, 2, 3, 1)
    logits, _ = logits_of(name, images)
    np.testing.assert_allclose(logits, GOLDEN["logits"], rtol=0, atol=1e-10 * np.abs(GOLDEN["logits"]).max())
    # Weights that are loaded into a network for images of 64 pixels are resized once, and on these images not again.
    square = images[:, :, :64]
    smaller, values = logits_of(name, square, image_size=64)
    assert values["embedding"]["position"].shape == (1, 1 + 4 * 4, 192)
    np.testing.assert_allclose(smaller, logits_of(name, square)[0], rtol=0, atol=1e-10 * np.abs(smaller).max())


def test_the_image_size_decides_the_number_of_positions_and_nothing_else():
    def shapes(name, **options):
        model = create_model(name, abstract=True, **options)
        return {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}

    own, larger = shapes("vit_b_16"), shapes("vit_b_16", image_size=384)
    assert {path for path in own if own[path] != larger[path]} == {("embedding", "position")}
    assert sum(map(np.prod, larger.values())) == 86_859_496  # torchvision's vit_b_16 at 384 pixels
    for name in ("vit_s16", "convnext_tiny", "resnet18"):
        assert shapes(name) == shapes(name, image_size=384)


def test_weights_with_timms_names_fit_torchvisions_networks():
    """The names of timm's small network, which golden logits check, and first and last names of its ConvNeXt."""
    entry = get_entry("vit_small_patch16_224")
    names = dict.fromkeys(torch_shapes(entry, create_model(entry.name, abstract=True)))
    entry = get_entry("vit_b_16")
    assert rename_old(entry, names).keys() == torch_shapes(entry, create_model("vit_b_16", abstract=True)).keys()
    published = "encoder.layers.encoder_layer_11.mlp.linear_2.bias"  # in vit_b_16-c867db91.pth
    assert list(rename_old(entry, {published: 0})) == ["encoder.layers.encoder_layer_11.mlp.3.bias"]

    entry = get_entry("convnext_tiny")
    model = create_model("convnext_tiny", abstract=True)
    shapes = torch_shapes(entry, model)
    timm = {
        "stem.0.weight": "features.0.0.weight",
        "stem.1.bias": "features.0.1.bias",
        "stages.0.blocks.0.gamma": "features.1.0.layer_scale",
        "stages.0.blocks.0.conv_dw.weight": "features.1.0.block.0.weight",
        "stages.1.downsample.0.weight": "features.2.0.weight",
        "stages.1.downsample.1.weight": "features.2.1.weight",
        "stages.3.blocks.2.norm.weight": "features.7.2.block.2.weight",
        "stages.3.blocks.2.mlp.fc1.weight": "features.7.2.block.3.weight",
        "stages.3.blocks.2.mlp.fc2.bias": "features.7.2.block.5.bias",
        "head.norm.weight": "classifier.0.weight",
        "head.fc.weight": "classifier.2.weight",
    }
    assert list(rename_old(entry, timm)) == list(timm.values()) and shapes.keys() >= set(timm.values())
    state_dict = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    state_dict["features.1.0.layer_scale"] = np.arange(96, dtype=np.float32)  # timm's has one axis
    factor = from_torch(entry, model, state_dict)["stage1"][0]["layer_scale"]["factor"]
    np.testing.assert_array_equal(factor, np.arange(96))


def test_fixed_positions_are_those_of_big_vision():
    """The formula of posemb_sincos_2d, written out for one patch."""
    table = SinCosEmbedding()(jnp.zeros((1, 3, 4, 16)))
    frequencies = [10_000 ** -(step / 3) for step in range(4)]
    column, row = 2, 1
    expected = [function(at * f) for at in (column, row) for function in (np.sin, np.cos) for f in frequencies]
    np.testing.assert_allclose(table[0, row * 4 + column], expected, rtol=1e-5)


def test_stages_are_maps_of_patches_and_the_class_token_is_the_last():
    stages = get_stages("vit_tiny_patch16_224")
    assert list(stages) == [*(f"block{number}" for number in range(1, 12)), "class_token"]
    assert list(get_stages("vit_s16"))[-1] == "block12"
    model = create_model("vit_tiny_patch16_224", num_classes=3)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 64, 3)), jnp.float32)
    maps = dict(model.stages(images))
    assert maps["block3"].shape == (2, 2, 4, 192) and maps["class_token"].shape == (2, 1, 1, 192)


def test_attention_is_the_formula_and_its_other_form_is_for_gpus_alone():
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, 2, 5, 3, 4))
    with jax.enable_x64(True):
        found = operations.attend(*map(jnp.asarray, (query, key, value)))
    scores = np.einsum("nihd,njhd->nhij", query, key) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("nhij,njhd->nihd", weights, value), rtol=1e-12)
    assert gpu_operations.find_attention(jnp.dtype(jnp.bfloat16)) is None


@pytest.mark.parametrize("capability", ["7.5", "gfx942"])
def test_older_gpus_and_those_of_others_take_the_plain_attention(capability, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    assert gpu_operations.find_attention(jnp.dtype(jnp.bfloat16)) is None


@pytest.mark.parametrize("length", [4, 5])
def test_a_gpu_trains_sequences_of_an_odd_length_too(length, monkeypatch):
    """JAX traces cuDNN's attention on a GPU only; it refuses gradients of odd lengths, such as ViT-B/16's 197."""
    plain, lengths = jax.nn.dot_product_attention, []

    def cudnn(query, key, value, *, implementation, **options):
        if implementation == "cudnn":
            lengths.append(query.shape[1])
        return plain(query, key, value, implementation="xla", **options)

    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability="9.0")])
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    attend = gpu_operations.find_attention(jnp.dtype(jnp.bfloat16))
    random = np.random.default_rng(0)
    query, key, value, weight = jnp.asarray(random.normal(size=(4, 2, length, 3, 8)), jnp.float32)
    np.testing.assert_array_equal(attend(query, key, value), plain(query, key, value, implementation="xla"))
    assert lengths == [length]  # inference needs no more tokens

    def gradients(attend):
        return jax.grad(lambda *arrays: (weight * attend(*arrays)).sum(), argnums=(0, 1, 2))(query, key, value)

    for ours, theirs in zip(gradients(attend), gradients(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert lengths[1:] and all(length % 2 == 0 for length in lengths[1:])
    narrow = jnp.zeros((2, length, 3, 8), jnp.bfloat16)
    jax.make_jaxpr(jax.grad(lambda query: operations.attend(query, narrow, narrow).sum()))(narrow)  # as ViT does
