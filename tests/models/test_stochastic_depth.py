"""Stochastic depth drops whole images, at rates that rise with depth as timm's do, and costs nothing when it is off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import REGISTRY, DropoutKey, create_model, dropout_keys
from models.layers import StochasticDepth, set_stochastic_depth

RESIDUAL = {"resnet", "inception", "xception"}


def layers(name):
    model = create_model(name, abstract=True)
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, StochasticDepth)]


# The first network of each family that has residual blocks.
FIRST = {REGISTRY[name].family: name for name in reversed(REGISTRY) if layers(name)}


@pytest.mark.parametrize("shape", [(4000, 2, 3, 2), (4000, 5, 3)])
def test_an_image_loses_its_branch_or_keeps_it_scaled(shape):
    layer = StochasticDepth()
    layer.rate = 0.25
    layer.train()
    layer.key.set_value(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, shape), jnp.float32)
    factors = np.asarray(layer(x) / x).reshape(len(x), -1)
    dropped = factors[:, 0] == 0
    np.testing.assert_allclose(factors, np.where(dropped, 0, 1 / 0.75)[:, None] * np.ones_like(factors), rtol=1e-6)
    assert dropped.mean() == pytest.approx(0.25, abs=0.02)
    layer.eval()
    assert layer(x) is x


def test_rates_are_those_of_timm():
    """timm's resnet50 with drop_path_rate=0.1: 16 blocks from 0 to 0.1, torch.linspace(0, 0.1, 16)."""
    model = create_model("resnet50", stochastic_depth_rate=0.1, abstract=True)
    rates = [block.stochastic_depth.rate for number in range(1, 5) for block in getattr(model, f"stage{number}")]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 16))


def test_every_residual_family_has_it_and_plain_networks_have_not():
    assert RESIDUAL <= FIRST.keys()
    assert not layers("plain18") and not layers("vgg11") and not layers("inception_v4")


@pytest.mark.parametrize("name", FIRST.values())
def test_rates_rise_in_the_order_in_which_blocks_run(name, monkeypatch):
    entry, rates, shape = REGISTRY[name], [], StochasticDepth._drawn_shape
    monkeypatch.setattr(StochasticDepth, "_drawn_shape", lambda self, x: rates.append(self.rate) or shape(self, x))
    model = create_model(name, stochastic_depth_rate=0.2, abstract=True)
    model.train()
    graph, *state = nnx.split(model, nnx.Param, nnx.BatchStat, DropoutKey)
    params, batch_stats = map(nnx.to_pure_dict, state[:2])
    images = jax.ShapeDtypeStruct((2, entry.image_size, entry.image_size, entry.channels), jnp.float32)

    def run(params, batch_stats, images):
        return nnx.merge(graph, params, batch_stats, dropout_keys(model, jax.random.key(0)))(images)

    jax.eval_shape(run, params, batch_stats, images)
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.2)
    assert 0 < rates[0] <= rates[-1] / (len(set(rates)) - 0.5)  # the first block has a rate of 0, so draws nothing


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(ValueError, match="stochastic_depth_rate=1.* is out of range"):
        set_stochastic_depth(create_model("resnet20", abstract=True), 1.0)
