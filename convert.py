"""Takes PyTorch's weights in, and gives ours back.

python convert.py --config=configs/resnet50.py --weights=resnet50.pth --workdir=DIR makes a workdir that train.py,
evaluate.py and predict.py take, of a state dict with torchvision's or timm's names (.safetensors, .npz, .pt, .pth or
.th).
python convert.py --workdir=DIR --to=safetensors writes DIR/MODEL.safetensors, which PyTorch loads.
"""

import pathlib

from absl import flags
from flax.nnx.traversals import flatten_mapping, unflatten_mapping
from ml_collections import ConfigDict, config_flags

import input_pipeline
import models
from models.torch_files import read_state_dict, write_safetensors
from models.torch_names import from_torch, rename_old, to_torch, torch_shapes
from training import command_line, configuration
from training.checkpoints import has_checkpoints
from training.state import make_mesh, make_model
from training.transfer import load_weights, save_weights
from training.workdir import check_workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe whose network the weights are for.")
_WEIGHTS = flags.DEFINE_string("weights", None, "PyTorch's file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The workdir to make, or to take weights from.", required=True)
_TO = flags.DEFINE_enum("to", None, ["safetensors"], "What to write of the workdir's newest weights.")
_STEP = flags.DEFINE_string("step", None, "For --to: the checkpoint's step, or best; default: the newest.")


def main() -> None:
    """Runs the program."""
    workdir = pathlib.Path(_WORKDIR.value)
    with command_line.refusing_bad_input():
        if not (_WEIGHTS.value or _TO.value):
            raise ValueError("give --weights=FILE to convert, or --to=safetensors to write one")
        if _WEIGHTS.value:
            take_in(pathlib.Path(_WEIGHTS.value), workdir)
        if _TO.value:
            give_back(workdir)


def take_in(weights: pathlib.Path, workdir: pathlib.Path) -> None:
    """Writes a workdir with the weights of PyTorch's file as its checkpoint of step 0.

    Raises:
      ValueError: if a tensor is missing, surplus or misshapen, or the workdir is in use; nothing is written.
      FileNotFoundError: if there is no such file.
    """
    if not _CONFIG.value:
        raise ValueError("--config is missing; give the recipe of the network that the weights are for")
    if has_checkpoints(workdir):
        raise ValueError(f"workdir {workdir} has checkpoints already; choose another --workdir")
    config, entry = configuration.resolve_network(_CONFIG.value), models.get_entry(_CONFIG.value.model)
    config.num_classes = config.num_classes or entry.num_classes
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    for option, published in (("mean", entry.torch_mean), ("std", entry.torch_std)):
        if option not in overrides:
            config[option] = published
    check_workdir(workdir, config)

    state_dict, model = rename_old(entry, read_state_dict(weights)), make_model(config, training=True)
    values = from_torch(entry, model, state_dict)
    left_out = sorted(name for name in set(state_dict) - set(torch_shapes(entry, model)) if "num_batches" not in name)
    save_weights(workdir, config, class_names(config), values)
    print(f"{config.model}: {len(state_dict) - len(left_out)} tensors of {weights} are in {workdir}")
    if left_out:
        print(f"left out, since the config asks for no such auxiliary head: {', '.join(left_out)}")


def give_back(workdir: pathlib.Path) -> None:
    """Writes the workdir's weights as MODEL.safetensors with PyTorch's names and shapes.

    Raises:
      ValueError: if PyTorch has no such network, or no checkpoint is sound.
      FileNotFoundError: if the folder is no workdir.
    """
    config, params, batch_stats, step = load_weights(workdir, make_mesh(), command_line.step(_STEP.value))
    entry, path = models.get_entry(config.model), workdir / f"{config.model}.safetensors"
    values = unflatten_mapping(flatten_mapping(params) | flatten_mapping(batch_stats))
    write_safetensors(path, to_torch(entry, make_model(config, training=True), values))
    print(f"{config.model}, step {step}: weights with PyTorch's names are in {path}")


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Returns the dataset's names of the classes where they are at hand and as many, else their numbers."""
    names = input_pipeline.known_class_names(config.dataset)
    try:
        names = names or input_pipeline.load_dataset(config, "eval").class_names
    except (ValueError, OSError):
        names = ()
    return names if len(names) == config.num_classes else tuple(map(str, range(config.num_classes)))


if __name__ == "__main__":
    command_line.run(main)
