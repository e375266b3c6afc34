"""The maps that explain a score equal their definitions, and those of captum and pytorch-grad-cam."""

import functools
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import make_state_dict
from PIL import Image

from analysis.explanation import Explainer, first_filters, randomized_from_the_head, rank_correlation
from analysis.explanation_sheet import Panel, draw_sheet, filter_panel, stage_panels
from configs import base
from models import create_model, get_entry, get_stages, initial_values, operations
from models.rewriting import cut_at_map, with_guided_relu
from models.torch_names import from_torch, torch_shapes
from training.configuration import resolve_network
from training.state import make_model, select

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "explanations"


def make(name, values=None, batch_size=4, **options):
    """Returns an Explainer, the abstract network and its variables, by default twice the initial ones."""
    config = base.get_config()
    config.update({"model": name, "num_classes": 10} | options)
    config = resolve_network(config)
    model = make_model(config, training=False)
    values = values or jax.tree.map(lambda array: 2 * array, initial_values(model, 0))
    own = nnx.state(model, nnx.Param, nnx.BatchStat)
    return Explainer(config, model, batch_size), model, tuple(select(values, nnx.to_pure_dict(part)) for part in own)


def picture(size, channels, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (size, size, channels)).astype(np.uint8)


def test_the_gradient_is_the_difference_quotient():
    """In float64, with respect to pixels of 0 to 255: the normalisation belongs to the chain of derivatives."""
    with jax.enable_x64(True):
        explainer, _, variables = make("lenet5", dtype="float64", mean=(0.3,), std=(0.2,))
        image = picture(32, 1).astype(np.float64)
        gradient = explainer.gradient(variables, image, 3)
        assert gradient.shape == (32, 32, 1) and gradient.dtype == np.float64
        for row, column in ((9, 17), (0, 0), (20, 31)):
            step = np.zeros_like(image)
            step[row, column] = 1e-3
            scores = [explainer.scores(variables, image + sign * step)[3] for sign in (1, -1)]
            assert gradient[row, column, 0] == pytest.approx((scores[0] - scores[1]) / 2e-3, rel=1e-6)
        np.testing.assert_array_equal(explainer.saliency(variables, image, 3), np.abs(gradient)[..., 0])


@pytest.mark.parametrize("name, size, steps", [("lenet5", 32, 20), ("resnet20", 8, 400)])
def test_integrated_gradients_sum_to_the_difference_of_the_scores(name, size, steps):
    explainer, _, variables = make(name)
    image, grey = picture(size, get_entry(name).channels), 40.0
    shares = explainer.integrated_gradients(variables, image, 2, steps, baseline=grey)
    scores = [explainer.scores(variables, each)[2] for each in (image, np.full(image.shape, grey))]
    assert abs(scores[0] - scores[1]) > 1e-4  # a hundred times the rounding of the scores
    assert shares.sum() == pytest.approx(scores[0] - scores[1], rel=1e-3)


def test_gradcam_of_the_last_map_is_cam():
    """Selvaraju 2017, section 3.1: behind global average pooling and a dense layer the weights are CAM's, over Z."""
    explainer, model, variables = make("resnet20")
    image = picture(32, 3)
    maps = explainer.stage_maps(variables, image)["stage3"]
    weights = variables[0]["head"]["kernel"][:, 5]
    cam = np.maximum(maps @ weights, 0) / (maps.shape[0] * maps.shape[1])
    assert cam.max() > 0
    np.testing.assert_allclose(explainer.gradcam(variables, image, 5), cam, rtol=0, atol=1e-5 * cam.max())


def test_gradcam_of_an_inner_map_is_that_of_the_layers_behind_it():
    explainer, model, variables = make("resnet20")
    image = picture(16, 3)
    maps = explainer.stage_maps(variables, image)["stage2"][None]
    network = nnx.merge(nnx.graphdef(model), *variables)

    def behind(x):
        for block in network.stage3:
            x = block(x)
        return network.classify(x)[0, 5]

    weights = jax.grad(behind)(jnp.asarray(maps)).mean((1, 2), keepdims=True)
    expected = np.maximum((weights * maps).sum(-1), 0)[0]
    actual = explainer.gradcam(variables, image, 5, stage="stage2")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * expected.max())


