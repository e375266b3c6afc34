"""Schedules give the papers' learning rates, and SGD follows PyTorch's update rule, written out in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import alexnet, base, cifar10_resnet20, cifar10_resnet110, googlenet
from training.optimizer import make_optimizer, make_schedule


def config_with(**options):
    config = base.get_config()
    config.update({"num_steps": 100, "learning_rate": 0.1, "warmup_epochs": 0.0} | options)
    return config


def rates(config, steps, steps_per_epoch=10):
    schedule = make_schedule(config, steps_per_epoch)
    return [float(schedule(step)) for step in steps]


def test_cifar_rates_of_he_2015():
    config = cifar10_resnet20.get_config()
    steps = [0, 31_999, 32_000, 47_999, 48_000, 63_999]
    assert rates(config, steps) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_resnet_110_spends_400_iterations_at_a_tenth_of_the_rate():
    steps = [0, 399, 400, 31_999, 32_000, 48_000]
    rates_of_110 = rates(cifar10_resnet110.get_config(), steps, steps_per_epoch=50_000 / 128)
    assert rates_of_110 == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.001])


def test_step_epochs_count_from_the_beginning_in_spite_of_a_warm_up():
    config = config_with(schedule="step", step_epochs=(3, 6), warmup_epochs=2.0)
    assert rates(config, [0, 10, 20, 29, 30, 59, 60]) == pytest.approx([0, 0.05, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_a_fractional_number_of_steps_an_epoch():
    config = config_with(schedule="step", step_epochs=(1, 2))
    assert rates(config, [2, 3, 4, 5], steps_per_epoch=2.5) == pytest.approx([0.01, 0.01, 0.01, 0.001])


def test_googlenet_rates_of_bvlc():
    """Caffe's poly policy: base_lr (1 - iter / max_iter) ^ 0.5."""
    config = googlenet.get_config()
    config.num_steps = 2_400_000
    steps = [0, 600_000, 2_399_999]
    assert rates(config, steps) == pytest.approx([0.01 * (1 - step / 2_400_000) ** 0.5 for step in steps], rel=1e-3)


def test_cosine_falls_from_the_end_of_the_warm_up():
    config = config_with(schedule="cosine", warmup_epochs=2.0, warmup_learning_rate=0.02, final_learning_rate=0.001)
    expected = [0.02, 0.06, 0.1, (0.1 + 0.001) / 2, 0.001]
    assert rates(config, [0, 10, 20, 60, 100]) == pytest.approx(expected)


def test_constant():
    assert rates(config_with(schedule="constant"), [0, 99]) == pytest.approx([0.1, 0.1])


def test_alexnet_falls_every_twenty_epochs():
    config = alexnet.get_config()
    config.num_steps = 900
    assert rates(config, [0, 199, 200, 799, 899]) == pytest.approx([1e-2, 1e-2, 1e-3, 1e-5, 1e-6])


def test_drops_within_a_warm_up_are_not_lost():
    config = config_with(schedule="step", step_epochs=(2, 4), warmup_epochs=5.0)
    assert rates(config, [50]) == pytest.approx([0.001])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_all", [False, True])
def test_sgd_follows_pytorch(nesterov, decay_all):
    """torch.optim.SGD's rule: g += decay w; v = momentum v + g; w -= rate (g + momentum v if nesterov else v)."""
    config = config_with(momentum=0.9, nesterov=nesterov, weight_decay=0.01, decay_norm_and_bias=decay_all)
    config.schedule, config.step_steps = "step", (2,)
    optimizer = make_optimizer(config, make_schedule(config, 10))
    random = np.random.RandomState(0)
    params = {"kernel": random.standard_normal((3, 4)), "bias": random.standard_normal(4)}
    state = optimizer.init({name: jnp.asarray(value) for name, value in params.items()})
    ours, velocity = {name: jnp.asarray(value) for name, value in params.items()}, dict.fromkeys(params, 0.0)
    for step in range(4):
        gradients = {name: random.standard_normal(value.shape) for name, value in params.items()}
        updates, state = optimizer.update({name: jnp.asarray(value) for name, value in gradients.items()}, state, ours)
        ours = {name: ours[name] + updates[name] for name in ours}
        for name in params:
            decay = 0.01 if decay_all or name == "kernel" else 0.0
            gradient = gradients[name] + decay * params[name]
            velocity[name] = 0.9 * velocity[name] + gradient
            direction = gradient + 0.9 * velocity[name] if nesterov else velocity[name]
            params[name] = params[name] - (0.1 if step < 2 else 0.01) * direction
    for name in params:
        np.testing.assert_allclose(ours[name], params[name], rtol=1e-5)


def test_clipping_keeps_the_direction():
    config = config_with(momentum=0.0, weight_decay=0.0, gradient_clip_norm=1.0, schedule="constant")
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = optimizer.update({"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}, optimizer.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.06, -0.08], rtol=1e-6)
