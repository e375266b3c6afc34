"""The network as a function for evaluation and prediction: from images and variables to logits."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from input_pipeline import normalize
from training.state import select

T = TypeVar("T")


def make_apply(config: ConfigDict, model: nnx.Module) -> Callable[[dict, dict, jax.Array], jax.Array]:
    """Returns the network as a function for evaluation: (params, batch_stats, images) -> logits (N, classes).

    The variables may come from training and include those of auxiliary heads. Images are (N, H, W, C), 0 to 255, uint8
    or floats.
    """
    logits = make_logits(model)
    return lambda params, batch_stats, images: logits(params, batch_stats, normalized(config, images))


def make_logits(model: nnx.Module) -> Callable[[dict, dict, jax.Array], jax.Array]:
    """Returns the same function as make_apply, but for normalised images, floats (N, H, W, C)."""
    graph, *own = nnx.split(model, nnx.Param, nnx.BatchStat)
    own_params, own_batch_stats = (nnx.to_pure_dict(part) for part in own)

    def logits(params: dict, batch_stats: dict, images: jax.Array) -> jax.Array:
        params, batch_stats = select(params, own_params), select(batch_stats, own_batch_stats)
        return nnx.merge(graph, params, batch_stats)(images)

    return logits


def normalized(config: ConfigDict, images: jax.Array) -> jax.Array:
    """Normalises pixels of 0 to 255 by config.mean and config.std, and returns them in config.dtype."""
    return normalize(images, config.mean, config.std, np.dtype(config.dtype))


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yields each item after the next one is made, so that a device computes the next while the host reads this one."""
    waiting: list[T] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting
