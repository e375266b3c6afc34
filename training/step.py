"""The jitted training and evaluation steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from input_pipeline import DeviceCache, make_augmentation
from training.distillation import Teacher, make_lesson
from training.fine_tuning import frozen_paths, join_frozen, split_frozen
from training.inference import make_apply, normalized
from training.loss import Lesson, classification_sums, cross_entropy, gradient_norm_sums, other_loss, weighted_loss
from training.platform import compiler_options, loops_are_fast
from training.state import AVERAGED_BATCH_STATS, State, formats, sharding_of

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


def make_train_step(
    config: ConfigDict,
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    cache: DeviceCache | None = None,
    teacher: Teacher | None = None,
    target: State | None = None,
) -> Callable[[State, Sums, Batch], tuple[State, Sums]]:
    """Returns the jitted step: (state, sums, batch) -> (new state, sums including the batch's). It donates the state.

    The batch holds `image`, (N, H, W, C) uint8, and `label`, (N,) int32, split over the mesh's `data` axis. The sums
    are those of training.loss and stay on the devices until they are read.

    With a cache, the third argument holds the cache's arrays and `count`, an int32 scalar: the number of steps that the
    call takes. Each step makes its batch from its own number.

    The third argument also holds `seed`, the run's, a uint32 scalar: one compiled program serves all seeds. With a
    teacher it holds `teacher`, the teacher's variables.

    Args:
      config: resolved options.
      model: the abstract network in training mode.
      optimizer: maps gradients to updates.
      mesh: the devices.
      cache: the training images, if they are on the devices already.
      teacher: the network that the run learns from too.
      target: shapes, types, shardings and layouts of the state, which the step takes and returns; None: JAX's layouts,
        and every device holds the whole state.
    """
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    augment = make_augmentation(config)
    graph, *_ = nnx.split(model, nnx.Param, nnx.BatchStat, models.DropoutKey)

    frozen_names, other = frozen_paths(config), other_loss(config)

    teach = make_lesson(teacher) if teacher else None
    of_constants = {"seed": replicated} | ({"teacher": replicated} if teacher else {})

    def loss_and_sums(trained, frozen, batch_stats, keys, images, labels, taught):
        network = nnx.merge(graph, join_frozen(trained, frozen), batch_stats, keys)
        outputs = network(normalized(config, images))
        lesson = Lesson(taught, config.teacher_weight, config.teacher_temperature) if teach else None
        loss, sums = weighted_loss(outputs, labels, config.aux_weight, config.label_smoothing, other, lesson)
        return loss, (nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)), sums)

    def gradients(trained, frozen, batch_stats, key, images, labels, teacher_variables):
        keys = models.dropout_keys(model, key)
        taught = teach(teacher_variables, images) if teach else None
        derivative = jax.grad(loss_and_sums, has_aux=True)
        return derivative(trained, frozen, batch_stats, keys, images, labels, taught)

    def accumulated_gradients(trained, frozen, batch_stats, key, images, labels, teacher_variables):
        """Returns the mean gradient over micro-batches.

        Each micro-batch takes every accumulation_steps-th image, so that no image leaves its device.
        """
        count = config.accumulation_steps

        def cut(array):
            return jnp.swapaxes(array.reshape(-1, count, *array.shape[1:]), 0, 1)

        def add_micro_batch(carry, micro_batch):
            total, batch_stats = carry
            index, images, labels = micro_batch
            micro_key = jax.random.fold_in(key, index)
            new, (batch_stats, sums) = gradients(
                trained, frozen, batch_stats, micro_key, images, labels, teacher_variables
            )
            return (jax.tree.map(jnp.add, total, new), batch_stats), sums

        micro_batches = (jnp.arange(count), cut(images), jax.tree.map(cut, labels))
        start = (jax.tree.map(jnp.zeros_like, trained), batch_stats)
        (total, batch_stats), sums = jax.lax.scan(add_micro_batch, start, micro_batches, unroll=not loops_are_fast())
        total, sums = jax.tree.map(lambda leaf: leaf / count, total), jax.tree.map(lambda leaf: leaf.sum(0), sums)
        return total, (batch_stats, sums)

    def sharpness_aware_gradients(trained, *arguments):
        """Returns the gradient at a point uphill (Foret et al. 2021, SAM, eq. 3), and the results of the first pass."""
        uphill, aux = mean_gradients(trained, *arguments)
        scale = config.sharpness_radius / (optax.tree.norm(uphill) + 1e-12)
        above = jax.tree.map(lambda weight, slope: weight + scale * slope, trained, uphill)
        return mean_gradients(above, *arguments)[0], aux

    mean_gradients = accumulated_gradients if config.accumulation_steps > 1 else gradients
    compute = sharpness_aware_gradients if config.sharpness_radius else mean_gradients

    def train_step(state, sums, batch):
        images, labels = batch["image"], batch["label"]
        if augment:
            positions = state["step"].astype(jnp.uint32) * len(labels) + jnp.arange(len(labels), dtype=jnp.uint32)
            images, labels = augment(images, labels, positions, batch["seed"])
        key = jax.random.fold_in(jax.random.key(batch["seed"]), state["step"])
        trained, frozen = split_frozen(state["params"], frozen_names)
        whole, whole_frozen = gathered((trained, frozen), mesh) if config.shard_params else (trained, frozen)
        gradient, (batch_stats, batch_sums) = compute(
            whole, whole_frozen, state["batch_stats"], key, images, labels, batch.get("teacher")
        )
        if config.shard_params:  # each device needs the part of the gradient that updates its part of the parameters
            gradient = jax.tree.map(
                lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding_of(leaf.shape, mesh)), gradient
            )
        if mesh.size > 1:
            # Without this barrier XLA may fuse the update of a kernel with its cast to bfloat16, and the backward pass
            # then waits for the update: on a GPU ResNet-50 needs 36 consecutive all-reduces instead of 3.
            gradient = jax.lax.optimization_barrier(gradient)
        if config.log_gradient_norms:
            batch_sums |= gradient_norm_sums(gradient, batch_sums["examples"])
        updates, opt_state = optimizer.update(gradient, state["opt_state"], trained)
        params = join_frozen(optax.apply_updates(trained, updates), frozen)
        new = {"step": state["step"] + 1, "params": params, "batch_stats": batch_stats, "opt_state": opt_state}
        if "ema" in state:
            decay = average_decay(config.ema_decay, state["step"])
            averages = {"ema": params, AVERAGED_BATCH_STATS: batch_stats}
            for name in sorted(averages.keys() & state.keys()):  # a set has another order in each process
                new[name] = optax.incremental_update(averages[name], state[name], 1 - decay)
            new["ema"] = join_frozen(split_frozen(new["ema"], frozen_names)[0], frozen)
        return new, jax.tree.map(lambda total, part: total + part.astype(total.dtype), sums, batch_sums)

    def cached_train_steps(state, sums, cached):
        assert cache

        def train_on_cached(_, carry):
            state, sums = carry
            batch = jax.lax.with_sharding_constraint(cache.make_batch(cached, state["step"]), split)
            return train_step(state, sums, batch | {name: cached[name] for name in of_constants})

        if config.steps_per_dispatch == 1:
            return train_on_cached(0, (state, sums))
        # The loop's length is an argument, so one compiled program serves any number of steps.
        return jax.lax.fori_loop(0, cached["count"], train_on_cached, (state, sums))

    of_state = formats(target) if target else replicated
    of_batch: dict[str, NamedSharding] = {"image": split, "label": split}
    if cache:
        of_batch = {name: array.sharding for name, array in cache.abstract_batch().items()}
    return jax.jit(
        cached_train_steps if cache else train_step,
        donate_argnums=0,
        in_shardings=(of_state, replicated, of_batch | of_constants),
        out_shardings=(of_state, replicated),
        compiler_options=compiler_options(config),
    )


def gathered(params: Any, mesh: Mesh) -> Any:
    """Returns nested dicts of arrays, of which each device gets the whole, because the network needs it."""
    return jax.lax.with_sharding_constraint(params, NamedSharding(mesh, PartitionSpec()))


def average_decay(decay: float, step: jax.Array) -> jax.Array:
    """Returns the decay of the moving averages in a step: min(decay, (1 + n) / (10 + n)) after n steps, float32.

    TensorFlow's ExponentialMovingAverage does the same if num_updates is given. With a constant decay the average of a
    short run would consist mainly of the initial weights.
    """
    steps = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + steps) / (10 + steps)).astype(jnp.float32)


def make_eval_step(config: ConfigDict, model: nnx.Module, mesh: Mesh) -> Callable[[dict, dict, Batch], Sums]:
    """Returns the jitted evaluation step: (params, batch_stats, batch) -> sums over the images whose mask is 1.

    The batch holds `image`, (N, H, W, C) uint8, `label`, (N,) int32, and `mask`, (N,), 0 for padding.
    """
    apply = make_apply(config, model)

    def eval_step(params, batch_stats, batch):
        params = gathered(params, mesh) if config.shard_params else params
        logits, labels = apply(params, batch_stats, batch["image"]), batch["label"]
        return classification_sums(logits, labels, cross_entropy(logits, labels), batch["mask"])

    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    return jax.jit(
        eval_step,
        in_shardings=(None if config.shard_params else replicated, replicated, split),
        out_shardings=replicated,
        compiler_options=compiler_options(config),
    )