def test_gradcam_of_a_transformer_takes_the_last_map_of_patches():
    """Behind it lies one block, whose class token alone is classified."""
    explainer, model, variables = make("vit_tiny_patch16_224")
    image = picture(32, 3)
    network = nnx.merge(nnx.graphdef(model), *variables)
    tokens = network.embedding(network.patches(explainer._normalize(image[None])))
    for number in range(1, 12):
        tokens = getattr(network, f"block{number}")(tokens)

    def behind(patches):
        return network.head(network.norm(network.block12(jnp.concatenate((tokens[:, :1], patches), 1))[:, 0]))[0, 5]

    patches = tokens[:, 1:]
    weights = jax.grad(behind)(patches).mean(1, keepdims=True)
    expected = np.maximum((weights * patches).sum(-1), 0).reshape(2, 2)
    assert expected.max() > 0
    actual = explainer.gradcam(variables, image, 5)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * expected.max())
    np.testing.assert_array_equal(actual, explainer.gradcam(variables, image, 5, "block11"))


def test_a_map_that_the_scores_do_not_use_is_refused():
    with pytest.raises(ValueError, match="do not depend on this map"):
        cut_at_map(lambda x: (x.sum(), jnp.tanh(x)), jnp.ones(3))


def test_guided_backprop_of_a_network_without_relu_is_the_gradient():
    explainer, _, variables = make("lenet5")
    image = picture(32, 1)
    guided = explainer.guided_gradient(variables, image, 3)
    np.testing.assert_allclose(guided, explainer.gradient(variables, image, 3), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("activation, slopes", [("relu", [0, 0, 1, 1]), ("relu6", [0, 0, 1, 0])])
def test_a_guided_relu_passes_positive_gradients_only(activation, slopes):
    x = jnp.array([-1.0, 0.0, 2.0, 7.0])
    function = functools.partial(operations.activate, activation=activation)
    values, backward = jax.vjp(with_guided_relu(function), x)
    np.testing.assert_array_equal(values, function(x))
    for gradient in (5.0, -5.0):
        (passed,) = backward(jnp.full(4, gradient))
        np.testing.assert_array_equal(passed, max(gradient, 0) * np.array(slopes))


def test_occlusion_of_everything_is_the_fall_to_a_grey_image():
    explainer, _, variables = make("lenet5")
    image = picture(32, 1)
    scores = [explainer.scores(variables, each)[1] for each in (image, np.full(image.shape, 127.5))]
    falls = explainer.occlusion(variables, image, 1, window=64, stride=3)
    np.testing.assert_allclose(falls, np.full((32, 32), scores[0] - scores[1]), rtol=1e-5)
    assert np.ptp(explainer.occlusion(variables, image, 1)) > 0


def test_smoothgrad_without_noise_is_the_saliency():
    explainer, _, variables = make("lenet5")
    image = picture(32, 1)
    smooth = [explainer.smoothgrad(variables, image, 3, samples=6, noise=noise) for noise in (0.0, 0.2)]
    np.testing.assert_allclose(smooth[0], explainer.saliency(variables, image, 3), rtol=1e-5, atol=1e-9)
    assert not np.allclose(smooth[0], smooth[1], rtol=0.1)
    np.testing.assert_array_equal(smooth[1], explainer.smoothgrad(variables, image, 3, samples=6, noise=0.2))


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.slow), "squeezenet1_1"])
def test_maps_are_captums(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    entry, label = get_entry(name), int(golden["label"])
    with jax.enable_x64(True):
        # Pixels of 0 to 255 are divided by 255; this undoes it, because captum's image is normalised already.
        options = {"num_classes": 1000, "dtype": "float64", "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
        model = create_model(name, dtype=jnp.float64, abstract=True)
        values = from_torch(entry, model, make_state_dict(torch_shapes(entry, model)))
        explainer, _, variables = make(name, values, batch_size=1, **options)
        random = np.random.RandomState(zlib.crc32(name.encode()))
        image = random.standard_normal((1, 3, 64, 64))[0].transpose(1, 2, 0)
        maps = {
            "score": explainer.scores(variables, image)[label],
            "gradient": explainer.gradient(variables, image, label),
            "guided_gradient": explainer.guided_gradient(variables, image, label),
            "integrated_gradients": explainer.integrated_gradients(variables, image, label, steps=8, baseline=0.5),
            "occlusion": explainer.occlusion(variables, image, label, window=16, stride=12, grey=0.25),
        }
        maps |= {
            f"gradcam/{stage}": explainer.gradcam(variables, image, label, stage)
            for stage in get_stages(name)
            if f"gradcam/{stage}" in golden
        }
    assert maps.keys() | {"label"} == set(golden.files)
    for method, actual in maps.items():
        actual = actual[::4, ::4] if np.shape(actual)[:1] == (64,) else actual
        np.testing.assert_allclose(
            actual, golden[method], rtol=0, atol=1e-6 * np.abs(golden[method]).max(), err_msg=method
        )


def test_maps_change_when_layers_are_drawn_anew():
    explainer, model, variables = make("resnet20")
    image = picture(16, 3)
    levels = dict(randomized_from_the_head(model, variables, seed=1, levels=3))
    assert list(levels) == ["head", "stage1", "conv1"]
    params, _ = levels["stage1"]
    same = jax.tree.map(np.array_equal, params, variables[0])
    assert same["conv1"]["kernel"] and not same["head"]["kernel"]
    assert not any(same[f"stage{number}"][0]["conv1"]["kernel"] for number in (1, 2, 3))
    for method in ("saliency", "smoothgrad", "integrated_gradients", "guided_backprop", "gradcam", "occlusion"):
        before = getattr(explainer, method)(variables, image, 3)
        correlations = [
            rank_correlation(before, getattr(explainer, method)(level, image, 3)) for level in levels.values()
        ]
        # Guided backprop hardly depends on the head, because it reconstructs the image: Nie, Zhang, Patel 2018.
        assert correlations[-1] < 0.9 and (correlations[0] > 0.9) == (method == "guided_backprop"), method
    stages = [explainer.stage_maps(each, image) for each in (variables, levels["head"], levels["conv1"])]
    np.testing.assert_array_equal(stages[0]["stage3"], stages[1]["stage3"])
    assert not np.allclose(stages[0]["stage1"], stages[2]["stage1"])


def test_rank_correlation():
    a = np.array([[0.0, 1.0], [2.0, -3.0]])
    assert rank_correlation(a, a**3) == pytest.approx(1) and rank_correlation(a, 3 - np.abs(a)) == pytest.approx(-1)
    assert rank_correlation(np.array([1, 2, 2, 4]), np.array([1, 2, 3, 4])) == pytest.approx(0.9486833)  # scipy 1.16
    assert rank_correlation(a, np.zeros_like(a)) == 0  # not NaN


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "lenet5", "mobilenet_v1", "densenet121"])
def test_first_filters_are_those_that_see_the_image(name):
    explainer, model, variables = make(name)
    filters = first_filters(model, variables)
    assert filters.shape[2] == get_entry(name).channels and filters.shape[3] == filters.shape[-1] >= 6


def test_a_sheet_is_legible_at_800_pixels(tmp_path):
    image, heat = picture(20, 3), np.random.RandomState(0).standard_normal((5, 5))
    panels = [
        Panel("a $1 fish [/b] 90.0 %", image),
        Panel("saliency", image, np.abs(heat)),
        filter_panel(heat[None, None]),
    ]
    panels += [Panel("occlusion", image[..., :1], heat, True), Panel("nothing", image, np.zeros((2, 2)))]
    panels += stage_panels({"stage1": np.random.RandomState(0).random((4, 4, 12)), "dead": np.zeros((2, 2, 3))})
    for name, columns in (("one", [panels]), ("two", [panels, panels[:2]])):
        draw_sheet(f"{name}: $x^$ \x1b[31m", columns, tmp_path / f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").width == 800
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]
