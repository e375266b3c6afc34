"""Sharpness-aware minimisation takes the step of the gradient at a point uphill: Foret et al. 2021, eq. 3."""

import jax
import numpy as np
import optax
import pytest

RATE, RADIUS = 0.1, 0.5


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_step_is_that_of_the_gradient_uphill(accumulation_steps, make_trainer, make_batches):
    options = {"learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0, "accumulation_steps": accumulation_steps}
    (batch,) = make_batches(1)

    def step(trainer, params):
        """Returns the weights after a step from other weights, and the mean loss before it."""
        start = trainer.state | {"params": jax.device_put(params)}
        state, sums = trainer.step(start, trainer.sums, batch | trainer.constants)
        return jax.device_get(state["params"]), float(sums["loss"])

    plain, aware = make_trainer(**options), make_trainer(sharpness_radius=RADIUS, **options)
    start = jax.device_get(plain.state["params"])
    after, loss = step(plain, start)
    slope = jax.tree.map(lambda old, new: (old - new) / RATE, start, after)
    norm = float(optax.tree.norm(slope))
    uphill = jax.tree.map(lambda weight, part: weight + RADIUS / norm * part, start, slope)
    moved, _ = step(make_trainer(**options), uphill)
    expected = jax.tree.map(lambda old, above, new: old - (above - new), start, uphill, moved)
    found, loss_of_aware = step(aware, start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
    assert loss_of_aware == pytest.approx(loss)  # the loss that is shown is that of the weights themselves
