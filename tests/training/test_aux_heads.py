"""Auxiliary heads can follow any stage of any network; their weights are in the order of the logits."""

import pytest

from configs import base
from training.configuration import resolve_network
from training.state import make_model


def resolve(**options):
    config = base.get_config()
    config.update(options)
    return resolve_network(config)


def test_a_network_without_heads_of_its_own_gets_them_by_name():
    config = resolve(model="resnet20", aux_heads=("stage1",), aux_weight=(0.3,))
    assert (config.aux_heads, config.aux_weight) == (("stage1",), (0.3,))
    assert make_model(config, training=True).aux_heads == ("stage1",)
    assert make_model(config, training=False).aux_heads == ()


def test_weights_follow_their_heads_into_the_order_of_depth():
    config = resolve(model="inception_v3", aux_heads=("mixed_7a", "mixed_5d", "mixed_6e"), aux_weight=(0.1, 0.2, 0.0))
    assert (config.aux_heads, config.aux_weight) == (("mixed_5d", "mixed_7a"), (0.2, 0.1))


def test_the_networks_own_heads_are_the_default():
    config = resolve(model="inception_v3", aux_weight=(0.4,))
    assert (config.aux_heads, config.aux_weight) == (("mixed_6e",), (0.4,))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "vgg11", "aux_heads": ("stage6",), "aux_weight": (0.3,)}, "no stage 'stage6'; did you mean 'stage"),
        ({"model": "lenet5", "aux_weight": (0.3,)}, "name stages in aux_heads, of conv1, conv3"),
    ],
)
def test_what_fits_no_stage_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        resolve(**options)
