"""AdamW and LAMB end at PyTorch's and timm's weights, LARS follows You 2017, and each resumes from its checkpoint.

The weights were computed once in float64 with PyTorch 2.13.0 (torch.optim.AdamW) and timm 1.0.31 (timm.optim.Lamb):
rate 0.01, betas (0.8, 0.95), epsilon 1e-3, weight decay 0.02, three steps with the gradients below.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from training.optimizer import make_optimizer

KERNEL, BIAS = [[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], [0.1, -0.2, 0.3]
GRADIENTS = [
    ([[0.1, 0.2, -0.3], [0.4, -0.5, 0.6]], [0.7, -0.8, 0.9]),
    ([[-0.3, 0.1, 0.2], [0.6, 0.4, -0.5]], [-0.9, 0.7, 0.8]),
    ([[0.2, -0.6, 0.5], [0.1, -0.1, 0.3]], [0.2, 0.1, -0.4]),
]
ADAMW_KERNEL = [
    [0.4947379803454023, -1.0142435868625457, 2.004318972045932],
    [1.4709822995016286, 0.2609348460401362, -0.7617569250015085],
]
LAMB_KERNEL = [
    [0.4972124086079871, -1.0178566340584252, 1.997909254771361],
    [1.446695265166687, 0.26421000550554424, -0.766549572309055],
]
CLIPPED_LAMB_KERNEL = [
    [0.4931880996624542, -1.0169677291288735, 1.9981229997582848],
    [1.4485307082372856, 0.26539710608906725, -0.7685892007957014],
]
PLAIN_ADAM_BIAS = [0.09279168127077118, -0.1914527439751348, 0.2754834166713645]

# options -> the weights after three steps
EXPECTED = {
    ("adamw", True, 0.0): (ADAMW_KERNEL, [0.0927352206373582, -0.19133667385517603, 0.2753094319836501]),
    ("adamw", False, 0.0): (ADAMW_KERNEL, PLAIN_ADAM_BIAS),
    ("lamb", True, 0.0): (LAMB_KERNEL, [0.0990079376745616, -0.1987225575352916, 0.2906348715852671]),
    ("lamb", False, 0.0): (LAMB_KERNEL, PLAIN_ADAM_BIAS),  # what weight decay exempts takes Adam's step
    ("lamb", False, 1.0): (CLIPPED_LAMB_KERNEL, [0.09196108807627548, -0.19191008444537938, 0.2773183151076315]),
}


def weights_after_three_steps(**options):
    config = base.get_config()
    config.update({"adam_betas": (0.8, 0.95), "adam_epsilon": 1e-3, "weight_decay": 0.02} | options)
    optimizer = make_optimizer(config, lambda _: 0.01)
    params = {"kernel": jnp.asarray(KERNEL), "bias": jnp.asarray(BIAS)}
    state = optimizer.init(params)
    for kernel, bias in GRADIENTS:
        updates, state = optimizer.update({"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize("case", EXPECTED, ids=str)
def test_adamw_and_lamb_end_at_the_weights_of_pytorch_and_timm(case):
    optimizer, decay_all, clip = case
    found = weights_after_three_steps(optimizer=optimizer, decay_norm_and_bias=decay_all, gradient_clip_norm=clip)
    for name, expected in zip(("kernel", "bias"), EXPECTED[case], strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=2e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_follows_its_formula(momentum):
    """g += decay w; v = momentum v + rate coefficient |w| / |g| g; w -= v. The bias has neither decay nor ratio."""
    options = {"optimizer": "lars", "trust_coefficient": 0.5, "momentum": momentum, "decay_norm_and_bias": False}
    found = weights_after_three_steps(**options)
    weights, velocity = {"kernel": np.array(KERNEL), "bias": np.array(BIAS)}, {"kernel": 0.0, "bias": 0.0}
    for gradients in GRADIENTS:
        for name, gradient in zip(("kernel", "bias"), map(np.array, gradients), strict=True):
            ratio = 1.0
            if name == "kernel":
                gradient = gradient + 0.02 * weights[name]
                ratio = 0.5 * np.linalg.norm(weights[name]) / np.linalg.norm(gradient)
            velocity[name] = momentum * velocity[name] + 0.01 * ratio * gradient
            weights[name] = weights[name] - velocity[name]
    for name in weights:
        np.testing.assert_allclose(found[name], weights[name], rtol=2e-6)


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_biases_take_adams_step_in_lamb_if_they_are_exempt_with_and_without_weight_decay(decay):
    found = weights_after_three_steps(optimizer="lamb", decay_norm_and_bias=False, weight_decay=decay)
    np.testing.assert_allclose(found["bias"], PLAIN_ADAM_BIAS, rtol=2e-6)


@pytest.mark.parametrize("optimizer", ["lamb", "lars"])
def test_weights_of_norm_0_leave_zero(optimizer):
    config = base.get_config()
    config.update({"optimizer": optimizer, "weight_decay": 0.0, "momentum": 0.0})
    params = {"kernel": jnp.zeros((2, 2))}
    updates, _ = make_optimizer(config, lambda _: 0.1).update(
        {"kernel": jnp.ones((2, 2))}, make_optimizer(config, lambda _: 0.1).init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "lars"])
def test_memory_starts_at_zero(optimizer):
    """training.state.create_state makes the optimizer's state of zeros, without calling its init."""
    config = base.get_config()
    config.update({"optimizer": optimizer, "decay_norm_and_bias": False})
    state = make_optimizer(config, lambda _: 0.1).init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    moments = 2 if optimizer != "lars" else 1
    assert len([leaf for leaf in jax.tree.leaves(state) if leaf.ndim]) == 2 * moments
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(state))
