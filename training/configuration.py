"""From the options as typed to the options as run: natural values filled in, everything checked, the workdir named."""

import bisect
import difflib
import json
import math
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import models
from configs import base
from input_pipeline import crops
from training.metrics import write_atomically
from training.state import make_model
from training.step import make_apply

# Options that change how fast or how closely watched a run is, but not its result.
NOT_OF_THE_RESULT = (
    "data_dir",
    "decode_threads",
    "prefetch_batches",
    "steps_per_dispatch",
    "on_bad_image",
    "max_image_pixels",
    "eval_batch_size",
    "log_every_steps",
    "log_gradient_norms",
    "evaluate_every_epochs",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "keep_best",
    "compilation_cache_dir",
)


def resolve_network(config: ConfigDict) -> ConfigDict:
    """Returns a copy in which the options of the network have their values.

    image_size, channels and dropout_rate become the network's own where they are None; aux_heads becomes the heads
    whose weight is not zero, and aux_weight their weights.

    Raises:
      ValueError: if an option does not fit the network.
    """
    config = config.copy_and_resolve_references()
    entry = models.get_entry(config.model)
    _check_numbers(config)
    for option in ("image_size", "channels", "dropout_rate"):
        if config[option] is None:
            config[option] = getattr(entry, option)
    if config.channels not in (1, 3):
        raise ValueError(f"channels={config.channels} is not supported; choose 1 (grey) or 3 (colour)")
    if config.dtype not in ("float32", "bfloat16", "float64"):
        raise ValueError(f"dtype={config.dtype!r} is unknown; choose float32, bfloat16 or float64")
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    config.eval_batch_size = config.eval_batch_size or config.batch_size
    if config.steps_per_dispatch < 0:
        raise ValueError(f"steps_per_dispatch={config.steps_per_dispatch} is out of range; give at least 0")
    # Inside a loop XLA makes convolutions' weight gradients for a CPU that are 30 times slower.
    config.steps_per_dispatch = 1 if jax.default_backend() == "cpu" else config.steps_per_dispatch or 20
    for option in ("mean", "std"):
        if len(config[option]) not in (1, config.channels):
            counts = "1" if config.channels == 1 else f"1 or {config.channels}"
            raise ValueError(f"{option}={config[option]} has {len(config[option])} values; give {counts}")
    _resolve_aux_heads(config, entry)
    _check_image_size(config)
    return config


def resolve_run(config: ConfigDict, num_classes: int, num_images: int) -> ConfigDict:
    """Returns a copy that also has the classes of the dataset and the length of the run.

    Args:
      config: with the network's options resolved.
      num_classes: the dataset's.
      num_images: the training images.

    Raises:
      ValueError: if options contradict each other, the dataset or the devices.
    """
    config = config.copy_and_resolve_references()
    _check_ranges(config)
    _check_batches(config)
    config.num_classes = num_classes if config.num_classes is None else config.num_classes
    if config.num_classes < num_classes:
        raise ValueError(f"num_classes={config.num_classes} is too few: {config.dataset} has {num_classes} classes")
    if config.num_steps is None:
        config.num_steps = max(math.ceil(config.num_epochs * num_images / config.batch_size), 1)
    else:
        config.num_epochs = config.num_steps * config.batch_size / num_images
    if config.warmup_epochs and config.warmup_shape == "constant" and not config.warmup_learning_rate:
        raise ValueError("warmup_shape=constant at warmup_learning_rate=0 would train nothing; give a rate above 0")
    if config.warmup_epochs > config.num_epochs:
        raise ValueError(
            f"warmup_epochs={config.warmup_epochs:g} is longer than the run of {config.num_epochs:g} epochs; shorten it"
        )
    if config.step_epochs and config.step_steps:
        raise ValueError("step_epochs and step_steps are both given; give one of the two")
    return config


