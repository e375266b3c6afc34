"""RMSProp follows TensorFlow's update rule, written out in NumPy, and its schedule gives Szegedy 2015's rates."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, inception_v3
from training.optimizer import make_optimizer, make_schedule


def test_rmsprop_follows_tensorflow():
    config = base.get_config()
    config.update({"optimizer": "rmsprop", "rmsprop_decay": 0.8, "rmsprop_epsilon": 0.3, "momentum": 0.7})
    config.update({"schedule": "step", "step_steps": (2,), "num_steps": 4, "learning_rate": 0.1, "weight_decay": 0.01})
    optimizer = make_optimizer(config, make_schedule(config, 1))
    random = np.random.RandomState(0)
    weights = random.standard_normal(5)
    ours, square, velocity = {"kernel": jnp.asarray(weights)}, 0.0, 0.0
    state = optimizer.init(ours)
    for step in range(4):
        gradient = random.standard_normal(5)
        updates, state = optimizer.update({"kernel": jnp.asarray(gradient)}, state, ours)
        ours = {"kernel": ours["kernel"] + updates["kernel"]}
        gradient = gradient + 0.01 * weights
        square = 0.8 * square + 0.2 * gradient**2
        velocity = 0.7 * velocity + (0.1 if step < 2 else 0.01) * gradient / np.sqrt(square + 0.3)
        weights = weights - velocity
    np.testing.assert_allclose(ours["kernel"], weights, rtol=1e-5)


def test_rates_of_szegedy_2015():
    """Section 8: the rate begins at 0.045 and is multiplied by 0.94 every two epochs."""
    config = inception_v3.get_config()
    config.num_steps = 1000
    schedule = make_schedule(config, 10)
    expected = [0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94**49]
    assert [float(schedule(step)) for step in (0, 19, 20, 999)] == pytest.approx(expected)


def test_exponential_rates_count_from_the_beginning_in_spite_of_a_warm_up():
    config = base.get_config()
    config.update({"schedule": "exponential", "exponential_epochs": 2.0, "exponential_factor": 0.5, "num_steps": 100})
    config.update({"warmup_epochs": 3.0, "learning_rate": 0.8})
    schedule = make_schedule(config, 10)
    assert [float(schedule(step)) for step in (15, 30, 39, 40, 60)] == pytest.approx([0.4, 0.4, 0.4, 0.2, 0.1])
