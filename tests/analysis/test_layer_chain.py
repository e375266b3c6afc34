"""The costs of layers by themselves, given as text: those of lecture notes; only layers of models/ are called."""

import pytest

from analysis.layer_chain import list_chain, parse_layer, parse_map

# CS231n, lecture 9: the modules of Inception with 28x28x256 maps.
NAIVE = "googlenet.NaiveInception(256, (128, 0, 192, 0, 96, 0))"
BOTTLENECKS = "googlenet.Inception(256, (128, 64, 192, 64, 96, 64))"


@pytest.mark.parametrize("text, macs", [(NAIVE, 854_196_224), (BOTTLENECKS, 271_351_808)])
def test_inception_modules(text, macs):
    layers = list_chain([text], parse_map("28x28x256"))
    assert sum(layer.macs for layer in layers) == macs
    assert {"branch1/conv", "concatenation"} <= {layer.name for layer in layers}


@pytest.mark.parametrize("kernels, field, weights", [((3, 3), 5, 18), ((5,), 5, 25), ((7,), 7, 49)])
def test_small_filters(kernels, field, weights):
    layers = list_chain([f"Conv(1, 1, kernel={kernel})" for kernel in kernels], (9, 9, 1), biases=False)
    assert (layers[-1].receptive_field, sum(layer.parameters for layer in layers)) == (field, weights)
    assert [layer.name for layer in layers] == (["conv1", "conv2"] if len(kernels) > 1 else ["conv"])


def test_functions_are_layers_too():
    # Krizhevsky 2012, section 3.5: 227 pixels, an 11x11 kernel of stride 4, overlapping pooling.
    layers = list_chain(["Conv(3, 96, kernel=11, stride=4)", "layers.max_pool(3, 2)"], (227, 227, 3))
    assert [layer.output_shape for layer in layers] == [(55, 55, 96), (27, 27, 96)]
    assert layers[0].parameters == 34_944


@pytest.mark.parametrize(
    "text, message",
    [
        ("Conv", "is no layer; give one, as in Conv"),
        ("Conv(3, open('x'))", "is no layer"),
        ("os.system('true')", "models/ has no file os"),
        ("layers.os.system('true')", "models/ has no file layers.os"),
        ("googlnet.Inception(3)", "has no file googlnet; did you mean googlenet?"),
        ("Conv2(3, 8, 3)", "models/layers.py has no layer Conv2; did you mean Conv?"),
        ("Any()", "models/layers.py has no layer Any"),
        ("Conv(3, 8)", "missing 1 required positional argument: 'kernel'"),
        ("max_pool(3)", "missing a required argument: 'stride'"),
        ("Conv(3, 8, 3, groups=0)", "division"),
        ('Conv(3, 8, 3, padding="VALID")', 'padding="VALID" is invalid; give "SAME", or a number of pixels'),
        ('squeezenet.SqueezeNet("2.0", 10, 3, 0.5)', ": '2.0'"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(ValueError) as caught:
        parse_layer(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_layer_that_does_not_fit_is_refused():
    for text in ("Conv(4, 8, kernel=3)", "Conv(3, 8, kernel=5)", "Conv(3, 8, 3, stride=0)", "max_pool(2, 0)"):
        with pytest.raises(ValueError, match="a layer does not fit the map before it"):
            list_chain([text], (4, 4, 3))
    with pytest.raises(ValueError, match="--map=28x28 is no map"):
        parse_map("28x28")