def default_workdir(config_path: str, overrides: dict[str, Any]) -> pathlib.Path:
    """Returns runs/ + the config's name + the overrides that change the result, as in runs/resnet50,model=googlenet."""
    parts = [pathlib.Path(config_path).stem]
    for option, value in overrides.items():
        if option not in NOT_OF_THE_RESULT:
            text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
            parts.append(f"{option}={text}".replace(os.sep, "_"))
    return pathlib.Path("runs") / ",".join(parts)


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Checks that a run of this config may write into the workdir, without writing anything.

    Raises:
      ValueError: if the workdir belongs to a run of another config.
      OSError: if it can't be written.
    """
    nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise PermissionError(f"workdir {workdir} cannot be written ({nearest} forbids it); choose another --workdir")
    if not (workdir / "config.json").exists():
        if (workdir / "checkpoints").exists():
            raise ValueError(f"workdir {workdir} has checkpoints but no config.json; choose another --workdir")
        return
    theirs, ours = (json.loads(options.to_json()) for options in (read_config(workdir), config))
    # num_epochs is only a way to num_steps, which convert.py leaves open: it does not know the dataset's size.
    ours |= {"num_epochs": theirs["num_epochs"]} | ({"num_steps": None} if theirs["num_steps"] is None else {})
    differing = [
        f"{option}={theirs.get(option)!r}, not {ours[option]!r}"
        for option in ours
        if option not in NOT_OF_THE_RESULT and theirs.get(option) != ours[option]
    ]
    if differing:
        raise ValueError(f"workdir {workdir} belongs to a run with {'; '.join(differing)}; choose another --workdir")


def write_config(workdir: pathlib.Path, config: ConfigDict, class_names: tuple[str, ...]) -> None:
    """Writes config.json: all options resolved, the classes' names, versions, hardware and git commit.

    Classes without a name, where num_classes exceeds the dataset's, are called by their number.
    """
    if (workdir / "config.json").exists() and read_config(workdir).to_dict() == config.to_dict():
        return  # a resumed run: where it began is what counts
    spare = tuple(map(str, range(len(class_names), config.num_classes)))
    options, names = json.loads(config.to_json()), class_names + spare
    content = {"config": options, **describe_environment(), "class_names": names}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be made: {error.strerror}; choose another --workdir") from error
    write_atomically(workdir / "config.json", json.dumps(content, indent=2) + "\n")


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Returns the resolved options of a workdir.

    Raises:
      FileNotFoundError: if the folder is none.
      ValueError: if its config.json is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} is no workdir: it has no config.json; give the folder that train.py made")
    try:
        # Options that came after the run was made have their defaults, which change nothing.
        options = json.loads(base.get_config().to_json()) | json.loads(path.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or choose another --workdir") from error
    return ConfigDict({name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})


def read_class_names(workdir: pathlib.Path) -> list[str]:
    """Returns the names of a workdir's classes in the order of the logits."""
    return json.loads((pathlib.Path(workdir) / "config.json").read_text())["class_names"]


def describe_environment() -> dict[str, Any]:
    """Returns versions, hardware and git commit, as results and workdirs record them."""
    import importlib.metadata

    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    root = pathlib.Path(__file__).parent.parent
    git = subprocess.run(
        ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True
    )
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in names if _is_installed(name)},
        "hardware": {
            "platform": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
            "cpu_cores": os.cpu_count(),
            "machine": platform.machine(),
        },
        "git_commit": git.stdout.strip() or None,
    }


def nearest_name(name: str, names: list[str]) -> str:
    """Returns '; did you mean X?' for the name nearest to a misspelt one, or ''."""
    matches = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def own_recipe(model: str, config_path: str) -> str | None:
    """Returns the recipe that bears the model's name, alone or after its dataset's, if the run uses another."""
    folder = pathlib.Path(__file__).parent.parent / "configs"
    recipes = [*folder.glob(f"{model}.py"), *sorted(folder.glob(f"*_{model}.py"))]
    if not recipes or pathlib.Path(config_path).stem in [recipe.stem for recipe in recipes]:
        return None
    return f"configs/{recipes[0].name}"


