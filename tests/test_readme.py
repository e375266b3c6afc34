"""The README's commands run, or say what they miss; its Python code gives the results that its comments promise."""

import os
import re

import numpy as np
import pytest
from console import copy_repository, run
from program import ROOT

from benchmarks import tour
from configs import base
from models import create_model, get_stages, initial_values
from training.configuration import resolve_network
from training.state import make_model
from training.transfer import save_weights

TEXT = (ROOT / "README.md").read_text()
SETUP = ("make", "source .venv/bin/activate")  # what every test needs
# What is not in a fresh clone, and in the error of a command that needs it.
ABSENT = {
    r"--config=configs/resnet50(_a1)?\.py(?!.*weights)": "dataset 'imagenet2012' is not prepared",
    r"/data/flowers": "/data/flowers",
    r"imagenette": "imagenette2-160.tgz",
    r"--archive": "ILSVRC2012_img_train.tar",
    r"--weights=timm": "resnet50.a1_in1k",
    r"--weights=resnet50\.pth": "resnet50.pth",
    r"--workdir=runs/torchvision --to": "runs/torchvision",
}


def list_commands() -> list[str]:
    """Returns the commands of all blocks of the README that a shell runs, in their order."""
    commands = []
    for kind, block in re.findall(r"^```(console)?\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        if kind:
            parts = tour.split(f"```console\n{block}```\n")
            commands += [part.command for part in parts if part.kind == "command"]
        else:
            commands += [line.partition(" #")[0].strip() for line in block.splitlines()]
    return [command for command in commands if command not in SETUP]


COMMANDS = list_commands()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_flags_that_exist(command):
    for part in command.split(" | "):
        program, *words = part.split()[part.startswith("python ") :]
        if not program.endswith(".py"):
            assert program in ("cp", "tail", "head")
            continue
        source = (ROOT / program).read_text()
        for option in re.findall(r"--config\.(\w+)", part):
            assert option in base.OPTIONS
        for flag in re.findall(r"--(\w+)(?!\w*\.)", part):
            assert f'"{flag}"' in source
        for recipe in re.findall(r"--config=(\S+)", part):
            assert (ROOT / recipe).exists()
        assert all(word.startswith("--") or program in ("prepare.py", "compare.py") for word in words)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The result of each command in a fresh copy of the repository, without data and without a network."""
    folder = copy_repository(tmp_path_factory.mktemp("readme"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "no_datasets"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "no_cache"))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        return {command: run(command, folder) for command in COMMANDS}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_or_says_what_it_misses(results, command):
    result = results[command]
    missing = [message for pattern, message in ABSENT.items() if re.search(pattern, command)]
    if missing:
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
        assert missing[0] in result.stderr
    else:
        assert result.returncode in ((0, 1) if "--compare=" in command else (0,)), result.stdout + result.stderr


def test_the_pictures_and_pages_exist():
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert len(links) > 20
    assert [link for link in links if not link.startswith("http") and not os.path.exists(ROOT / link)] == []


def test_the_code_under_from_python(tmp_path, monkeypatch):
    (code,) = re.findall(r"## From Python\n```python\n(.*?)```", TEXT, re.DOTALL)
    config = base.get_config()
    config.num_classes = 10
    config = resolve_network(config)
    values = initial_values(make_model(config, training=True), seed=7)
    save_weights(tmp_path / "runs" / "lenet5_digits", config, tuple("0123456789"), values)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)

    # The weights are the workdir's, not those of another seed.
    images, expected = names["images"], create_model("lenet5", seed=7)
    np.testing.assert_allclose(names["logits"], expected(images), rtol=1e-5, atol=1e-6)
    assert {name: maps.shape[-1] for name, maps in names["maps"].items()} == get_stages("lenet5")
    # A step along the gradient changes the logit by step times gradient.
    step = 1e-2 * names["saliency"] / np.linalg.norm(names["saliency"])
    change = expected(images + step)[0, 3] - expected(images - step)[0, 3]
    np.testing.assert_allclose(change, 2e-2 * np.linalg.norm(names["saliency"]), rtol=1e-2)
