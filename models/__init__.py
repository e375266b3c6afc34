"""The networks: `create_model` makes each of `REGISTRY` by its name."""

import difflib
import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import (
    alexnet,
    densenet,
    googlenet,
    inception,
    lenet,
    mobilenet,
    nin,
    resnet,
    squeezenet,
    vgg,
    xception,
    zfnet,
)
from models.layers import DropoutKey, dropout_keys, initial_values
from models.network import Network

__all__ = [
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


@dataclass(frozen=True)
class Entry:
    """A network and its natural values.

    Attributes:
      name: what create_model calls it.
      family: the file it comes from.
      build: makes the abstract module from num_classes, channels and dropout_rate.
      paper: who defined it, and when.
      image_size: the side of its images, pixels.
      num_classes: of the data set it was made for.
      channels: of its images.
      dropout_rate: of its classifier.
      aux_heads: the stages that its authors put an auxiliary classifier behind; get_stages says where else they can be.
      torch_names: regular expressions and their replacements that, in turn, make the name in PyTorch's published
        weights of a variable's path; empty where PyTorch has no such network.
      old_torch_names: the same, from names in older files to those of torch_names.
      torch_mean: what those weights want subtracted from each channel of pixels in [0, 1]; torchvision's
        `transform_input` is accounted for.
      torch_std: what they want each channel then divided by.
    """

    name: str
    family: str
    build: Callable[..., Network]
    paper: str
    image_size: int = 224
    num_classes: int = 1000
    channels: int = 3
    dropout_rate: float = 0.0
    aux_heads: tuple[str, ...] = ()
    torch_names: tuple[tuple[str, str], ...] = ()
    old_torch_names: tuple[tuple[str, str], ...] = ()
    torch_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    torch_std: tuple[float, ...] = (0.229, 0.224, 0.225)


# Networks that came from TensorFlow, or were trained as there, see pixels between -1 and 1.
_SYMMETRIC = {"torch_mean": (0.5, 0.5, 0.5), "torch_std": (0.5, 0.5, 0.5)}

_alexnet = partial(Entry, family="alexnet", paper="Krizhevsky 2012", image_size=227, dropout_rate=0.5)
_zfnet = partial(Entry, family="zfnet", paper="Zeiler and Fergus 2013", dropout_rate=0.5)
_nin = partial(Entry, family="nin", paper="Lin 2013", dropout_rate=0.5)
_vgg = partial(Entry, family="vgg", paper="Simonyan and Zisserman 2014", dropout_rate=0.5)
_googlenet = partial(
    Entry,
    family="googlenet",
    paper="Szegedy 2014",
    dropout_rate=0.4,
    aux_heads=googlenet.AUX_HEADS,
    torch_names=googlenet.TORCH_NAMES,
    **_SYMMETRIC,
)
_inception = partial(Entry, family="inception", paper="Szegedy 2016", image_size=299, dropout_rate=0.2, **_SYMMETRIC)
_resnet = partial(Entry, family="resnet", paper="He 2015", torch_names=resnet.TORCH_NAMES)
_cifar_resnet = partial(_resnet, image_size=32, num_classes=10, torch_names=resnet.CIFAR_TORCH_NAMES)
# No names: timm's pool before the first normalisation, ours, as the authors', after it and ReLU. That is the same only
# where no scale is negative, and nothing keeps trained ones from it.
_resnet_v2 = partial(Entry, family="resnet", paper="He 2016")
_densenet = partial(Entry, family="densenet", paper="Huang 2016")
_squeezenet = partial(Entry, family="squeezenet", paper="Iandola 2016", dropout_rate=0.5)
_mobilenet = partial(
    Entry, family="mobilenet", paper="Howard 2017", dropout_rate=0.001, torch_names=mobilenet.TORCH_NAMES, **_SYMMETRIC
)

_IMAGENET_REPEATS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _imagenet_build(depth: int, basic: type[nnx.Module], bottleneck: type[nnx.Module], **options: Any) -> Callable:
    """Basic blocks in the networks of 18 and 34 layers, bottlenecks in the deeper ones."""
    block = basic if depth < 50 else bottleneck
    return partial(resnet.ResNet, block, _IMAGENET_REPEATS[depth], **options)


def _cifar_build(depth: int, shortcut: str | None, block: type[nnx.Module] = resnet.BasicBlock) -> Callable:
    """Three stages of n blocks each: 6n + 2 layers, or 9n + 2 with bottlenecks."""
    layers = 2 if block.expansion == 1 else 3
    return partial(resnet.ResNet, block, ((depth - 2) // (3 * layers),) * 3, shortcut=shortcut, cifar=True)


_ENTRIES = (
    Entry("lenet5", "lenet", lenet.LeNet5, "LeCun 1998", image_size=32, num_classes=10, channels=1),
    _alexnet("alexnet", build=alexnet.AlexNet),
    _alexnet("alexnet_ungrouped", build=partial(alexnet.AlexNet, groups=1)),
    _alexnet("alexnet_no_lrn", build=partial(alexnet.AlexNet, local_response_norm=False)),
    _alexnet(
        "alexnet_owt",
        build=alexnet.AlexNetOneWeirdTrick,
        paper="Krizhevsky 2014",
        image_size=224,
        torch_names=alexnet.TORCH_NAMES,
    ),
    _zfnet("zfnet", build=zfnet.ZFNet),
    _zfnet("zfnet_wide", build=partial(zfnet.ZFNet, widths=(512, 1024, 512))),
    _nin("nin", build=nin.NIN),
    _nin("nin_cifar", build=nin.CIFARNIN, image_size=32, num_classes=10),
    *(
        _vgg(
            f"{name}{'_bn' * batch_norm}",
            build=partial(vgg.VGG, configuration, batch_norm),
            torch_names=vgg.torch_names(configuration, batch_norm),
        )
        for batch_norm in (False, True)
        for name, configuration in (("vgg11", "A"), ("vgg13", "B"), ("vgg16", "D"), ("vgg19", "E"))
    ),
    _vgg("vgg16_c", build=partial(vgg.VGG, "C", False)),
    _googlenet("googlenet", build=googlenet.GoogLeNet),
    _googlenet("googlenet_no_lrn", build=partial(googlenet.GoogLeNet, local_response_norm=False)),
    _googlenet("googlenet_naive", build=partial(googlenet.GoogLeNet, naive=True)),
    _googlenet("googlenet_bn", build=partial(googlenet.GoogLeNet, batch_norm=True)),
    _googlenet(
        "googlenet_bn_3x3",
        build=partial(googlenet.GoogLeNet, batch_norm=True, torchvision=True),
        dropout_rate=0.2,
    ),
    _inception(
        "inception_v3",
        build=inception.InceptionV3,
        paper="Szegedy 2015",
        dropout_rate=0.5,
        aux_heads=inception.AUX_HEADS,
        torch_names=inception.TORCH_NAMES,
    ),
    _inception("inception_v4", build=inception.InceptionV4, torch_names=inception.V4_TORCH_NAMES),
    _inception(
        "inception_resnet_v2",
        build=partial(inception.InceptionV4, layers=inception.INCEPTION_RESNET_V2_STAGES),
        torch_names=inception.INCEPTION_RESNET_V2_TORCH_NAMES,
    ),
    *(
        _resnet(f"resnet{depth}", build=_imagenet_build(depth, resnet.BasicBlock, resnet.Bottleneck))
        for depth in _IMAGENET_REPEATS
    ),
    *(
        _resnet(f"resnet{depth}_v1", build=_imagenet_build(depth, resnet.BasicBlock, resnet.BottleneckV1))
        for depth in (50, 101, 152)
    ),
    *(
        _resnet_v2(
            f"resnet{depth}_v2",
            build=_imagenet_build(depth, resnet.PreActivationBlock, resnet.PreActivationBottleneck),
        )
        for depth in _IMAGENET_REPEATS
    ),
    *(
        _resnet(
            f"resnet34_{option.lower()}",
            build=_imagenet_build(34, resnet.BasicBlock, resnet.Bottleneck, shortcut=option),
        )
        for option in ("A", "C")
    ),
    *(
        _resnet(f"plain{depth}", build=_imagenet_build(depth, resnet.BasicBlock, resnet.Bottleneck, shortcut=None))
        for depth in (18, 34)
    ),
    *(_cifar_resnet(f"resnet{depth}", build=_cifar_build(depth, "A")) for depth in (20, 32, 44, 56, 110)),
    *(_cifar_resnet(f"plain{depth}", build=_cifar_build(depth, None)) for depth in (20, 32, 44, 56)),
    _resnet_v2("resnet110_v2", build=_cifar_build(110, "A", resnet.PreActivationBlock), image_size=32, num_classes=10),
    _resnet_v2(
        "resnet164_v2", build=_cifar_build(164, "B", resnet.PreActivationBottleneck), image_size=32, num_classes=10
    ),
    *(
        _densenet(
            f"densenet{depth}",
            build=partial(densenet.DenseNet, layers),
            torch_names=densenet.TORCH_NAMES,
            old_torch_names=densenet.OLD_TORCH_NAMES,
        )
        for depth, layers in ((121, (6, 12, 24, 16)), (169, (6, 12, 32, 32)), (201, (6, 12, 48, 32)))
    ),
    *(
        _densenet(
            name,
            build=partial(densenet.DenseNet, (layers,) * 3, growth=12, bottleneck=bottleneck, cifar=True),
            image_size=32,
            num_classes=10,
        )
        for name, layers, bottleneck in (("densenet40_k12", 12, False), ("densenet_bc100_k12", 16, True))
    ),
    *(
        _squeezenet(
            f"squeezenet{version.replace('.', '_')}",
            build=partial(squeezenet.SqueezeNet, version),
            torch_names=squeezenet.torch_names(version),
        )
        for version in squeezenet.POOLED
    ),
    _mobilenet("mobilenet_v1", build=mobilenet.MobileNet),
    _mobilenet("mobilenet_v1_keras", build=partial(mobilenet.MobileNet, keras=True)),
    *(
        _mobilenet(
            f"mobilenet_v1_{round(100 * multiplier):03}",
            build=partial(mobilenet.MobileNet, width_multiplier=multiplier),
        )
        for multiplier in (0.75, 0.5, 0.25)
    ),
    Entry(
        "xception",
        "xception",
        xception.Xception,
        "Chollet 2016",
        image_size=299,
        dropout_rate=0.5,
        torch_names=xception.TORCH_NAMES,
        **_SYMMETRIC,
    ),
)
REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def get_entry(name: str) -> Entry:
    """Returns the registry's entry of that name; raises ValueError, with the nearest name, if there is none."""
    if name not in REGISTRY:
        nearest = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0)[0]
        raise ValueError(f"unknown model {name!r}; did you mean {nearest!r}?")
    return REGISTRY[name]


@functools.cache
def get_stages(name: str) -> dict[str, int]:
    """Returns the stages of a network, in depth order, and how many features their maps have.

    An auxiliary classifier can be behind each of them.
    """
    entry = get_entry(name)
    model = entry.build(num_classes=entry.num_classes, channels=entry.channels, dropout_rate=0.0)
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, entry.image_size, entry.image_size, entry.channels), jnp.float32)
    maps = jax.eval_shape(  # an ordered dict, as jax sorts a dict's keys
        lambda state, images: OrderedDict(nnx.merge(graph, state).stages(images)), nnx.to_pure_dict(state), images
    )
    return {stage: shape.shape[-1] for stage, shape in maps.items()}


