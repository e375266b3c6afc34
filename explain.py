"""Shows what a network looks at: python explain.py --workdir=DIR --images=a.jpg,folder/ [--methods=saliency,gradcam].

Writes a sheet for each image: the picture, and maps over it that explain the score of a class, the likeliest one or
--class=NAME. Several --workdir=DIR stand side by side. With --randomize, more and more layers get random weights, from
the head down: a map that stays the same explains the image and not the network (Adebayo 2018).

The methods are saliency, smoothgrad, integrated_gradients, guided_backprop, gradcam and occlusion; stages shows the
strongest maps of each stage, and filters those of the first layer. docs/explain.md describes them.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


import contextlib
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

import models
from analysis.explanation import Explainer, Variables, first_filters, randomized_from_the_head, rank_correlation
from analysis.explanation_sheet import Panel, draw_sheet, filter_panel, stage_panels
from analysis.tables import Display
from configs._option import nearest_name
from input_pipeline.files import is_remote, most_bytes, printable, read_file
from input_pipeline.image_files import named_images
from input_pipeline.images import evaluation_transform
from training import command_line
from training.output import messages
from training.platform import prepare_platform
from training.remote_workdir import local_copy
from training.state import make_mesh, make_model
from training.transfer import load_weights
from training.workdir import read_class_names

MAPS = ("saliency", "smoothgrad", "integrated_gradients", "guided_backprop", "gradcam", "occlusion")
METHODS = (*MAPS, "stages", "filters")
SIGNED = ("integrated_gradients", "occlusion")
LEVELS = 5  # of --randomize; with the trained network six columns, which are legible at 800 pixels

_WORKDIR = flags.DEFINE_multi(
    command_line.PATH_OR_URL,
    flags.ArgumentSerializer(),
    "workdir",
    None,
    "A folder that train.py made; give the flag again for each further one.",
    required=True,
)
_STEP = flags.DEFINE_string("step", None, "The checkpoint's step, or best; default: the newest.")
_IMAGES = flags.DEFINE_list("images", [], "Image files, folders of them and patterns.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), f"Some of {', '.join(METHODS)}.")
_CLASS = flags.DEFINE_string("class", None, "The class to explain; default: the likeliest one of each network.")
_OUT = flags.DEFINE(
    command_line.PATH, "out", None, "The folder for the sheets; default: explanations/ in the first workdir."
)
_RANDOMIZE = flags.DEFINE_bool("randomize", False, "Randomise the weights from the head down, a column for each level.")
_SEED = flags.DEFINE_integer("seed", 1, "Of SmoothGrad's noise, and of the weights of --randomize.", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 10, "Copies of an image that are computed at a time.", 1)
_SAMPLES = flags.DEFINE_integer("smoothgrad_samples", 50, "Noisy copies of the image.", 1)
_NOISE = flags.DEFINE_float(
    "smoothgrad_noise", 0.15, "Standard deviation of the noise, as a share of the range of the pixels.", 0.0
)
_STEPS = flags.DEFINE_integer("integrated_gradients_steps", 50, "Points of the path; the paper has 20 to 300.", 1)
_BASELINE = flags.DEFINE_float(
    "integrated_gradients_baseline", 0.0, "Grey level of the image where the path begins; 0: black.", 0.0, 255.0
)
_STAGE = flags.DEFINE_string("gradcam_stage", None, "The stage whose map Grad-CAM weights; default: the last map.")
_WINDOW = flags.DEFINE_integer(
    "occlusion_window", None, "Side of the grey square, in pixels; default: a fifth of the image's.", 1
)
_STRIDE = flags.DEFINE_integer(
    "occlusion_stride", None, "Pixels that the square moves at a time; default: a quarter of its side.", 1
)
_GREY = flags.DEFINE_float("occlusion_grey", 127.5, "Grey level of the square.", 0.0, 255.0)


class Run(NamedTuple):
    """A network to explain.

    Attributes:
      name: of the workdir and its checkpoint, for a title.
      config: resolved options.
      model: the abstract network.
      variables: its weights.
      explainer: makes its maps.
      class_names: in the order of the logits.
      transform: from the bytes of an image file to the network's uint8 (H, W, C).
    """

    name: str
    config: ConfigDict
    model: models.Network
    variables: Variables
    explainer: Explainer
    class_names: list[str]
    transform: Callable[[bytes], np.ndarray]


def main() -> int:
    """Runs the program; returns 1 if an image could not be read."""
    with command_line.refusing_bad_input():
        for method in _METHODS.value:
            if method not in METHODS:
                hint = nearest_name(method, METHODS)
                raise ValueError(f"--methods={method} does not exist{hint or f'; choose from {METHODS}'}")
        for flag in (_SAMPLES, _NOISE, _STEPS, _BASELINE, _STAGE, _WINDOW, _STRIDE, _GREY):
            method = next(method for method in METHODS if flag.name.startswith(method))
            if flag.present and method not in _METHODS.value:
                raise ValueError(f"--{flag.name} has no effect without {method} in --methods; add it, or leave it out")
        if _RANDOMIZE.value and len(_WORKDIR.value) > 1:
            raise ValueError("--randomize compares the levels of one network; give one --workdir")
        if not _IMAGES.value:
            raise ValueError("--images is missing; give image files or folders")
        files = [pathlib.Path(name) for name in named_images(_IMAGES.value)]
        if not _OUT.value and is_remote(_WORKDIR.value[0]):
            raise ValueError("--out is missing; give a folder of this machine, as the workdir is remote")
        step = command_line.step(_STEP.value)
        with contextlib.ExitStack() as copies:
            runs = load_runs([copies.enter_context(local_copy(each, step)) for each in _WORKDIR.value], step)
        out = pathlib.Path(_OUT.value or pathlib.Path(_WORKDIR.value[0]) / "explanations")
        out.mkdir(parents=True, exist_ok=True)

    unreadable = 0
    columns = 1 + LEVELS if _RANDOMIZE.value else len(runs)
    with Display(len(files) * columns * len(_METHODS.value), to_errors=False) as display:
        for file, path in zip(files, sheet_paths(files, out), strict=True):
            display.begin(file.name)
            try:
                images = [run.transform(read_file(file, most_bytes(run.config.max_image_pixels))) for run in runs]
            except (ValueError, OSError) as error:
                with messages(sys.stderr):
                    print(printable(f"cannot read {file}: {error}"), file=sys.stderr)
                unreadable += 1
                continue
            with command_line.refusing_bad_input((ValueError,)):  # a network without what a method needs
                sheet = [
                    panels
                    for run, image in zip(runs, images, strict=True)
                    for panels in make_columns(run, image, display)
                ]
            try:
                draw_sheet(file.name, sheet, path)
            except OSError as error:
                command_line.machine_failed(f"{path} cannot be written: {error}")
            display.say(f"{path}: {'; '.join(panels[0].title.splitlines()[-1] for panels in sheet)}")
    return 1 if unreadable else 0


def load_runs(workdirs: list[pathlib.Path], step: int | str | None) -> list[Run]:
    """Loads the weights of the workdirs onto one device, and checks the flags that depend on the network."""
    runs, mesh = [], make_mesh(1)
    loaded = [load_weights(workdir, mesh, step) for workdir in workdirs]
    for config, *_ in loaded:
        if config.dtype != "float64":
            config.dtype = "float32"  # gradients with respect to pixels would be noise in bfloat16
    prepare_platform(max((config for config, *_ in loaded), key=lambda config: config.dtype))
    for workdir, (config, params, batch_stats, number) in zip(workdirs, loaded, strict=True):
        model, class_names = make_model(config, training=False), read_class_names(workdir)
        if _CLASS.value is not None and _CLASS.value not in class_names:
            hint = nearest_name(_CLASS.value, class_names) or ""
            raise ValueError(f"--class={_CLASS.value} is no class of {workdir}{hint}")
        if _STAGE.value is not None and _STAGE.value not in models.get_stages(config.model):
            stages = ", ".join(models.get_stages(config.model))
            raise ValueError(f"--gradcam_stage={_STAGE.value} is no stage of {config.model}; choose from {stages}")
        runs.append(
            Run(
                f"{workdir.name}\nstep {number}",
                config,
                model,
                (params, batch_stats),
                Explainer(config, model, _BATCH_SIZE.value),
                class_names,
                evaluation_transform(config),
            )
        )
    return runs


def make_columns(run: Run, image: np.ndarray, display: Display) -> Iterator[list[Panel]]:
    """Yields the panels of a network; with --randomize also those of the network with random layers."""
    scores = run.explainer.scores(run.variables, image)
    label = run.class_names.index(_CLASS.value) if _CLASS.value is not None else int(scores.argmax())
    trained = make_maps(run, run.variables, image, label, display)
    yield make_panels(run, run.variables, image, label, trained, run.name)
    if _RANDOMIZE.value:
        seed = run.config.seed + _SEED.value
        for layer, variables in randomized_from_the_head(run.model, run.variables, seed, LEVELS):
            maps = make_maps(run, variables, image, label, display)
            yield make_panels(run, variables, image, label, maps, f"random from {layer} on", trained)


def make_maps(run: Run, variables: Variables, image: np.ndarray, label: int, display: Display) -> dict[str, np.ndarray]:
    """Returns the map of each chosen method that makes a map over the image."""
    options: dict[str, dict[str, Any]] = {
        "smoothgrad": {"samples": _SAMPLES.value, "noise": _NOISE.value, "seed": _SEED.value},
        "integrated_gradients": {"steps": _STEPS.value, "baseline": _BASELINE.value},
        "gradcam": {"stage": _STAGE.value},
        "occlusion": {"window": _WINDOW.value, "stride": _STRIDE.value, "grey": _GREY.value},
    }
    maps = {}
    for method in _METHODS.value:
        if method in MAPS:
            maps[method] = getattr(run.explainer, method)(variables, image, label, **options.get(method, {}))
        display.advance()
    return maps


def make_panels(
    run: Run,
    variables: Variables,
    image: np.ndarray,
    label: int,
    maps: dict[str, np.ndarray],
    heading: str,
    trained: dict[str, np.ndarray] | None = None,
) -> list[Panel]:
    """Returns the panels of one column: the picture under its heading, then those of each method.

    Args:
      run: the network.
      variables: its weights, the trained ones or random ones.
      image: its uint8 image (H, W, C).
      label: the class.
      maps: of this column.
      heading: says whose column it is.
      trained: the maps of the trained network, which those of random weights are compared with.
    """
    scores = run.explainer.scores(variables, image)
    probability = np.exp(scores - np.logaddexp.reduce(scores))[label]
    panels = [Panel(f"{heading}\n{run.class_names[label]}: {100 * probability:.1f} %", image)]
    for method in _METHODS.value:
        if method in maps:
            title = method.replace("_", " ")
            if trained:
                title += f", correlation {rank_correlation(maps[method], trained[method]):.2f}"
            panels.append(Panel(title, image, maps[method], method in SIGNED))
        elif method == "stages":
            panels += stage_panels(run.explainer.stage_maps(variables, image))
        else:
            panels.append(filter_panel(first_filters(run.model, variables)))
    return panels


def sheet_paths(files: list[pathlib.Path], out: pathlib.Path) -> list[pathlib.Path]:
    """Returns the path of each image's sheet: NAME.png, or NAME-2.png and so on if several images have one name."""
    paths: dict[pathlib.Path, None] = {}
    numbers: dict[str, Iterator[int]] = {}
    for file in files:
        path, number = out / f"{file.stem}.png", numbers.setdefault(file.stem, itertools.count(2))
        while path in paths:
            path = out / f"{file.stem}-{next(number)}.png"
        paths[path] = None
    return list(paths)


if __name__ == "__main__":
    command_line.run(main)
