"""The studies in reduced size, as a user runs them: rows, tables, figures, and the resume of a stopped study."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from PIL import Image
from program import COMPILE_QUICKLY, ROOT

# These tests take a minute and more; make smoke and make test-all run them.
pytestmark = [pytest.mark.slow, pytest.mark.smoke]


def start(study, folder, *words):
    command = [sys.executable, f"benchmarks/studies/{study}.py", "--size=reduced", f"--workdir={folder}", *words]
    environment = os.environ | {"XLA_FLAGS": COMPILE_QUICKLY}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)


def finish(study, folder, *words):
    process = start(study, folder, *words)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    output = re.sub(" +", " ", output)  # the cells of tables are padded
    return output, json.loads((folder / f"{study}_reduced.json").read_text())


def test_a_signal_reaches_the_run_and_the_same_command_goes_on(tmp_path):
    process = start("degradation", tmp_path)
    for line in process.stdout:
        if line.startswith("first step"):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=300)
    assert process.returncode == 143 and not (tmp_path / "degradation_reduced.json").exists()
    saved = [int(path.name) for path in (tmp_path / "plain20,seed=0" / "checkpoints").iterdir()]
    assert saved and max(saved) < 8

    output, rows = finish("degradation", tmp_path)
    assert [(row["name"], row["seed"], row["steps"]) for row in rows] == [("plain20", 0, 8), ("resnet20", 0, 8)]
    assert [row["calls"] for row in rows] == [2, 1]
    for row in rows:
        lines = (tmp_path / f"{row['name']},seed=0" / "metrics.jsonl").read_text().splitlines()
        evaluations = [line for line in map(json.loads, lines) if line["split"] == "validation"]
        assert row["accuracy_top1"] == evaluations[-1]["accuracy_top1"] and evaluations[-1]["step"] == 8
        assert row["curves"]["evaluation"]["step"] == [4, 8]
        assert f"| {row['name']} | 1 | 8 |" in output
    assert Image.open(tmp_path / "degradation_reduced.png").width > 500

    output, again = finish("degradation", tmp_path)  # nothing is left to do
    assert again == rows and "train.py" not in output


def test_a_short_degradation_has_the_full_size(tmp_path):
    command = [sys.executable, "benchmarks/studies/degradation.py", "--short", "--size=cpu", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert "--short has the full size, but --size is cpu" in done.stderr


STUDIES = ["stored_networks", "imagenette", "auxiliary_classifiers", "ingredients", "digits", "fine_tuning"]


@pytest.mark.parametrize("study", STUDIES)
def test_reduced_study(study, tmp_path):
    output, rows = finish(study, tmp_path)
    assert rows and all(f"| {row['name']} |" in output for row in rows)
    assert all(
        {"accuracy_top1", "seconds", "command", "hardware", "versions", "git_commit"} <= row.keys() for row in rows
    )


def test_the_lineage_has_the_steps_of_its_budgets_and_rates(tmp_path):
    output, rows = finish("lineage", tmp_path, "--rates")
    rates = {row["name"]: row for row in json.loads((tmp_path / "lineage_reduced_rates.json").read_text())}
    assert {row["name"] for row in rows} == {
        f"{name}_{each}" for name in ("lenet5", "vit_tiny") for each in ("common_seconds", "own_epochs")
    }
    for row in rows:
        name, _, budget = row["name"].rsplit("_", 2)
        seconds = max(round(0.1 * rates[name]["images_per_second"] / 64), 1)
        assert row["steps"] == (seconds if budget == "seconds" else 4)  # 2 epochs of 128 images
    assert re.search(r"\| lenet5 \| 32 \|.*\| vit_tiny \| 32 \|", output, re.DOTALL)
    assert Image.open(tmp_path / "lineage_reduced.png").width > 500
