"""Converts weights from PyTorch, and networks to files for other programs.

python convert.py --config=configs/resnet50.py --weights=resnet50.pth --workdir=DIR makes a workdir for train.py,
evaluate.py and predict.py from a state dict with torchvision's or timm's names: a file of safetensors, numpy.savez or
torch.save. The file may be a training checkpoint; --key=state_dict_ema chooses one of several state dicts in it.

python convert.py --weights=timm/resnet50.a1_in1k --workdir=DIR does so with published weights, which it downloads once;
--list prints all that are known, with their accuracy, licence and size.

python convert.py --workdir=DIR --to=stablehlo [--batch=N] [--uint8] writes DIR/MODEL.stablehlo, the whole network with
its normalisation, for jax.export; --to=onnx writes DIR/MODEL.onnx, for example for onnxruntime; --to=safetensors writes
DIR/MODEL.safetensors, the weights alone, which PyTorch can load. docs/export.md shows how each file is read.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


import pathlib

from absl import flags
from ml_collections import config_flags

from analysis.tables import print_boxed
from configs import base
from training import command_line, conversion, export, published_weights

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe whose network the weights are for.")
_WEIGHTS = flags.DEFINE(command_line.PATH, "weights", None, "PyTorch's file, or published weights: --list.")
_KEY = flags.DEFINE_string("key", None, "For --weights: the state dict in a checkpoint; default: state_dict or model.")
_LIST = flags.DEFINE_bool("list", False, "Print the published weights that are known, and exit.")
_WORKDIR = flags.DEFINE(command_line.PATH, "workdir", None, "The workdir to make, or to take weights from.")
_TO = flags.DEFINE_enum("to", None, export.FORMATS, "The format to write the workdir's network in.")
_BATCH = flags.DEFINE_string(
    "batch", None, "For stablehlo and onnx: images at a time; default: polymorphic, any number."
)
_UINT8 = flags.DEFINE_bool("uint8", False, "For stablehlo and onnx: images are uint8, not floats; both are 0 to 255.")
_STEP = flags.DEFINE_string("step", None, "For --to: the checkpoint's step, or best; default: the newest.")


def main() -> None:
    """Runs the program."""
    if _LIST.value:
        return print_boxed(*published_weights.list_weights())
    with command_line.refusing_bad_input():
        if not (_WEIGHTS.value or _TO.value):
            raise ValueError(f"give --weights=FILE to convert, or --to={'|'.join(export.FORMATS)} to write a file")
        for flag, needed in (("key", _WEIGHTS), ("config", _WEIGHTS), ("step", _TO)):
            if flags.FLAGS[flag].present and not needed.value:
                raise ValueError(f"--{flag} has no effect without --{needed.name}; give both, or leave it out")
        if (_BATCH.value is not None or _UINT8.value) and _TO.value not in ("stablehlo", "onnx"):
            raise ValueError(
                "--batch and --uint8 are for --to=stablehlo and --to=onnx; give one of these, or leave them out"
            )
        if _BATCH.value not in (None, "polymorphic") and not (_BATCH.value.isdecimal() and int(_BATCH.value)):
            raise ValueError(f"--batch={_BATCH.value} is invalid; give polymorphic, or a number of images from 1")
        if not _WORKDIR.value:
            raise ValueError("--workdir is missing; give the folder to make, or to take weights from")
        workdir = pathlib.Path(_WORKDIR.value)
        if _WEIGHTS.value:
            config, typed = _CONFIG.value, {}
            if config:
                typed = config_flags.get_override_values(flags.FLAGS["config"])
            elif published_weights.is_published(_WEIGHTS.value):
                config = base.get_imagenet_config()
                config.model = published_weights.find(_WEIGHTS.value).model
            else:
                raise ValueError("--config is missing; give the recipe of the network that the weights are for")
            imported = conversion.import_weights(config, _WEIGHTS.value, workdir, _KEY.value, typed)
            command_line.say(f"{imported.model}: {imported.used} tensors of {_WEIGHTS.value} are in {workdir}")
            if imported.other_keys:
                others = ", ".join(imported.other_keys)
                command_line.say(f"taken from {imported.key or 'the whole file'}; --key chooses another: {others}")
            if names := ", ".join(imported.left_out):
                command_line.say(f"left out, because the config asks for no such auxiliary head: {names}")
        if _TO.value:
            batch_size = None if _BATCH.value in (None, "polymorphic") else int(_BATCH.value)
            step = command_line.step(_STEP.value)
            exported = export.export_workdir(workdir, _TO.value, step, batch_size, _UINT8.value)
            content = "weights with PyTorch's names are" if _TO.value == "safetensors" else "the network is"
            command_line.say(f"{exported.model}, step {exported.step}: {content} in {exported.path}")


if __name__ == "__main__":
    command_line.run(main)
