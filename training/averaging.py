"""The mean of several checkpoints' weights, with batch statistics estimated anew (Izmailov 2018, section 3)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import input_pipeline
import models
from input_pipeline.batches import DeviceBatches
from training.inference import normalized
from training.platform import compiler_options
from training.state import make_model

IMAGES_FOR_STATISTICS = 10_000
"""Enough for batch statistics: Wu and Johnson 2021, Rethinking "Batch" in BatchNorm, section 3."""


def mean_weights(weights: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the mean of nested dicts of arrays with the same shapes, summed on the devices in the arrays' type."""
    total = weights[0]
    for other in weights[1:]:
        total = jax.tree.map(lambda a, b: a + b, total, other)
    return jax.tree.map(lambda leaf: leaf / len(weights), total)


def batch_statistics(
    config: ConfigDict, params: dict, batch_stats: dict, batches: Iterable[dict[str, jax.Array]], mesh: Mesh
) -> dict:
    """Returns the mean over the batches of the batch statistics that the network has in training mode.

    Args:
      config: resolved options.
      params: the network's parameters, with those of its auxiliary heads.
      batch_stats: running statistics; batch normalisation computes its variances around their means.
      batches: training batches on the mesh, `image` (N, H, W, C) uint8.
      mesh: the devices.
    """
    model = make_model(config, training=True)
    model.set_attributes(momentum=0.0, raise_if_not_found=False)  # the statistics are then those of the batch alone
    graph, *_ = nnx.split(model, nnx.Param, nnx.BatchStat, models.DropoutKey)

    def add(
        total: dict, images: jax.Array, number: jax.Array, seed: jax.Array, params: dict, batch_stats: dict
    ) -> dict:
        keys = models.dropout_keys(model, jax.random.fold_in(jax.random.key(seed), number))
        network = nnx.merge(graph, params, batch_stats, keys)
        network(normalized(config, images))
        return jax.tree.map(lambda old, new: old + new, total, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)))

    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    add = jax.jit(
        add,
        in_shardings=(replicated, split, replicated, replicated, replicated, replicated),
        out_shardings=replicated,
        compiler_options=compiler_options(config),
    )
    total, count, seed = jax.tree.map(lambda leaf: leaf * 0, batch_stats), 0, np.uint32(config.seed)
    for batch in batches:
        total, count = add(total, batch["image"], np.int32(count), seed, params, batch_stats), count + 1
    return jax.tree.map(lambda leaf: leaf / count, total)


def statistics_batches(config: ConfigDict, mesh: Mesh) -> tuple[DeviceBatches, int]:
    """Returns the first training batches of the run, up to IMAGES_FOR_STATISTICS images or one epoch, on the mesh.

    The images are cropped and mirrored as in training, but without its augmentation (mixup, RandAugment, erasing).

    Returns:
      The batches and their number.
    """
    dataset, config = input_pipeline.load_dataset(config, "train"), config.copy_and_resolve_references()
    unit = math.lcm(mesh.size, config.bn_virtual_batch_size or 1)
    config.train_sizes = ((0, config.train_sizes[-1][1]),) if config.train_sizes else ()
    config.repeated_augmentation = 1  # as many different images as possible
    config.batch_size = -(-config.batch_size // unit) * unit
    num_steps = math.ceil(min(len(dataset), IMAGES_FOR_STATISTICS) / config.batch_size)
    batches = input_pipeline.train_batches(dataset, config, num_steps=num_steps)
    return input_pipeline.to_device(batches, mesh, config.prefetch_batches), num_steps
