"""Converts weights from and to PyTorch.

python convert.py --config=configs/resnet50.py --weights=resnet50.pth --workdir=DIR makes a workdir for train.py,
evaluate.py and predict.py from a state dict with torchvision's or timm's names: a file of safetensors, numpy.savez or
torch.save. The file may be a training checkpoint; --key=state_dict_ema chooses one of several state dicts in it.

python convert.py --workdir=DIR --to=safetensors writes DIR/MODEL.safetensors, which PyTorch can load.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from training import command_line, conversion

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe whose network the weights are for.")
_WEIGHTS = flags.DEFINE_string("weights", None, "PyTorch's file.")
_KEY = flags.DEFINE_string("key", None, "For --weights: the state dict in a checkpoint; default: state_dict or model.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The workdir to make or, for --to, to read.", required=True)
_TO = flags.DEFINE_enum("to", None, ["safetensors"], "The format to write the workdir's weights in.")
_STEP = flags.DEFINE_string("step", None, "For --to: the checkpoint's step, or best; default: the newest.")


def main() -> None:
    """Runs the program."""
    workdir = pathlib.Path(_WORKDIR.value)
    with command_line.refusing_bad_input():
        if not (_WEIGHTS.value or _TO.value):
            raise ValueError("give --weights=FILE to convert, or --to=safetensors to write one")
        if _WEIGHTS.value:
            if not _CONFIG.value:
                raise ValueError("--config is missing; give the recipe of the network that the weights are for")
            typed = config_flags.get_override_values(flags.FLAGS["config"])
            weights = pathlib.Path(_WEIGHTS.value)
            imported = conversion.import_weights(_CONFIG.value, weights, workdir, _KEY.value, typed)
            command_line.say(f"{imported.model}: {imported.used} tensors of {_WEIGHTS.value} are in {workdir}")
            if imported.other_keys:
                others = ", ".join(imported.other_keys)
                command_line.say(f"taken from {imported.key or 'the whole file'}; --key chooses another: {others}")
            if names := ", ".join(imported.left_out):
                command_line.say(f"left out, because the config asks for no such auxiliary head: {names}")
        if _TO.value:
            path, step = conversion.export_weights(workdir, command_line.step(_STEP.value))
            command_line.say(f"{path.stem}, step {step}: weights with PyTorch's names are in {path}")


if __name__ == "__main__":
    command_line.run(main)
