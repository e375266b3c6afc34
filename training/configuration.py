"""Resolves the options: replaces None by the default of the network or of the dataset, and checks every option."""

import bisect
import math
import re
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import models
from configs import base
from configs._option import text_of
from input_pipeline import crops
from input_pipeline.files import local_path
from input_pipeline.remote import check_place
from input_pipeline.repetition import neighbour_distance
from input_pipeline.training_sizes import unused_sizes
from training import fine_tuning, published_weights
from training.inference import make_apply
from training.platform import loops_are_fast
from training.state import make_model


def apply_typed(config: ConfigDict, typed: Mapping[str, object]) -> None:
    """Checks the typed options, and resets options of the recipe that a typed option replaces to their defaults.

    Args:
      config: the recipe with the typed options in it; changed in place.
      typed: the options of the command line and their values.

    Raises:
      ValueError: if a typed value is invalid, or has no effect because an option that it needs is not set.
    """
    for name in typed:
        base.OPTIONS[name].check(name, config[name])
    for name in typed:
        replaced = base.OPTIONS[name].replaces
        if replaced and typed[name] not in (None, ()) and replaced not in typed:
            with config.unlocked():
                config[replaced] = base.OPTIONS[replaced].default
    for name, value in typed.items():
        need = base.OPTIONS[name].unmet_need(config)
        if need:
            other, needed = re.split("=| or ", need)[0], need.replace("|", " or ")
            found = text_of(config[other]) or "empty"
            raise ValueError(
                f"{name}={text_of(value)} has no effect: it needs {needed}, but {other} is {found}; "
                f"set {needed} too, or leave {name} out"
            )


def resolve_network(config: ConfigDict, typed: Collection[str] | None = ()) -> ConfigDict:
    """Returns a copy in which every option has been checked, and the options of the network have their values.

    If image_size, channels or dropout_rate is None, it gets the network's own value. aux_heads becomes the heads whose
    weight is not zero, and aux_weight becomes their weights. If the run starts from published weights, their settings
    of the images replace those of the recipe, but not those that were typed.

    Args:
      config: options as typed.
      typed: names of the options that were given on the command line; options that this network ignores are refused.
        None: not known, as for the config of a workdir; the settings of published weights then replace only options
        that are None.

    Raises:
      ValueError: if an option is out of range, or does not fit the network.
    """
    config = config.copy_and_resolve_references()
    for name, option in base.OPTIONS.items():
        option.check(name, config[name])
    if published_weights.is_published(config.init_from):
        weights = published_weights.find(config.init_from, config.model)
        chosen = {name for name in config if config[name] is not None} if typed is None else typed
        published_weights.apply_settings(config, weights, chosen)
    for name in ("init_from", "teacher", "data_dir"):
        check_place(config[name] or "")
    for name in ("compilation_cache_dir", "remote_cache_dir"):
        local_path(config[name])
    if config.dataset.startswith("image_folder:"):
        check_place(config.dataset.removeprefix("image_folder:"))
    entry = models.get_entry(config.model)
    for option in ("image_size", "channels", "dropout_rate"):
        if config[option] is None:
            config[option] = getattr(entry, option)
    config.eval_batch_size = config.eval_batch_size or config.batch_size
    config.steps_per_dispatch = (config.steps_per_dispatch or 20) if loops_are_fast() else 1
    for option in ("mean", "std"):
        if len(config[option]) not in (1, config.channels):
            counts = "1" if config.channels == 1 else f"1 or {config.channels}"
            raise ValueError(f"{option}={config[option]} has {len(config[option])} values; give {counts}")
    _resolve_aux_heads(config, entry)
    fine_tuning.frozen_paths(config)  # refuses unknown names
    check_image_size(config, config)
    _check_layers(config, typed or ())
    return config


