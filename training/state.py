"""The training state: nested dicts of arrays on the mesh, which the jitted step takes and returns."""

import math
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from training.fine_tuning import freeze_batch_norms, frozen_paths, split_frozen

State = dict[str, Any]
AVERAGED_BATCH_STATS = "ema_batch_stats"
SMALLEST_SHARDED = 2**16
"""The fewest numbers of an array that shard_params shards; smaller arrays need little memory."""
# The order in memory of a convolution's kernel, (height, width, features in, features out), where it is not JAX's own:
# cuDNN reads kernels with the last axis outermost.
KERNEL_LAYOUTS = {"gpu": Layout((3, 0, 1, 2))}


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Returns a mesh with one axis, `data`, of num_devices devices; None: of all devices."""
    devices = jax.devices()[:num_devices]
    # With the default axis type, Explicit, parts of optax's losses and code outside jit fail.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def make_model(config: ConfigDict, training: bool) -> models.Network:
    """Returns the abstract network of a resolved config; it has auxiliary heads only if it is for training."""
    model = models.create_model(
        config.model,
        image_size=config.image_size,
        num_classes=config.num_classes,
        channels=config.channels,
        dropout_rate=config.dropout_rate,
        aux_heads=config.aux_heads if training else (),
        dtype=np.dtype(config.dtype),
        bn_virtual_batch_size=config.bn_virtual_batch_size,
        stochastic_depth_rate=config.stochastic_depth_rate,
        abstract=True,
    )
    if training:
        model.train()
        freeze_batch_norms(model, frozen_paths(config))
    return model


def sharded_axis(shape: tuple[int, ...]) -> int | None:
    """Returns the axis along which shard_params shards an array of this shape, the longest one; None: it stays whole.

    The axis depends on nothing but the shape, so that the checksums of a checkpoint hold on any number of devices.
    """
    if math.prod(shape) < SMALLEST_SHARDED:
        return None
    return max(range(len(shape)), key=lambda axis: shape[axis])


def sharding_of(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Returns how an array lies on the mesh with shard_params: sharded where its axis divides, or else replicated."""
    axis = sharded_axis(shape)
    if axis is None or shape[axis] % mesh.size:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def abstract_state(
    config: ConfigDict, model: nnx.Module, optimizer: optax.GradientTransformation | None, mesh: Mesh
) -> State:
    """Returns the shapes, types and shardings of the state; a checkpoint is restored into them.

    Every device holds the whole state. With config.shard_params each device holds a part of every large array, as in
    ZeRO (Rajbhandari 2020) and FSDP (Zhao 2023); only a state with an optimizer, one for training, is sharded.

    The entries are step (int32), params, batch_stats and, with an optimizer, opt_state, which has nothing of frozen
    parameters. If config.ema_decay is not 0, there are also ema, the averaged params, and, for networks with batch
    normalisation, ema_batch_stats, the averaged batch_stats.
    """
    params, batch_stats = (nnx.to_pure_dict(part) for part in nnx.state(model, nnx.Param, nnx.BatchStat))
    state = {"step": jax.ShapeDtypeStruct((), np.int32), "params": params, "batch_stats": batch_stats}
    if optimizer:
        state["opt_state"] = jax.eval_shape(optimizer.init, split_frozen(params, frozen_paths(config))[0])
    if config.ema_decay:
        state["ema"] = params
        if jax.tree.leaves(batch_stats):
            state[AVERAGED_BATCH_STATS] = batch_stats
    replicated, sharded = NamedSharding(mesh, PartitionSpec()), config.shard_params and optimizer
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding_of(leaf.shape, mesh) if sharded else replicated
        ),
        state,
    )


def with_layouts(target: State) -> State:
    """Returns the target with the layout that each array has during training: the order of its axes in memory.

    On a GPU the kernels of convolutions, their momentum and their averages have cuDNN's order. In JAX's order XLA would
    transpose them in every step. All other arrays have JAX's order, as all arrays have on other platforms.
    """

    def with_layout(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        layout = KERNEL_LAYOUTS.get(next(iter(leaf.sharding.device_set)).platform)
        if leaf.ndim != 4 or layout is None:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=Format(layout, leaf.sharding))

    return jax.tree.map(with_layout, target)


def formats(target: State) -> Any:
    """Returns the sharding and the layout of each array of the state, as jax.jit takes them."""
    return jax.tree.map(lambda leaf: leaf.format, target)


def place(state: State, target: State) -> State:
    """Returns the state with the target's layouts, as the training step takes it; without layouts the state itself."""
    if all(leaf.format.layout is None for leaf in jax.tree.leaves(target)):
        return state
    return jax.jit(lambda state: state, out_shardings=formats(target))(state)


def create_state(target: State, model: nnx.Module, seed: int) -> State:
    """Returns the state before the first step, on the devices of the target's mesh.

    Args:
      target: from abstract_state.
      model: the abstract network; each of its parameters has a rule for its initial values.
      seed: seed for the initial values.
    """
    values = models.initial_values(model, seed)
    # The step and the momentum start at zero. They are made on the host, which needs no compilation.
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), target)
    state["params"], state["batch_stats"] = (select(values, target[part]) for part in ("params", "batch_stats"))
    return jax.device_put(start_average(state, target), jax.tree.map(lambda leaf: leaf.sharding, target))


def start_average(state: State, target: State) -> State:
    """Adds the averages that the target has; they start at the weights and batch statistics, without a copy."""
    sources = {"ema": "params", AVERAGED_BATCH_STATS: "batch_stats"}
    return state | {average: state[source] for average, source in sources.items() if average in target}


def evaluated_variables(state: State) -> tuple[dict, dict]:
    """Returns the params and batch_stats that are evaluated: the averaged ones if the state has them."""
    params, batch_stats = ("ema", AVERAGED_BATCH_STATS) if "ema" in state else ("params", "batch_stats")
    return state[params], state[batch_stats if batch_stats in state else "batch_stats"]


def select(values: dict, wanted: dict) -> dict:
    """Returns those entries of the nested dict `values` whose keys are in the nested dict `wanted`."""
    return {
        key: select(values[key], inner) if isinstance(inner, dict) else values[key] for key, inner in wanted.items()
    }


def count_parameters(params: dict) -> int:
    """Returns how many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
