"""The summaries of all networks have published counts; those of AlexNet and VGG-16 match lecture notes' tables."""

import pathlib
import re

import jax
import pytest

from analysis.costs import Layer
from analysis.summary import Summary, read_reference, stored_figures
from analysis.summary_report import as_row, count_figures, describe_layers, find_column, network_rows, sort_rows
from configs import base
from models import REGISTRY

ROOT = pathlib.Path(__file__).parents[2]
REFERENCE = read_reference()


def test_every_network_has_its_published_figures():
    assert REFERENCE.keys() == REGISTRY.keys()


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_the_accuracies_in_the_headers_of_recipes_are_those_of_the_one_file(recipe):
    published = re.search(r"^Published: ([\d.]+) % top-1(?:, ([\d.]+) % top-5)?", recipe.read_text(), re.MULTILINE)
    model = recipe.stem.removeprefix("cifar10_")
    model = {"nin": "nin_cifar", "googlenet_bn": "googlenet_bn_3x3"}.get(model, model)
    if not published or model not in REFERENCE:  # tests/test_recipes.py has the recipes of today
        return
    assert (REFERENCE[model]["top1"], REFERENCE[model]["top5"]) == (published[1], published[2] or "")


def test_every_network_of_ours_has_published_or_derived_counts():
    assert set(REFERENCE) == set(REGISTRY)


@pytest.mark.parametrize("name", REGISTRY)
def test_layers_add_up_to_the_published_counts(summary_of, name):
    summary = summary_of(name)
    assert sum(layer.parameters for layer in summary.layers) == summary.parameters
    assert len({layer.name for layer in summary.layers}) == len(summary.layers)
    published = REFERENCE.get(name)
    if not published:  # a user's own network
        return
    assert summary.image_size == int(published["image_size"])
    assert summary.parameters == int(published["parameters"])
    assert str(summary.parameters_with_aux or "") == published["parameters_with_aux"]
    if published["gmacs"]:
        decimals = len(published["gmacs"].partition(".")[2])
        assert f"{summary.macs / 1e9:.{decimals}f}" == published["gmacs"]


@pytest.mark.parametrize("name", stored_figures())
def test_the_stored_figures_are_those_counted_anew(summary_of, name):
    """If a network was changed on purpose, `python summarize.py --store` stores its new figures."""
    assert stored_figures()[name] == count_figures(summary_of(name))


def test_every_network_of_ours_has_stored_figures_in_the_order_of_the_registry():
    assert list(stored_figures()) == list(REGISTRY)


def test_activations_and_dropout_have_rows_where_the_paper_has_them(summary_of):
    kinds = [layer.kind for layer in summary_of("alexnet").all_layers]  # Krizhevsky 2012, sections 3.1 to 4.2
    conv, norm, pool = ["grouped conv", "relu"], ["local response norm"], ["max pool"]
    assert kinds == (
        ["conv", "relu", *norm, *pool, *conv, *norm, *pool, "conv", "relu", *conv, *conv, *pool]
        + ["dense", "relu", "dropout"] * 2
        + ["dense"]
    )
    assert all(not (layer.parameters or layer.macs) for layer in summary_of("vgg16").all_layers if layer.kind == "relu")
    kinds = {layer.kind for layer in summary_of("mobilenet_v1").all_layers}
    assert "relu6" in kinds and "relu" not in kinds
    assert [layer.kind for layer in summary_of("lenet5").all_layers].count("tanh") == 4


@pytest.mark.parametrize("name", ["vgg16", "googlenet", "inception_resnet_v2", "densenet201"])
def test_the_table_of_layers_fits_100_columns(summary_of, name):
    summary = summary_of(name)
    rows = [as_row(layer) for layer in summary.all_layers]
    assert max(map(len, describe_layers(summary, rows).splitlines())) <= 100
    wide = describe_layers(summary, rows, wide=True)
    assert all(f" {layer.name} " in wide for layer in summary.all_layers) and "activation_bytes" in wide


def test_the_table_with_the_backward_pass_fits_too(summary_of):
    summary = summary_of("googlenet", backward=True, batch_size=4)
    rows = [as_row(layer) for layer in summary.all_layers]
    assert len({tuple(row) for row in rows}) == 1  # all rows have the same columns
    assert max(map(len, describe_layers(summary, rows).splitlines())) <= 100