def resolve_run(config: ConfigDict, num_classes: int, num_images: int, typed: Collection[str] = ()) -> ConfigDict:
    """Returns a copy in which num_classes, num_steps and num_epochs have their values too.

    Args:
      config: with the network's options resolved.
      num_classes: number of the dataset's classes.
      num_images: number of training images.
      typed: names of the options that were given on the command line; those without effect in this run are refused.

    Raises:
      ValueError: if options contradict each other, the dataset or the devices.
    """
    config = config.copy_and_resolve_references()
    _check_combinations(config)
    _check_effects(config, typed)
    _check_batches(config)
    config.num_classes = num_classes if config.num_classes is None else config.num_classes
    if config.num_classes < num_classes:
        raise ValueError(f"num_classes={config.num_classes} is too few: {config.dataset} has {num_classes} classes")
    _check_targets(config)
    if config.num_steps is None:
        config.num_steps = max(math.ceil(config.num_epochs * num_images / config.batch_size), 1)
        base.OPTIONS["num_steps"].check("num_epochs is too large: num_steps", config.num_steps)
    else:
        config.num_epochs = config.num_steps * config.batch_size / num_images
    if config.warmup_epochs > config.num_epochs:
        raise ValueError(
            f"warmup_epochs={config.warmup_epochs:g} is longer than the run of {config.num_epochs:g} epochs; shorten it"
        )
    if "train_sizes" in typed and (unused := unused_sizes(config, num_images / config.batch_size)):
        raise ValueError(
            f"train_sizes={config.train_sizes} has no step for {', '.join(map(str, unused))} pixels in the run of "
            f"{config.num_epochs:g} epochs; let the sizes begin earlier, or leave some out"
        )
    return config


def _resolve_aux_heads(config: ConfigDict, entry: models.Entry) -> None:
    weights, heads = config.aux_weight, tuple(config.aux_heads) or entry.aux_heads
    if any(weights) and not heads:
        raise ValueError(
            f"aux_weight={weights} has no effect: {entry.name} has no auxiliary heads of its own; "
            f"name stages in aux_heads, of {', '.join(models.get_stages(entry.name))}"
        )
    if len(weights) not in (1, len(heads)) and any(weights):
        raise ValueError(
            f"aux_weight={weights} has {len(weights)} weights for {len(heads)} heads {heads}; give 1 or {len(heads)}"
        )
    weights = dict(zip(heads, weights * len(heads) if len(weights) == 1 else weights, strict=False))
    ordered = models.select_stages(entry.name, heads) if config.aux_heads else heads  # the order of the logits
    used = [(head, float(weights[head])) for head in ordered if weights.get(head)]
    config.aux_heads = tuple(head for head, _ in used)
    config.aux_weight = tuple(weight for _, weight in used)


def check_image_size(network: ConfigDict, config: ConfigDict) -> None:
    """Checks that a network takes images of a run's sizes, by evaluating the shapes of its maps.

    A formula for the smallest size of every network does not exist.

    Args:
      network: options of the network, resolved: the run's own or its teacher.
      config: of the run: image_size, train_sizes.

    Raises:
      ValueError: if a size is too small.
    """
    model = make_model(network, training=False)
    variables = [nnx.to_pure_dict(part) for part in nnx.state(model, nnx.Param, nnx.BatchStat)]
    apply = make_apply(network, model)

    def error(size: int) -> str | None:
        images = jax.ShapeDtypeStruct((1, size, size, network.channels), jnp.dtype(network.dtype))
        try:
            with jax.enable_x64(network.dtype == "float64"):
                jax.eval_shape(apply, *variables, images)
        except ValueError as caught:
            return str(caught)
        return None

    for option, size in [("image_size", config.image_size), *(("train_sizes", size) for _, size in config.train_sizes)]:
        if reason := error(size):
            native = models.get_entry(network.model).image_size
            smallest = bisect.bisect_left(range(1, native), True, key=lambda size: error(size) is None) + 1
            raise ValueError(f"{option}={size} does not fit {network.model} ({reason}); use at least {smallest}")


def _check_layers(config: ConfigDict, typed: Collection[str]) -> None:
    """Raises ValueError if an option was typed that only concerns layers that the network does not have."""
    needed = {
        "dropout_rate": (models.DropoutKey, "dropout layer"),
        "bn_virtual_batch_size": (nnx.BatchStat, "batch norm layer"),
        "stochastic_depth_rate": (models.DropoutKey, "residual block"),
    }
    for name in needed.keys() & set(typed):
        variable, layer = needed[name]
        probe = config.copy_and_resolve_references()
        probe.dropout_rate = probe.stochastic_depth_rate = 0.0
        if variable is models.DropoutKey:
            probe[name] = 0.5
        if not nnx.to_flat_state(nnx.state(make_model(probe, training=True), variable)).paths:
            raise ValueError(f"{name}={config[name]} has no effect: {config.model} has no {layer}; leave {name} out")


