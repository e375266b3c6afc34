"""benchmark.py as a user runs it: rows in files and on the terminal, pictures, comparisons and errors."""

import csv
import gzip
import json

import pytest
from PIL import Image
from program import Program

NAMED = {"model", "mode", "batch_size", "image_size", "dtype", "images_per_second", "step_ms_median", "step_ms_p90"}
NAMED |= {"step_ms_p99", "compile_seconds", "first_step_seconds", "peak_memory_bytes", "flops_per_image"}
NAMED |= {"roofline_share", "mfu", "git_commit", "jax_version", "device", "driver", "command", "input_wait_share"}


def run(*arguments, exit_code=0):
    process = Program("benchmark.py", *arguments, COLUMNS="300")
    assert process.end() == exit_code, process.output + process.errors
    return process.output if exit_code in (0, 1, 3) else process.errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of LeNet-5 in three modes, and of AlexNet, which does not fit."""
    folder = tmp_path_factory.mktemp("benchmark")
    outputs = f"--json={folder}/rows.json", f"--csv={folder}/rows.csv", f"--report={folder}", f"--profile={folder}"
    options = "--models=lenet5,alexnet", "--mode=train,infer,real", "--seconds=0.1", "--image_size=32"
    output = run(*options, *outputs, "--config.batch_size=8", exit_code=3)
    assert "images/s" in output and "does not fit alexnet" in output
    return folder


def read(folder):
    return json.loads((folder / "rows.json").read_text())


def test_rows_hold_what_was_asked_for(folder):
    rows = read(folder)
    assert all(row.keys() >= NAMED for row in rows)
    assert [(row["model"], row["mode"], row["status"]) for row in rows] == [
        *(("lenet5", mode, "ok") for mode in ("train", "infer", "real")),
        *(("alexnet", mode, "error") for mode in ("train", "infer", "real")),
    ]
    train, infer, real = rows[:3]
    assert infer["flops_per_image"] == 2 * 416_520  # LeCun 1998: 117,600 + 240,000 + 48,000 + 10,080 + 840 products
    assert train["parameters"] == 61_706
    for row in (train, infer, real):
        assert 0 < row["step_ms_median"] <= row["step_ms_p90"] <= row["step_ms_p99"] <= row["step_ms_max"]
        assert row["images_per_second_low"] <= row["images_per_second"] <= row["images_per_second_high"]
        assert 0 < row["roofline_share"] < 1 and row["mfu"] is None
        assert 0 < row["compile_seconds"] < row["first_step_seconds"]
        assert row["peak_memory_bytes"] > 4 * 61_706 and row["peak_memory_source"] == "compiled program"
    assert 0 <= real["input_wait_share"] <= 1 and train["input_wait_share"] is None
    assert (train["dataset"], real["dataset"]) == ("synthetic", "digits")


def test_csv_and_json_are_the_same(folder):
    with (folder / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    expected = [{key: "" if value is None else str(value) for key, value in row.items()} for row in read(folder)]
    assert table == expected


def test_pictures(folder):
    names = {path.stem: Image.open(path) for path in folder.glob("*.png")}
    assert {"accuracy_over_gflops", "accuracy_per_parameter", "roofline", "time_by_layer_kind"} < names.keys()
    for picture in names.values():
        picture.load()
        assert picture.format == "PNG" and len(picture.convert("L").getcolors()) > 50


def test_the_trace_names_every_layer(folder):
    trace = json.loads(gzip.decompress((folder / "lenet5,train,8,32,float32" / "layers.json.gz").read_bytes()))
    layers = {event["args"].get("layer") for event in trace["traceEvents"] if "args" in event}
    assert {"conv1", "conv3", "conv5", "dense6", "head"} <= layers


def test_a_slower_run_ends_with_1(folder, tmp_path):
    rows = [row for row in read(folder) if row["status"] == "ok"]
    (tmp_path / "now.json").write_text(json.dumps(rows))
    for row in rows:
        for key in ("images_per_second", "images_per_second_low", "images_per_second_high"):
            row[key] *= 100
        row["device"] = "NVIDIA H200"
    (tmp_path / "old.json").write_text(json.dumps(rows))
    output = run(f"--rows={tmp_path}/now.json", f"--compare={tmp_path}/old.json", exit_code=1)
    assert output.count("| slower ") == 3 and "not the same conditions: device: cpu, was NVIDIA H200" in output


def test_bad_input_is_refused_in_one_line():
    errors = run("--rows=rows.json", "--models=vgg16", exit_code=2)
    assert errors.startswith("benchmark.py: error: --models has no effect with --rows=rows.json")
    errors = run("--config=configs/lenet5_digits.py", "--config.teacher=runs/teacher", exit_code=2)
    assert errors.startswith("benchmark.py: error: teacher has no effect")
    errors = run("--models=vgg*,resnet_50", exit_code=2)
    assert errors == "benchmark.py: error: unknown model 'resnet_50'; did you mean 'resnet50'?\n"
