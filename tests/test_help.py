"""--help of every program: exit code 0, one screen, a recipe and the lists."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROGRAMS = sorted(path.stem for path in ROOT.glob("*.py"))
FILES = (ROOT / "benchmarks" / "studies").glob("*.py")
STUDIES = sorted(path.stem for path in FILES if "import study" in path.read_text())

# Makes the text of each program as `python PROGRAM.py --help` does, all in one process to save the imports.
CODE = """
import importlib, json, sys
from absl import flags
sys.path.insert(0, "benchmarks/studies")
texts = {}
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    sys.modules["__main__"] = module
    from training import command_line
    texts[name] = command_line.describe_program()
    for flag in flags.FLAGS.get_flags_for_module(name):
        delattr(flags.FLAGS, flag.name)
print(json.dumps(texts))
"""


@pytest.fixture(scope="module")
def texts():
    """The text of --help of each program and study."""
    command = [sys.executable, "-c", CODE, *PROGRAMS, *STUDIES]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PROGRAMS + STUDIES)
def test_the_help_fits_a_screen_and_says_where_to_begin(texts, name):
    lines = texts[name].splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 120
    assert "python train.py --config=configs/lenet5_digits.py" in texts[name]
    assert "--list_models, --list_recipes, --list_datasets, --options" in texts[name]
    assert "--alsologtostderr" not in texts[name]  # a flag of a library


@pytest.mark.parametrize("name", STUDIES)
def test_a_studys_help_shows_the_flags_of_all_studies(texts, name):
    assert {"--size=full", "--minutes", "--[no]report"} <= set(texts[name].split())


def test_help_ends_with_0():
    result = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.startswith("Trains a network")