def _check_effects(config: ConfigDict, typed: Collection[str]) -> None:
    """Raises ValueError if an option was typed that another option deprives of its effect."""
    if "image_size" in typed and config.train_sizes and "train_sizes" not in typed:
        raise ValueError(
            f"image_size={config.image_size} alone changes the evaluation only: training has "
            f"train_sizes={config.train_sizes}; give train_sizes too"
        )
    if config.teacher and config.teacher_weight == 1 and not config.aux_weight:
        for name in ("loss", "label_smoothing", "target_threshold"):
            if name in typed:
                raise ValueError(
                    f"{name}={config[name]} has no effect: with teacher_weight=1 only the teacher counts; "
                    f"give a smaller teacher_weight, or leave {name} out"
                )


def _check_targets(config: ConfigDict) -> None:
    share = config.label_smoothing / config.num_classes
    low, high = share, 1 - config.label_smoothing + share
    if config.target_threshold and not low <= config.target_threshold < high:
        raise ValueError(
            f"target_threshold={config.target_threshold} makes all targets equal: with "
            f"label_smoothing={config.label_smoothing} they are {low:.3g} and {high:.3g}; give a threshold between"
        )


def _check_combinations(config: ConfigDict) -> None:
    if config.color_jitter[3] > 0.5:
        raise ValueError(f"color_jitter={config.color_jitter} is out of range; give a hue of at most 0.5")
    if config.nesterov and not config.momentum:
        raise ValueError("nesterov needs momentum, which is 0; give more, or leave nesterov out")
    if config.num_steps is None and config.num_epochs == 0:
        raise ValueError("num_epochs=0 trains nothing; give more")
    if config.warmup_epochs and config.warmup_shape == "constant" and not config.warmup_learning_rate:
        raise ValueError("warmup_shape=constant at warmup_learning_rate=0 would train nothing; give a rate above 0")
    if config.step_epochs and config.step_steps:
        raise ValueError("step_epochs and step_steps are both given; give one of the two")
    if config.cache and config.interpolation == "bicubic" and config.train_crop in ("random_resized", "scale_jitter"):
        raise ValueError(
            f"interpolation=bicubic cannot resize the crops of train_crop={config.train_crop} on the device; "
            "leave cache out, or give interpolation=bilinear"
        )
    if config.cache and config.train_sizes:
        raise ValueError(
            f"train_sizes needs batches from the host, but cache is {config.cache}; leave one of the two out"
        )
    crops.check_crops(config)


def smallest_batch(config: ConfigDict) -> int:
    """Returns a small valid batch_size, every multiple of which is valid too."""
    pairs = 2 if config.mixup_alpha or config.cutmix_alpha else 1
    size = jax.device_count() * math.lcm(config.accumulation_steps * max(config.bn_virtual_batch_size, 1), pairs)
    least = 4 * config.repeated_augmentation if config.repeated_augmentation > 1 else 1
    return size * math.ceil(least / size)


def _check_batches(config: ConfigDict) -> None:
    devices, pieces = jax.device_count(), jax.device_count() * config.accumulation_steps
    if config.batch_size % pieces:
        cut = f"{devices} devices" + (f" times {config.accumulation_steps} micro-batches" if pieces > devices else "")
        raise ValueError(f"batch_size={config.batch_size} cannot be shared by {cut}; give a multiple of {pieces}")
    if (config.mixup_alpha or config.cutmix_alpha) and config.batch_size // devices % 2:
        raise ValueError(
            f"batch_size={config.batch_size} gives each of {devices} devices {config.batch_size // devices} images, "
            f"which mixup_alpha and cutmix_alpha cannot pair; give a multiple of {2 * devices}"
        )
    if config.eval_batch_size % devices:
        raise ValueError(
            f"eval_batch_size={config.eval_batch_size} cannot be shared by {devices} devices; "
            f"give a multiple of {devices}"
        )
    copies = config.repeated_augmentation
    if copies > 1 and neighbour_distance(config.batch_size, copies) == 1:
        raise ValueError(
            f"batch_size={config.batch_size} is too small for repeated_augmentation={copies}; "
            f"give at least {4 * copies}"
        )
    share = config.batch_size // pieces
    if config.bn_virtual_batch_size and share % config.bn_virtual_batch_size:
        raise ValueError(
            f"bn_virtual_batch_size={config.bn_virtual_batch_size} does not divide the {share} images that a device "
            f"takes at once; give a divisor of {share}"
        )
