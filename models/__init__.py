"""The networks: `create_model` makes each of `REGISTRY` by its name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import alexnet, googlenet, lenet, resnet, vgg
from models.layers import DropoutKey, dropout_keys, initial_values

__all__ = ["REGISTRY", "DropoutKey", "Entry", "create_model", "dropout_keys", "get_entry", "initial_values"]


@dataclass(frozen=True)
class Entry:
    """A network and its natural values.

    Attributes:
      name: what create_model calls it.
      family: the file it comes from.
      build: makes the abstract module from num_classes, channels, dropout_rate and, where it has some, aux_heads.
      paper: who defined it, and when.
      image_size: the side of its images, pixels.
      num_classes: of the data set it was made for.
      channels: of its images.
      dropout_rate: of its classifier.
      aux_heads: the stages that can have an auxiliary classifier behind them.
      torch_names: regular expressions and their replacements that, in turn, make the name in PyTorch's published
        weights of a variable's path; empty where PyTorch has no such network.
    """

    name: str
    family: str
    build: Callable[..., nnx.Module]
    paper: str
    image_size: int = 224
    num_classes: int = 1000
    channels: int = 3
    dropout_rate: float = 0.0
    aux_heads: tuple[str, ...] = ()
    torch_names: tuple[tuple[str, str], ...] = ()


_alexnet = partial(Entry, family="alexnet", paper="Krizhevsky 2012", image_size=227, dropout_rate=0.5)
_vgg = partial(Entry, family="vgg", paper="Simonyan and Zisserman 2014", dropout_rate=0.5)
_googlenet = partial(
    Entry,
    family="googlenet",
    paper="Szegedy 2014",
    dropout_rate=0.4,
    aux_heads=googlenet.AUX_HEADS,
    torch_names=googlenet.TORCH_NAMES,
)
_resnet = partial(Entry, family="resnet", paper="He 2015", torch_names=resnet.TORCH_NAMES)
_cifar_resnet = partial(_resnet, image_size=32, num_classes=10, torch_names=resnet.CIFAR_TORCH_NAMES)


def _cifar_build(depth: int, shortcut: type[nnx.Module] | None) -> Callable[..., nnx.Module]:
    """Three stages of n blocks each: 6n + 2 layers."""
    repeats = ((depth - 2) // 6,) * 3
    return partial(resnet.ResNet, resnet.BasicBlock, repeats, shortcut=shortcut, cifar=True)


_ENTRIES = (
    Entry("lenet5", "lenet", lenet.LeNet5, "LeCun 1998", image_size=32, num_classes=10, channels=1),
    _alexnet("alexnet", build=alexnet.AlexNet),
    _alexnet("alexnet_ungrouped", build=partial(alexnet.AlexNet, groups=1)),
    _alexnet(
        "alexnet_owt",
        build=alexnet.AlexNetOneWeirdTrick,
        paper="Krizhevsky 2014",
        image_size=224,
        torch_names=alexnet.TORCH_NAMES,
    ),
    *(
        _vgg(
            f"vgg{depth}{'_bn' * batch_norm}",
            build=partial(vgg.VGG, depth, batch_norm),
            torch_names=vgg.torch_names(depth, batch_norm),
        )
        for batch_norm in (False, True)
        for depth in vgg.STAGES
    ),
    _googlenet("googlenet", build=googlenet.GoogLeNet),
    _googlenet("googlenet_bn", build=partial(googlenet.GoogLeNet, batch_norm=True)),
    _googlenet(
        "googlenet_bn_3x3",
        build=partial(googlenet.GoogLeNet, batch_norm=True, torchvision=True),
        dropout_rate=0.2,
    ),
    *(
        _resnet(f"resnet{depth}", build=partial(resnet.ResNet, block, repeats))
        for depth, block, repeats in (
            (18, resnet.BasicBlock, (2, 2, 2, 2)),
            (34, resnet.BasicBlock, (3, 4, 6, 3)),
            (50, resnet.Bottleneck, (3, 4, 6, 3)),
            (101, resnet.Bottleneck, (3, 4, 23, 3)),
            (152, resnet.Bottleneck, (3, 8, 36, 3)),
        )
    ),
    *(
        _cifar_resnet(f"resnet{depth}", build=_cifar_build(depth, resnet.ZeroPadding))
        for depth in (20, 32, 44, 56, 110)
    ),
    *(_cifar_resnet(f"plain{depth}", build=_cifar_build(depth, None)) for depth in (20, 32, 44, 56)),
)
REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def get_entry(name: str) -> Entry:
    """Returns the registry's entry of that name; raises ValueError, with the nearest name, if there is none."""
    if name not in REGISTRY:
        nearest = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0)[0]
        raise ValueError(f"unknown model {name!r}; did you mean {nearest!r}?")
    return REGISTRY[name]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    dropout_rate: float | None = None,
    aux_heads: tuple[str, ...] = (),
    dtype: Any = jnp.float32,
    bn_virtual_batch_size: int = 0,
    seed: int = 0,
    abstract: bool = False,
) -> nnx.Module:
    """Makes a network, in evaluation mode; `.train()` puts it in training mode.

    Called on floats (N, H, W, C) it returns the logits (N, num_classes), at least float32, or with auxiliary heads
    (logits, [auxiliary logits in depth order]). None stands for the registry's value.

    Args:
      name: a name of REGISTRY.
      num_classes: how many classes.
      image_size: the side of the images, pixels, at least 1. It changes no parameter, and other sizes run too: one
        that is too small raises a ValueError where the network is called.
      channels: of the images.
      dropout_rate: of the classifier, 0 <= rate < 1; 0 also turns off that of GoogLeNet's auxiliary ones, else 0.7.
      aux_heads: the stages behind which an auxiliary classifier is built.
      dtype: that of the computation. Parameters and running statistics are float32, or float64 where dtype is.
      bn_virtual_batch_size: over how many images batch normalisation takes its statistics; 0 for all.
      seed: of the initial values, at least 0.
      abstract: whether to leave the variables as jax.ShapeDtypeStruct; it costs milliseconds.

    Raises:
      ValueError: if an option has no such value.
    """
    entry = get_entry(name)
    sizes = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    for option, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{option}={value} is too small; choose at least 1")
    for head in aux_heads:
        if head not in entry.aux_heads:
            known = f"choose of {', '.join(entry.aux_heads)}" if entry.aux_heads else "it has none: leave it empty"
            raise ValueError(f"aux_heads: {name} has no auxiliary head {head!r}; {known}")
    model = entry.build(
        num_classes=num_classes or entry.num_classes,
        channels=channels or entry.channels,
        dropout_rate=entry.dropout_rate if dropout_rate is None else dropout_rate,
        **({"aux_heads": tuple(aux_heads)} if entry.aux_heads else {}),
    )
    model.set_attributes(dtype=jnp.dtype(dtype), virtual_batch_size=bn_virtual_batch_size, raise_if_not_found=False)
    if jnp.dtype(dtype) == jnp.float64:
        nnx.update(model, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.state(model)))
    if not abstract:
        nnx.update(model, jax.device_put(initial_values(model, seed)))
    return model