def _is_installed(name: str) -> bool:
    import importlib.metadata

    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _resolve_aux_heads(config: ConfigDict, entry: models.Entry) -> None:
    weights = config.aux_weight
    if not all(isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"aux_weight={weights} is no weight; give one number of at least 0, or one a head: 0.3,0.4")
    # The command line hands a list of bare words over as one.
    heads = tuple(name.strip() for part in config.aux_heads for name in part.split(",")) or entry.aux_heads
    if any(weights) and not heads:
        raise ValueError(
            f"aux_weight={weights} weighs nothing: {entry.name} has no auxiliary heads of its own; "
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


def _check_image_size(config: ConfigDict) -> None:
    """Runs the network abstractly, so that no rule of thumb stands between an image size and the truth."""
    model = make_model(config, training=False)
    variables = [nnx.to_pure_dict(part) for part in nnx.state(model, nnx.Param, nnx.BatchStat)]
    apply = make_apply(config, model)

    def error(size: int) -> str | None:
        images = jax.ShapeDtypeStruct((1, size, size, config.channels), jnp.dtype(config.dtype))
        try:
            jax.eval_shape(apply, *variables, images)
        except ValueError as caught:
            return str(caught)
        return None

    reason = error(config.image_size) if config.image_size > 0 else "there is nothing to see"
    if reason:
        native = models.get_entry(config.model).image_size
        smallest = bisect.bisect_left(range(1, native), True, key=lambda size: error(size) is None) + 1
        raise ValueError(
            f"image_size={config.image_size} does not fit {config.model} ({reason}); use at least {smallest}"
        )


def _check_numbers(config: ConfigDict) -> None:
    """Refuses tuples that hold anything but numbers, or too few or many of them."""
    ranges = ("crop_area", "crop_aspect", "train_resize", "erasing_area", "erasing_aspect")
    for option in ("mean", "std", "step_epochs", "step_steps", "color_jitter", *ranges):
        values = config[option]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise ValueError(f"{option}={values} is not made of numbers; give them with commas: 0.1,0.9")
        if option in ranges and (len(values) != 2 or not 0 < values[0] <= values[1]):
            raise ValueError(f"{option}={values} is no range; give two numbers above 0, the smaller first: 0.1,0.9")
    jitter = config.color_jitter
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise ValueError(
            f"color_jitter={jitter} will not do; give brightness, contrast, saturation and hue, each at least 0, the "
            "hue at most 0.5: 0.4,0.4,0.4,0.1"
        )
    if config.seed < 0 or config.split_seed < 0:
        raise ValueError(f"seed={config.seed}, split_seed={config.split_seed}: one is negative; give at least 0")


def _check_ranges(config: ConfigDict) -> None:
    at_least = {"batch_size": 1, "eval_batch_size": 1, "num_epochs": 0, "warmup_epochs": 0, "weight_decay": 0}
    at_least |= {"gradient_clip_norm": 0, "accumulation_steps": 1, "log_every_steps": 1, "checkpoint_every_steps": 0}
    at_least |= {"keep_checkpoints": 1, "evaluate_every_epochs": 0, "bn_virtual_batch_size": 0, "prefetch_batches": 1}
    at_least |= {"final_learning_rate": 0, "warmup_learning_rate": 0, "decode_threads": 0, "crop_padding": 0}
    at_least |= {"mixup_alpha": 0, "cutmix_alpha": 0, "rand_augment_layers": 1, "steps_per_dispatch": 1}
    at_least |= {"max_image_pixels": 1}
    for option, least in at_least.items():
        if not least <= config[option] < math.inf:
            raise ValueError(f"{option}={config[option]} is out of range; give at least {least}")
    for option in ("label_smoothing", "momentum", "rmsprop_decay", "ema_decay", "dropout_rate"):
        if not 0 <= config[option] < 1:
            raise ValueError(f"{option}={config[option]} is out of range; give at least 0 and less than 1")
    for option, most in {"random_erasing": 1, "rand_augment_magnitude": 30}.items():
        if not 0 <= config[option] <= most:
            raise ValueError(f"{option}={config[option]} is out of range; give 0 to {most}")
    positive = ("learning_rate", "rmsprop_epsilon", "step_factor", "polynomial_power")
    for option in (*positive, "exponential_epochs", "exponential_factor"):
        if not 0 < config[option] < math.inf:
            raise ValueError(f"{option}={config[option]} is out of range; give more than 0")
    if config.nesterov and not config.momentum:
        raise ValueError("nesterov needs momentum, which is 0; give more, or leave nesterov out")
    if config.num_steps is not None and config.num_steps < 1:
        raise ValueError(f"num_steps={config.num_steps} is too small; give at least 1")
    if config.num_steps is None and config.num_epochs == 0:
        raise ValueError("num_epochs=0 trains nothing; give more")
    if not all(np.asarray(config.std) > 0):
        raise ValueError(f"std={config.std} is out of range; give more than 0")
    choices = {
        "optimizer": ("sgd", "rmsprop"),
        "schedule": ("constant", "step", "exponential", "cosine", "polynomial"),
        "train_crop": ("random_resized", "scale_jitter", "pad", "none"),
        "auto_augment": ("", "trivial", "rand"),
        "warmup_shape": ("linear", "constant"),
        "cache": ("", "device"),
        "on_bad_image": ("raise", "skip"),
    }
    for option, names in choices.items():
        if config[option] not in names:
            hint = nearest_name(config[option], list(names))
            raise ValueError(
                f"{option}={config[option]!r} is unknown{hint or '; choose ' + ', '.join(filter(None, names))}"
            )
    crops.check_crops(config)


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
    share = config.batch_size // pieces
    if config.bn_virtual_batch_size and share % config.bn_virtual_batch_size:
        raise ValueError(
            f"bn_virtual_batch_size={config.bn_virtual_batch_size} does not divide the {share} images that a device "
            f"takes at once; give a divisor of {share}"
        )
