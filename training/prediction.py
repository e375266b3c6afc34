"""Inference with a workdir's weights: the logits of any number of images, and the likeliest classes."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from training.inference import make_apply, make_logits, one_behind
from training.platform import compiler_options
from training.state import make_model


def make_predictor(
    config: ConfigDict, params: dict, batch_stats: dict, mesh: Mesh, *, preprocessed: bool = False
) -> Callable[[np.ndarray], jax.Array]:
    """Returns a function from images (N, H, W, C) to logits (N, num_classes), which it does not wait for.

    The images are split over the devices, which must divide N. The network is compiled for each N.

    Args:
      config: resolved options.
      params: the network's parameters, on the mesh.
      batch_stats: its running statistics, on the mesh.
      mesh: the devices.
      preprocessed: True if the images are floats that are normalised already, False if they are uint8.
    """
    model = make_model(config, training=False)
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    apply = jax.jit(
        make_logits(model) if preprocessed else make_apply(config, model),
        in_shardings=(replicated, replicated, split),
        out_shardings=replicated,
        compiler_options=compiler_options(config),
    )
    return lambda images: apply(params, batch_stats, jax.device_put(images, split))


def predict_arrays(predict: Callable[[np.ndarray], jax.Array], images: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the logits of any number of images; all batches have the same size, and the last one is padded."""
    cut = [images[first : first + batch_size] for first in range(0, len(images), batch_size)]
    padded = (np.pad(batch, [(0, batch_size - len(batch))] + [(0, 0)] * (images.ndim - 1)) for batch in cut)
    return np.concatenate([jax.device_get(logits) for logits in one_behind(map(predict, padded))])[: len(images)]


def read_inputs(path: pathlib.Path, config: ConfigDict) -> np.ndarray:
    """Returns the preprocessed images of a .npy file, (N, H, W, C) float32 or float64.

    Args:
      path: the file.
      config: resolved options of the network that takes the images.

    Raises:
      ValueError: if the file does not hold such images, or the images are too small for the network.
      OSError: if the file cannot be read.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{path} is empty; give a .npy file") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays; give a .npy file of one")
    if array.ndim != 4 or not len(array) or array.shape[-1] != config.channels or array.dtype not in ("f4", "f8"):
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}; {config.model} takes float32 (N, H, W, {config.channels})"
        )
    model = make_model(config, training=False)
    variables = (nnx.to_pure_dict(part) for part in nnx.state(model, nnx.Param, nnx.BatchStat))
    jax.eval_shape(make_logits(model), *variables, array[:1])
    return array


def likeliest_classes(logits: np.ndarray, class_names: list[str], count: int = 5) -> list[list[tuple[str, float]]]:
    """Returns the names of the likeliest classes of each image with their probabilities, the likeliest first.

    Args:
      logits: (N, num_classes).
      class_names: in the order of the logits.
      count: how many classes to return for an image; all of them if the network has fewer.
    """
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    return [
        [(class_names[index], float(shares[index])) for index in indices]
        for indices, shares in zip(best, probabilities, strict=True)
    ]