def select_stages(name: str, stages: tuple[str, ...]) -> dict[str, int]:
    """Returns the named entries of get_stages; raises ValueError, with the nearest name, for an unknown one."""
    features = get_stages(name)
    for stage in stages:
        if stage not in features:
            nearest = difflib.get_close_matches(stage, features, n=1, cutoff=0)[0]
            raise ValueError(f"aux_heads: {name} has no stage {stage!r}; did you mean {nearest!r}?")
    return {stage: width for stage, width in features.items() if stage in stages}


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    channels: int | None = None,
    dropout_rate: float | None = None,
    aux_heads: tuple[str, ...] = (),
    dtype: Any = jnp.float32,
    bn_virtual_batch_size: int = 0,
    seed: int = 0,
    abstract: bool = False,
) -> Network:
    """Makes a network, in evaluation mode; `.train()` puts it in training mode.

    Called on floats (N, H, W, C), of its own size or another that is large enough, it returns the logits
    (N, num_classes), at least float32, or with auxiliary heads (logits, [auxiliary logits in depth order]). None stands
    for the registry's value.

    Args:
      name: a name of REGISTRY.
      num_classes: how many classes.
      channels: of the images.
      dropout_rate: of the classifier, 0 <= rate < 1; 0 also turns off that of auxiliary ones, else 0.7.
      aux_heads: stages, of get_stages, behind which an auxiliary classifier is built.
      dtype: that of the computation. Parameters and running statistics are float32, or float64 where dtype is.
      bn_virtual_batch_size: over how many images batch normalisation takes its statistics; 0 for all.
      seed: of the initial values, at least 0.
      abstract: whether to leave the variables as jax.ShapeDtypeStruct; it costs milliseconds.

    Raises:
      ValueError: if an option has no such value.
    """
    entry = get_entry(name)
    for option, value in {"num_classes": num_classes, "channels": channels}.items():
        if value is not None and value < 1:
            raise ValueError(f"{option}={value} is too small; choose at least 1")
    num_classes = num_classes or entry.num_classes
    dropout_rate = entry.dropout_rate if dropout_rate is None else dropout_rate
    model = entry.build(num_classes=num_classes, channels=channels or entry.channels, dropout_rate=dropout_rate)
    if aux_heads:
        model.add_auxiliary_heads(select_stages(name, aux_heads), num_classes, dropout_rate)
    model.set_attributes(dtype=jnp.dtype(dtype), virtual_batch_size=bn_virtual_batch_size, raise_if_not_found=False)
    if jnp.dtype(dtype) == jnp.float64:
        nnx.update(model, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.state(model)))
    if not abstract:
        nnx.update(model, jax.device_put(initial_values(model, seed)))
    return model
