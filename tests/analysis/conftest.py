"""Fixtures that summarise a registered network (cached for all tests) or any module."""

import functools

import pytest

from analysis.layer_chain import trace_module
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
    return lambda module, height, width, channels: trace_module(module, (height, width, channels))
