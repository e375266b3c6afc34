"""The lists of train.py: complete, narrow enough for a terminal, and printed without the imports of training."""

import pathlib
import subprocess
import sys

import pytest

from configs import base
from input_pipeline.official_archives import EXAMPLES
from models import REGISTRY
from training import lists

ROOT = pathlib.Path(__file__).parents[2]


def test_the_list_names_every_option_with_its_default_unit_and_meaning():
    text = lists.list_options()
    assert all(f"  {name}=" in text and option.meaning in text for name, option in base.OPTIONS.items())
    assert all(f"\n\n{title}\n" in text for title in base.SECTIONS)
    assert "step_epochs=()  (at least 0 and at most 1,000,000 epochs; needs schedule=step)" in text


@pytest.mark.parametrize(
    ("list_names", "names"),
    [
        (lists.list_models, REGISTRY),
        (lists.list_recipes, [f"configs/{path.name}" for path in (ROOT / "configs").glob("[!_]*.py")]),
        (lists.list_datasets, ["digits", "synthetic", "image_folder:/path", *EXAMPLES]),
    ],
)
def test_a_list_has_every_name_and_fits_a_terminal(list_names, names):
    text = list_names()
    assert set(names) <= set(text.split())
    assert max(map(len, text.splitlines())) <= lists.WIDTH


@pytest.mark.parametrize("flag", lists.LISTS)
def test_a_list_needs_none_of_the_libraries_of_training(flag):
    code = f"import sys; from training import lists\ntry: lists.answer(['--{flag}'])\nfinally: print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    slow = {"grain", "orbax", "tensorflow_datasets", "training.program", *(() if "models" in flag else ("jax",))}
    assert not slow & set(result.stdout.splitlines()[-1].split())
