"""The optimizer and the schedule of its learning rate."""

import collections

import jax
import optax
from flax.nnx.traversals import flatten_mapping, unflatten_mapping
from ml_collections import ConfigDict

from training.fine_tuning import Path, rate_factors


def make_schedule(config: ConfigDict, steps_per_epoch: float) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer step, 0 for the first.

    The warm-up is part of the run: a cosine or polynomial schedule spans the steps after the warm-up. The boundaries of
    a step or exponential schedule count from the beginning of the run.

    Args:
      config: resolved options; those of the learning rate and num_steps are used.
      steps_per_epoch: optimizer steps in an epoch, which may be a fraction.

    Raises:
      ValueError: if the schedule is unknown.
    """
    peak, warmup_steps = config.learning_rate, round(config.warmup_epochs * steps_per_epoch)
    decay_steps = max(config.num_steps - warmup_steps, 1)
    if config.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.schedule == "step":
        boundaries = [*(round(epoch * steps_per_epoch) for epoch in config.step_epochs), *config.step_steps]
        factors: dict[int, float] = collections.defaultdict(
            lambda: 1.0
        )  # several boundaries may be at one step: those within the warm-up are all at its end
        for boundary in boundaries:
            factors[max(boundary - warmup_steps, 0)] *= config.step_factor
        schedule = optax.piecewise_constant_schedule(peak, factors)
    elif config.schedule == "exponential":
        interval = max(round(config.exponential_epochs * steps_per_epoch), 1)
        falling = optax.exponential_decay(peak, interval, config.exponential_factor, staircase=True)

        def schedule(step: jax.typing.ArrayLike) -> jax.Array:
            return falling(step + warmup_steps)

    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, decay_steps, config.final_learning_rate / peak)
    elif config.schedule == "polynomial":
        schedule = optax.polynomial_schedule(peak, config.final_learning_rate, config.polynomial_power, decay_steps)
    else:
        raise ValueError(
            f"schedule={config.schedule!r} is unknown; choose constant, step, exponential, cosine or polynomial"
        )
    if not warmup_steps:
        return schedule
    reached = config.warmup_learning_rate if config.warmup_shape == "constant" else peak
    warmup = optax.linear_schedule(config.warmup_learning_rate, reached, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer. With sgd, rmsprop and lars the gradient g includes the L2 penalty, weight_decay w.

    sgd with momentum is as in PyTorch and the papers: v = momentum v + g, w = w - rate v.
    rmsprop is as in TensorFlow, which Szegedy used: s = decay s + (1 - decay) g^2,
    v = momentum v + rate g / sqrt(s + epsilon), w = w - v; but s starts at 0, as in PyTorch, and not at 1.
    adamw is PyTorch's: u = m / (sqrt(s) + epsilon) + weight_decay w, w = w - rate u, where m and s are the moving means
    of g and g^2 without their bias towards 0.
    lamb (You 2019, algorithm 2) steps by rate |w| / |u| u, with adamw's u, for each array of weights.
    lars (You 2017) steps by v = momentum v + rate trust_coefficient |w| / |g| g; g is the sum with the penalty, as in
    optax, where the paper adds up the norms of the two.
    lamb's factor |w| / |u| and lars' factor trust_coefficient |w| / |g| are 1 where one of the norms is 0, and for what
    decay_norm_and_bias=False exempts from weight decay. layer_decay and head_rate_factor change the rates of single
    parameters.
    """
    momentum, nesterov, decay = config.momentum or None, config.nesterov, config.weight_decay
    mask = None if config.decay_norm_and_bias else _is_kernel
    decay_weights = [optax.add_decayed_weights(decay, mask)] if decay else []
    trust = optax.scale_by_trust_ratio(
        trust_coefficient=config.trust_coefficient if config.optimizer == "lars" else 1.0
    )
    trust = optax.masked(trust, mask) if mask else trust
    adam = optax.scale_by_adam(*config.adam_betas, eps=config.adam_epsilon)
    step = optax.scale_by_learning_rate(schedule)
    stages = {
        "sgd": [*decay_weights, optax.sgd(schedule, momentum, nesterov)],
        "rmsprop": [
            *decay_weights,
            optax.rmsprop(schedule, config.rmsprop_decay, config.rmsprop_epsilon, momentum=momentum, nesterov=nesterov),
        ],
        "adamw": [adam, *decay_weights, step],
        "lamb": [adam, *decay_weights, trust, step],
        "lars": [*decay_weights, trust, step, *([optax.trace(momentum, nesterov)] if momentum else [])],
    }[config.optimizer]
    if config.gradient_clip_norm:
        stages.insert(0, optax.clip_by_global_norm(config.gradient_clip_norm))
    if factors := rate_factors(config):
        stages.append(_scale_updates(factors))
    return optax.chain(*stages)


def _scale_updates(factors: dict[Path, float]) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by a factor, which multiplies its learning rate."""

    def update(updates: dict, state: optax.EmptyState, params: dict | None = None) -> tuple[dict, optax.EmptyState]:
        flat = flatten_mapping(updates)
        return unflatten_mapping({path: factors[path] * value for path, value in flat.items()}), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _is_kernel(params: dict) -> dict:
    """Returns True for each kernel, and False for biases, scales, class tokens and position embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
