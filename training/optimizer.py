"""Stochastic gradient descent with momentum, and the schedule of its learning rate."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def make_schedule(config: ConfigDict, steps_per_epoch: float) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer step, 0 for the first.

    The warm-up is part of the run: a schedule that falls over time falls over the steps that are left after it, and
    the boundaries of a stepped one count from the run's beginning.

    Args:
      config: resolved options; learning_rate, schedule, its own options, the warm-up's and num_steps are read.
      steps_per_epoch: optimizer steps an epoch, which need not be whole.

    Raises:
      ValueError: on an unknown schedule.
    """
    peak, warmup_steps = config.learning_rate, round(config.warmup_epochs * steps_per_epoch)
    decay_steps = max(config.num_steps - warmup_steps, 1)
    if config.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.schedule == "step":
        boundaries = [*(round(epoch * steps_per_epoch) for epoch in config.step_epochs), *config.step_steps]
        factors = {max(boundary - warmup_steps, 0): config.step_factor for boundary in boundaries}
        schedule = optax.piecewise_constant_schedule(peak, factors)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, decay_steps, config.final_learning_rate / peak)
    elif config.schedule == "polynomial":
        schedule = optax.polynomial_schedule(peak, config.final_learning_rate, config.polynomial_power, decay_steps)
    else:
        raise ValueError(f"schedule={config.schedule!r} is unknown; choose constant, step, cosine or polynomial")
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(config.warmup_learning_rate, peak, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns SGD with momentum as PyTorch and the papers couple it: v = momentum v + (g + decay w), w = w - rate v."""
    stages = []
    if config.gradient_clip_norm:
        stages.append(optax.clip_by_global_norm(config.gradient_clip_norm))
    if config.weight_decay:
        mask = None if config.decay_norm_and_bias else _is_kernel
        stages.append(optax.add_decayed_weights(config.weight_decay, mask))
    stages.append(optax.sgd(schedule, config.momentum or None, config.nesterov))
    return optax.chain(*stages)


def _is_kernel(params: dict) -> dict:
    """Marks the arrays of more than one axis: biases, scales and offsets have one."""
    return jax.tree.map(lambda value: jnp.ndim(value) > 1, params)
