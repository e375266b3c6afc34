"""The networks: `create_model` makes each network of `REGISTRY` by its name.

    >>> import jax, numpy as np
    >>> from models import create_model
    >>> model = create_model("resnet20")
    >>> images = np.zeros((2, 32, 32, 3), np.float32)
    >>> model(images).shape
    (2, 10)
    >>> {stage: maps.shape for stage, maps in model.stages(images)}
    {'stage1': (2, 32, 32, 16), 'stage2': (2, 16, 16, 32), 'stage3': (2, 8, 8, 64)}
    >>> jax.grad(lambda images: dict(model.stages(images))["stage2"].sum())(images).shape
    (2, 32, 32, 3)

The entries of the registry stand at the end of each family's file, beside the network that they describe.
"""

import difflib
import functools
import importlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers import DropoutKey, dropout_keys, initial_values, set_stochastic_depth
from models.network import Entry, Network

__all__ = [
    "FAMILIES",
    "REGISTRY",
    "DropoutKey",
    "Entry",
    "Network",
    "create_model",
    "dropout_keys",
    "get_entry",
    "get_stages",
    "initial_values",
    "select_stages",
]

# The files of this folder that end with ENTRIES, by the year of their papers; tables list networks in this order.
FAMILIES = ("lenet", "alexnet", "zfnet", "nin", "vgg", "googlenet", "inception", "resnet", "densenet", "squeezenet")
FAMILIES += ("mobilenet", "xception", "vit", "convnext")
REGISTRY: dict[str, Entry] = {
    entry.name: entry for family in FAMILIES for entry in importlib.import_module(f"models.{family}").ENTRIES
}


def get_entry(name: str) -> Entry:
    """Returns the registry's entry of a name; raises ValueError, with the nearest name if one is near.

    >>> get_entry("googlenet").aux_heads
    ('inception4a', 'inception4d')
    """
    if name not in REGISTRY:
        hint = _nearest(name, REGISTRY) or "python train.py --list_models lists all"
        raise ValueError(f"unknown model {name!r}; {hint}")
    return REGISTRY[name]


@functools.cache
def get_stages(name: str) -> dict[str, int]:
    """Returns the stages of a network, in depth order, and how many features their maps have.

    These are the names that a network's `stages()` yields. An auxiliary classifier can be put behind each of them.

    >>> get_stages("resnet50")
    {'stage1': 256, 'stage2': 512, 'stage3': 1024, 'stage4': 2048}
    """
    entry = get_entry(name)
    model = entry.build(num_classes=entry.num_classes, channels=entry.channels, dropout_rate=0.0)
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, entry.image_size, entry.image_size, entry.channels), jnp.float32)
    maps = jax.eval_shape(  # an ordered dict, because JAX sorts the keys of a plain one
        lambda state, images: OrderedDict(nnx.merge(graph, state).stages(images)), nnx.to_pure_dict(state), images
    )
    return {stage: shape.shape[-1] for stage, shape in maps.items()}


def select_stages(name: str, stages: tuple[str, ...]) -> dict[str, int]:
    """Returns the named entries of get_stages; raises ValueError, with the valid names, for an unknown stage.

    >>> select_stages("resnet50", ("stage3",))
    {'stage3': 1024}
    """
    features = get_stages(name)
    for stage in stages:
        if stage not in features:
            hint = _nearest(stage, features) or f"choose {', '.join(features)}"
            raise ValueError(f"aux_heads: {name} has no stage {stage!r}; {hint}")
    return {stage: width for stage, width in features.items() if stage in stages}


def _nearest(name: str, names: Iterable[str]) -> str:
    """Returns "did you mean X?" for a misspelt name, or "" if none of the names is near."""
    matches = difflib.get_close_matches(name.lower(), list(names), n=1)
    return f"did you mean {matches[0]!r}?" if matches else ""


def create_model(
    name: str,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    dropout_rate: float | None = None,
    aux_heads: tuple[str, ...] = (),
    dtype: Any = jnp.float32,
    bn_virtual_batch_size: int = 0,
    stochastic_depth_rate: float = 0.0,
    seed: int = 0,
    abstract: bool = False,
) -> Network:
    """Makes a network in evaluation mode; `.train()` puts it in training mode.

    Called on floats (N, H, W, C) of its own image size, or of any other that is large enough, it returns the logits
    (N, num_classes), at least float32; with auxiliary heads, (logits, [auxiliary logits in depth order]). The network's
    method `stages` yields the map of each stage. An option that is None gets the registry's value.

    >>> create_model("lenet5", num_classes=7)(jnp.zeros((1, 32, 32, 1))).shape
    (1, 7)

    Args:
      name: a name of REGISTRY.
      image_size: side of the images, in pixels, that parameters are built for: the position embeddings of transformers.
        Images of other sizes get interpolated ones. Other networks have the same parameters for all sizes.
      num_classes: number of classes, at least 1.
      channels: number of channels of the images, at least 1.
      dropout_rate: dropout rate, 0 <= rate < 1; most networks apply it before the classifier. If it is above 0,
        auxiliary classifiers have a rate of 0.7 (Inception-v3's has no dropout).
      aux_heads: names of stages, of get_stages, that get an auxiliary classifier.
      dtype: type of the computation. Parameters and running statistics are float32, or float64 where dtype is float64.
      bn_virtual_batch_size: number of images that batch normalisation takes its statistics over; 0 for all.
      stochastic_depth_rate: share of the images that skip the last residual block in training, 0 <= rate < 1; it rises
        linearly from 0 at the first block. Networks without residual blocks ignore it.
      seed: seed for the initial weights, at least 0.
      abstract: whether to leave the variables as jax.ShapeDtypeStruct, which takes milliseconds.

    Raises:
      ValueError: if the name is unknown or an option is out of range.
    """
    entry = get_entry(name)
    for option, value in {"image_size": image_size, "num_classes": num_classes, "channels": channels}.items():
        if value is not None and value < 1:
            raise ValueError(f"{option}={value} is too small; choose at least 1")
    num_classes = num_classes or entry.num_classes
    dropout_rate = entry.dropout_rate if dropout_rate is None else dropout_rate
    model = entry.build(num_classes=num_classes, channels=channels or entry.channels, dropout_rate=dropout_rate)
    if image_size:
        model.set_image_size(image_size)
    if aux_heads:
        model.add_auxiliary_heads(select_stages(name, aux_heads), num_classes, dropout_rate)
    set_stochastic_depth(model, stochastic_depth_rate)
    model.set_attributes(dtype=jnp.dtype(dtype), virtual_batch_size=bn_virtual_batch_size, raise_if_not_found=False)
    if jnp.dtype(dtype) == jnp.float64:
        nnx.update(model, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.state(model)))
    if not abstract:
        nnx.update(model, jax.device_put(initial_values(model, seed)))
    return model
