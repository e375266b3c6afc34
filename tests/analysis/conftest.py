"""Fixtures that summarise a registered network (cached for all tests) or any module."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from analysis.costs import list_layers
from analysis.receptive_field import image_axes
from analysis.summary import summarize
from configs import base


@pytest.fixture(scope="session")
def summary_of():
    """Summarises a network, by default on one image."""

    @functools.cache
    def summary_of(name, backward=False, **options):
        config = base.get_config()
        config.update({"model": name, "batch_size": 1} | options)
        return summarize(config, backward)

    return summary_of


@pytest.fixture
def layers_of():
    """Lists the layers of a module on maps (1, H, W, C)."""

    def layers_of(module, height, width, channels):
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
        maps = jax.ShapeDtypeStruct((1, height, width, channels), np.float32)
        jaxpr = jax.make_jaxpr(lambda params, rest, maps: nnx.merge(graph, params, rest)(maps))(
            params, rest, maps
        ).jaxpr
        inputs = [None] * (len(jaxpr.invars) - 1) + [image_axes(height, width)]
        return list_layers(jaxpr, inputs, module, batch_size=1)

    return layers_of