def test_attention_has_rows_for_its_products_and_its_field_is_global(summary_of):
    summary = summary_of("vit_small_patch16_224")
    products = [layer for layer in summary.layers if layer.kind == "product"]
    assert [layer.name for layer in products[:2]] == ["block1/attention/product1", "block1/attention/product2"]
    assert [layer.macs for layer in products] == [197 * 197 * 384] * 24  # tokens x tokens x features
    assert [layer.kind for layer in summary.all_layers].count("gelu") == 12
    assert [layer.receptive_field for layer in summary.layers] == [16, *[None] * (len(summary.layers) - 1)]
    text = describe_layers(summary, [as_row(layer) for layer in summary.all_layers])
    assert text.count("| global |") == len(summary.all_layers) - 1 and max(map(len, text.splitlines())) <= 100
    assert "receptive field of the last map: global" in text
    backward = summary_of("vit_small_patch16_224", backward=True)
    assert [layer.backward_macs for layer in backward.layers if layer.kind == "product"] == [2 * 197 * 197 * 384] * 24
    assert sum(layer.backward_macs for layer in backward.layers) == backward.backward_macs


def test_accuracies_are_ranked_only_within_a_protocol():
    rows = sort_rows(network_rows(base.get_config(), REGISTRY, backward=False, stored=True), "top1")
    protocols = [row["protocol"] for row in rows]
    assert list(dict.fromkeys(protocols)) == ["ImageNet", "CIFAR-10", "ImageNet, 10 crops", None]
    assert protocols == sorted(protocols, key=list(dict.fromkeys(protocols)).index)
    for protocol in set(protocols) - {None}:
        accuracies = [row["top1"] for row in rows if row["protocol"] == protocol]
        assert accuracies == sorted(accuracies, reverse=True)
    assert {row["model"] for row in rows if row["protocol"] == "ImageNet, 10 crops"} == {
        "zfnet",
        "zfnet_wide",
        "plain18",
        "plain34",
    }


def test_a_wrong_column_is_refused_before_anything_is_counted():
    with pytest.raises(ValueError, match="--sort=mac is no column; did you mean macs?"):
        find_column("mac", Layer, backward=False)
    with pytest.raises(ValueError, match="--sort=kernel is no column; choose model"):
        find_column("kernel", Summary, backward=False)
    assert find_column("GMACs", Summary, backward=False) == "macs"
    with pytest.raises(ValueError, match="no column"):
        find_column("backward_macs", Summary, backward=False)


def test_vgg16(summary_of):
    # Per layer: weights without biases, and activations of one image in thousands (cs231n's table).
    summary = summary_of("vgg16")
    weights = [layer.macs // (layer.output_shape[0] * layer.output_shape[1]) for layer in summary.layers[:18]]
    assert [count for count in weights if count] == (
        [1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648] + [2_359_296] * 5
    )
    assert [layer.macs for layer in summary.layers[18:]] == [102_760_448, 16_777_216, 4_096_000]
    biases = [layer.output_shape[-1] for layer in summary.layers]
    weights += [layer.macs for layer in summary.layers[18:]]
    assert [layer.parameters for layer in summary.layers] == [
        count + bias if count else 0 for count, bias in zip(weights, biases, strict=True)
    ]
    thousands = [layer.activation_bytes / 4 / 1000 for layer in summary.layers[:18]]
    expected = [3200, 3200, 800, 1600, 1600, 400, 800, 800, 800, 200, 400, 400, 400, 100, 100, 100, 100, 25]
    assert thousands == pytest.approx(expected, rel=0.01)
    assert summary.layers[0].output_shape == (224, 224, 64) and summary.layers[17].output_shape == (7, 7, 512)


def test_alexnet(summary_of):
    # Krizhevsky 2012 with its two groups joined, as lecture notes draw it.
    layers = [layer for layer in summary_of("alexnet_ungrouped").layers if layer.kind != "local response norm"]
    assert [layer.output_shape for layer in layers] == [
        (55, 55, 96),
        (27, 27, 96),
        (27, 27, 256),
        (13, 13, 256),
        (13, 13, 384),
        (13, 13, 384),
        (13, 13, 256),
        (6, 6, 256),
        (4096,),
        (4096,),
        (1000,),
    ]
    assert [layer.parameters for layer in layers[:3]] == [34_944, 0, 614_656]
    assert (layers[0].kernel, layers[0].stride) == ((11, 11), (4, 4))
    assert (layers[1].kind, layers[1].kernel, layers[1].stride) == ("max pool", (3, 3), (2, 2))


@pytest.mark.parametrize(
    "name, mebibytes",
    # Albanie's convnet-burden, one image, float32. We count the output of every convolution, dense layer,
    # normalisation, pooling, sum and concatenation; ReLU works in place, and the image itself is no activation.
    [
        ("alexnet_no_lrn", 3),
        ("squeezenet1_0", 30),
        ("googlenet", 26),
        ("vgg16", 58),
        ("vgg19", 63),
        ("resnet18", 23),
        ("resnet34", 35),
        ("resnet50_v1", 103),
        ("resnet101_v1", 155),
        ("resnet152_v1", 219),
        ("inception_v3", 89),
        ("densenet121", 126),
        ("densenet169", 152),
        ("densenet201", 196),
        ("mobilenet_v1", 38),
    ],
)
def test_activation_memory(summary_of, name, mebibytes):
    assert summary_of(name).activation_bytes / 2**20 == pytest.approx(mebibytes, abs=1.1)


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "resnet18", "mobilenet_v1"])
def test_the_backward_pass_costs_twice_the_forward_pass_but_for_the_images_gradient(summary_of, name):
    summary = summary_of(name, backward=True, batch_size=4)
    first = next(layer for layer in summary.layers if layer.macs)
    assert (first.backward_macs, first.macs) == (first.macs, first.macs)
    assert all(layer.backward_macs == 2 * layer.macs for layer in summary.layers if layer is not first)
    assert summary.backward_macs == 2 * summary.macs - first.macs


