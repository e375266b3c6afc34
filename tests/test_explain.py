"""explain.py draws a sheet for each image, names what it cannot read, and refuses bad calls in one line."""

import shutil

import numpy as np
import pytest
from PIL import Image
from program import Program, run

from configs import base
from models import initial_values
from training.configuration import resolve_network
from training.state import make_model
from training.transfer import save_weights

QUICK = ("--methods=saliency,filters",)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir of LeNet-5 with random weights; two of its class names could be taken for markup and for a formula."""
    config = base.get_config()
    config.update({"model": "lenet5", "num_classes": 3, "mean": (0.5,), "std": (0.5,), "compilation_cache_dir": ""})
    config = resolve_network(config)
    config.num_steps = 1
    folder = tmp_path_factory.mktemp("run") / "lenet"
    save_weights(folder, config, ("a cat", "[b]$x", "dog"), initial_values(make_model(config, training=True), 0))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two images of one name in two folders, one that has the second one's number in its name, and a damaged one."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "other").mkdir()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 50), np.uint8)).save(folder / "a.png")
    for other in ("other/a.png", "a-2.png"):
        shutil.copy(folder / "a.png", folder / other)
    (folder / "broken.jpg").write_text("no image")
    return folder


def test_a_sheet_for_each_image(workdir, images, tmp_path):
    arguments = [f"--images={images}", f"--out={tmp_path / 'out'}", "--class=[b]$x", *QUICK]
    process = Program("explain.py", f"--workdir={workdir}", f"--workdir={workdir}", *arguments)
    assert process.end() == 1, process.errors  # an image could not be read
    output, errors = process.output, process.errors
    assert len(errors.splitlines()) == 1 and "broken.jpg" in errors
    assert len(output.splitlines()) == 3 and output.count("[b]$x: ") == 6
    sheets = {path.name: Image.open(path) for path in (tmp_path / "out").iterdir()}
    assert sheets.keys() == {"a.png", "a-2.png", "a-3.png"} and all(sheet.width == 800 for sheet in sheets.values())


def test_randomized_layers_are_further_columns(workdir, images):
    arguments = [f"--images={images / 'a.png'}", "--randomize", "--methods=saliency,stages"]
    output = run("explain.py", f"--workdir={workdir}", *arguments)
    assert output.count("%") == 6  # the trained network and five levels
    assert Image.open(workdir / "explanations" / "a.png").width == 800


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--methods=saliancy"], "did you mean saliency?"),
        (["--class=cat"], "did you mean a cat?"),
        (["--gradcam_stage=stage9"], "choose from conv1, conv3"),
        (["--randomize", "--workdir=other"], "give one --workdir"),
        (["--methods=saliency", "--occlusion_window=3"], "--occlusion_window has no effect without occlusion"),
        (["--images=/none"], "is no file"),
    ],
    ids=["method", "class", "stage", "several workdirs", "useless flag", "images"],
)
def test_bad_calls_are_refused_in_one_line(workdir, images, tmp_path, arguments, message):
    out = tmp_path / "out"
    errors = run("explain.py", f"--workdir={workdir}", f"--images={images}", f"--out={out}", *arguments, exit_code=2)
    assert len(errors.splitlines()) == 1 and message in errors and not out.exists()