def test_auxiliary_heads_cost_only_backward(summary_of):
    plain = summary_of("googlenet", backward=True, batch_size=4)
    headed = summary_of("googlenet", backward=True, batch_size=4, aux_weight=(0.3,))
    assert (headed.macs, headed.parameters) == (plain.macs, plain.parameters)
    # Szegedy 2014, section 5: 4x4 maps of 512 and 528, a 1x1 convolution of 128, a dense layer of 1024, the classes.
    heads = sum(16 * features * 128 + 16 * 128 * 1024 + 1024 * 1000 for features in (512, 528))
    assert headed.backward_macs - plain.backward_macs == 2 * heads


def test_the_backward_pass_of_a_recipe_that_mixes_and_cuts_its_batches(summary_of):
    """One image has no neighbour and no half, but its costs are those of an image in any batch."""
    options = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "accumulation_steps": 2, "bn_virtual_batch_size": 32}
    mixed = summary_of("resnet18", backward=True, **options)
    assert mixed.backward_macs == summary_of("resnet18", backward=True).backward_macs > 0


def test_the_size_that_is_given_replaces_that_of_published_weights(summary_of):
    weights = {"init_from": "timm/resnet18.a1_in1k"}
    assert (summary_of("resnet18", **weights).image_size, summary_of("resnet18", **weights).channels) == (224, 3)
    assert summary_of("resnet18", image_size=160, **weights).image_size == 160


def test_options_change_what_they_should(summary_of):
    plain = summary_of("resnet18")
    batch = summary_of("resnet18", batch_size=8)
    assert (batch.activation_bytes, batch.macs) == (8 * plain.activation_bytes, plain.macs)
    assert [layer.output_shape for layer in batch.layers] == [layer.output_shape for layer in plain.layers]
    ten = summary_of("resnet18", num_classes=10)
    assert plain.parameters - ten.parameters == 990 * 513 and plain.macs - ten.macs == 990 * 512
    small = summary_of("resnet18", image_size=112)
    assert 4 * (small.macs - 512_000) == pytest.approx(plain.macs - 512_000, rel=0.2)
    half = summary_of("resnet18", dtype="bfloat16").layers
    double = [
        layer
        for layer, other in zip(plain.layers, half, strict=True)
        if other.activation_bytes * 2 == layer.activation_bytes
    ]
    assert {layer.name for layer in plain.layers} - {layer.name for layer in double} <= {"global_average_pool", "head"}


def test_nothing_is_allocated(summary_of):
    before = sum(array.nbytes for array in jax.live_arrays())
    summary_of("vgg19", backward=True, batch_size=256)  # 1.1 GB of parameters, momentum and gradients, 31 GB of maps
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1e5


def test_wrong_options_are_refused(summary_of):
    with pytest.raises(ValueError, match="image_size=8 does not fit vgg16 .* use at least 32"):
        summary_of("vgg16", image_size=8)
    with pytest.raises(ValueError, match="batch_size=0 is out of range"):
        summary_of("vgg16", batch_size=0)


def test_the_documented_table_is_ours(summary_of):
    text = (pathlib.Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    table = {row[0]: row for row in rows}
    assert len(REGISTRY.keys() & table.keys()) > 60
    for name in REGISTRY.keys() & table.keys():  # the first lines of the page say how to make the table again
        summary = summary_of(name)
        assert table[name][4] == f"{summary.parameters:,}" and table[name][6] == f"{summary.macs / 1e9:.4f}"
