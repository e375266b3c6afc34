"""The programs as a user runs them: real processes, real signals, exit codes, one-line errors."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from program import COMPILE_QUICKLY, ROOT, TIMEOUT, Program, run
from sklearn.datasets import load_digits

from training.state import make_mesh
from training.transfer import load_weights

SHORT = ("--config=configs/lenet5_digits.py", "--config.num_steps=60", "--config.log_every_steps=5")
SHORT += ("--config.checkpoint_every_steps=10", "--config.evaluate_every_epochs=1", "--config.compilation_cache_dir=")
UNBUFFERED = os.environ | {"PYTHONUNBUFFERED": "1", "XLA_FLAGS": COMPILE_QUICKLY}


def stop_at(text, number, *arguments):
    """Trains until a line contains the text, and sends a signal; returns the exit code."""
    process = Program("train.py", *arguments)
    process.prints(re.escape(text))
    return process.end(number)


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())


def checksums(workdir, step):
    return read_json(workdir / "checkpoints" / str(step) / "checksums" / "metadata")


def what_was_measured(workdir):
    """Returns the rows of metrics without the columns that depend on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "images_per_second", "input_wait_fraction")
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An uninterrupted run of 60 steps."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    output = run("train.py", *SHORT, f"--workdir={workdir}")
    assert "done: " in output and f"everything lies in {workdir}" in output
    return workdir


@pytest.mark.smoke
def test_a_workdir_is_complete(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints", "tensorboard"}
    row = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    assert {"step", "epoch", "split", "loss", "accuracy_top1", "accuracy_top5", "learning_rate"} <= row.keys()
    assert {"images_per_second", "input_wait_fraction", "seconds"} <= row.keys()
    assert read_json(finished / "summary.json")["step"] == 60
    assert len(list((finished / "checkpoints").glob("[0-9]*"))) in (3, 4)  # the newest three, and the best
    assert Image.open(finished / "curves.png").width > 500


def test_a_finished_run_says_so(finished):
    before = (finished / "metrics.jsonl").read_text()
    assert "is finished" in run("train.py", *SHORT, f"--workdir={finished}")
    assert (finished / "metrics.jsonl").read_text() == before


@pytest.mark.smoke
def test_killed_and_started_again_it_ends_the_same_to_the_bit(finished, tmp_path):
    """SIGKILL comes at several moments: while compiling, during saves, between saves, before an evaluation's save."""
    workdir = tmp_path / "run"
    moments = ["first step", "step 10/60", "step 23/60 validation", "step 25/60", "step 50/60", "step 60/60"]
    for moment in moments:
        assert stop_at(moment, signal.SIGKILL, *SHORT, f"--workdir={workdir}") == -signal.SIGKILL
    run("train.py", *SHORT, f"--workdir={workdir}")
    assert checksums(workdir, 60) == checksums(finished, 60)
    assert what_was_measured(workdir) == what_was_measured(finished)


def test_a_remote_workdir_is_the_same_run_on_every_machine(finished, tmp_path):
    """A URL that begins with file:// takes the way of s3:// and gs://; each machine has its own local copies."""
    store, url = tmp_path / "store/run", f"file://{tmp_path}/store/run"
    here, there = (
        (*SHORT, f"--workdir={url}", f"--config.remote_cache_dir={tmp_path / machine}") for machine in ("here", "there")
    )
    assert stop_at("step 25/60", signal.SIGKILL, *here, "--config.remote_upload_seconds=0.1") == -signal.SIGKILL
    assert f"everything is in {url}" in run("train.py", *here)
    assert checksums(store, 60) == checksums(finished, 60)
    assert what_was_measured(store) == what_was_measured(finished)
    assert {path.name for path in store.iterdir()} == {path.name for path in finished.iterdir()}
    steps = {path.parent.parent.name for path in store.glob("checkpoints/*/state/_METADATA")}
    assert steps == {path.name for path in (finished / "checkpoints").iterdir()}
    assert "is finished" in run("train.py", *there)
    ours, theirs = (run("evaluate.py", f"--workdir={each}", "--step=best", "--json=-") for each in (url, finished))
    assert ours == theirs


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_at_once_and_the_run_goes_on(finished, tmp_path, number, exit_code):
    workdir = tmp_path / "run"
    assert stop_at("step 5/60", number, *SHORT, f"--workdir={workdir}") == exit_code
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 5 <= saved < 60 and (saved % 10 or saved <= 20)  # immediately, not at the next multiple of ten
    run("train.py", *SHORT, f"--workdir={workdir}")
    assert checksums(workdir, 60) == checksums(finished, 60)


def test_a_damaged_newest_checkpoint(finished, tmp_path):
    workdir = tmp_path / "run"
    stop_at("step 40/60", signal.SIGTERM, *SHORT, f"--workdir={workdir}")
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    process = Program("train.py", *SHORT, f"--workdir={workdir}")
    assert process.end() == 0
    assert f"checkpoint {newest.name}" in process.errors and "is damaged" in process.errors
    assert checksums(workdir, 60) == checksums(finished, 60)


def test_a_disk_that_refuses_a_checkpoint_is_one_line_and_the_run_goes_on(finished, tmp_path):
    """A limit on the size of files replaces a full disk, because the same calls fail."""
    workdir = tmp_path / "run"
    process = Program("train.py", *SHORT, f"--workdir={workdir}", file_limit=100_000)
    assert process.end() == 4, process.output + process.errors
    (line,) = process.errors.splitlines()
    assert "cannot be written" in line and "File too large" in line and "there is no checkpoint yet" in line
    assert not (workdir / "summary.json").exists()
    run("train.py", *SHORT, f"--workdir={workdir}")
    assert checksums(workdir, 60) == checksums(finished, 60)


def test_images_that_can_no_longer_be_read_end_the_run_with_its_last_checkpoint(tmp_path):
    images, gone = tmp_path / "images", tmp_path / "gone"
    for name in ("3", "5", "8"):
        (images / name).mkdir(parents=True)
        for number in range(8):
            shutil.copy(ROOT / "docs" / "digits" / f"{name}.png", images / name / f"{number}.png")
    options = ("--config.num_steps=1000000", f"--config.dataset=image_folder:{images}", "--config.batch_size=8")
    process = Program("train.py", *SHORT, *options, f"--workdir={tmp_path / 'run'}")
    assert process.prints("step 20/")
    images.rename(gone)
    assert process.end() == 4, process.output + process.errors
    line = process.errors.splitlines()[-1]
    assert f"cannot read an image of dataset 'image_folder:{images}'" in line and "No such file or directory" in line
    assert re.search(r"the last good checkpoint is .*/\d+;.* the same command resumes the run", line)


def test_a_pipe_that_closes_does_not_end_the_run(finished, tmp_path):
    command = [sys.executable, "train.py", *SHORT, f"--workdir={tmp_path / 'run'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=UNBUFFERED, text=True, **pipes)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(TIMEOUT) == 0 and process.stderr.read() == ""
    assert checksums(tmp_path / "run", 60) == checksums(finished, 60)


def test_a_full_log_does_not_end_an_unbuffered_run(tmp_path):
    command = [sys.executable, "train.py", SHORT[0], "--config.num_steps=2", f"--workdir={tmp_path / 'run'}"]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, cwd=ROOT, env=UNBUFFERED, stdout=full, stderr=full, timeout=TIMEOUT)
    assert process.returncode == 0 and (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("words", ["train.py --list_models", "summarize.py --models=lenet5 --json=-"])
def test_a_result_that_cannot_be_written_is_one_line(words):
    """A reader that has seen enough, as head has, is no error."""
    command = [sys.executable, *words.split()]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    (line,) = process.stderr.splitlines()
    assert process.returncode == 4 and line.endswith("the result cannot be written: [Errno 28] No space left on device")
    assert end_without_a_reader(command) == (0, "")


def test_a_table_that_cannot_be_printed_ends_no_measurement(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # without XLA's optimisations, benchmark.py takes long to measure the machine
    words = "benchmark.py --models=lenet5 --mode=infer --batch_sizes=1 --seconds=0.01".split()
    command = [sys.executable, *words, f"--json={tmp_path / 'full.json'}"]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT)
    assert (process.returncode, process.stderr) == (0, b"")
    assert end_without_a_reader([*command[:-1], f"--json={tmp_path / 'closed.json'}"]) == (0, "")
    assert all(len(read_json(tmp_path / name)) == 1 for name in ("full.json", "closed.json"))
    exit_code, rows = end_without_a_reader([*command[:-1], "--json=-"], closed="stderr")
    assert exit_code == 0 and len(json.loads(rows)) == 1


def test_a_signal_without_a_reader_of_errors(tmp_path):
    command = [sys.executable, "train.py", *SHORT, f"--workdir={tmp_path / 'run'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=UNBUFFERED, text=True, **pipes) as process:
        process.stderr.close()
        next(line for line in process.stdout if "first step" in line)
        process.terminate()
        assert "/60 loss" in process.stdout.read()
    assert process.returncode == 143 and any((tmp_path / "run/checkpoints").iterdir())


def end_without_a_reader(command, closed="stdout"):
    """Returns the exit code of a program one of whose outputs is a closed pipe, and what it printed to the other."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    getattr(process, closed).close()
    printed = (process.stderr if closed == "stdout" else process.stdout).read()
    return process.wait(TIMEOUT), printed


def test_a_signal_during_the_last_evaluation(finished, tmp_path):
    """The resumed run makes the missing evaluation, and --step=best takes it into account."""
    workdir = tmp_path / "run"
    assert stop_at("step 60/60 loss", signal.SIGTERM, *SHORT, f"--workdir={workdir}") in (0, 143)
    run("train.py", *SHORT, f"--workdir={workdir}")
    assert what_was_measured(workdir) == what_was_measured(finished)
    assert "step 60" in run("evaluate.py", f"--workdir={workdir}", "--step=best")


def test_damaged_metrics_are_left_out(tmp_path):
    workdir = tmp_path / "run"
    stop_at("step 30/60", signal.SIGTERM, *SHORT, f"--workdir={workdir}")
    with open(workdir / "metrics.jsonl", "rb+") as file:
        content = file.read()
        file.seek(0)
        file.write(b"\xff{5\n5\n" + content)
    run("train.py", *SHORT, f"--workdir={workdir}")
    assert [row["step"] for row in what_was_measured(workdir)][-1] == 60


def test_evaluating_the_training_images(tmp_path):
    workdir = tmp_path / "run"
    run("train.py", SHORT[0], "--config.num_steps=3", "--config.eval_split=train", f"--workdir={workdir}")
    assert read_json(workdir / "summary.json")["split"] == "train"


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    workdir = tmp_path / "run"
    errors = run(
        "train.py",
        *SHORT,
        "--config.learning_rate=1e6",
        "--config.weight_decay=1e3",
        f"--workdir={workdir}",
        exit_code=3,
    )
    assert (
        len(errors.splitlines()) == 1 and "between steps 6 and 10" in errors and "there is no checkpoint yet" in errors
    )
    assert not (workdir / "summary.json").exists() and not list((workdir / "checkpoints").glob("[0-9]*"))


@pytest.mark.smoke
def test_evaluate(finished, tmp_path):
    output = run("evaluate.py", f"--workdir={finished}", f"--json={tmp_path / 'result.json'}")
    result, summary = read_json(tmp_path / "result.json"), read_json(finished / "summary.json")
    assert result["examples"] == 360 and result["step"] == 60
    assert result["loss"] == pytest.approx(summary["loss"], rel=1e-6)
    assert result["accuracy_top1"] == summary["accuracy_top1"]
    assert f"top-1 {100 * summary['accuracy_top1']:.2f} %" in output
    best = json.loads(run("evaluate.py", f"--workdir={finished}", "--step=best", "--split=train", "--json=-"))
    assert best["step"] == summary["best"]["step"] and best["examples"] == 1437


def test_evaluating_an_ensemble_with_a_row_for_each_image(finished, tmp_path):
    """Two equal members are as good as one alone; the rows are in the dataset's order and agree with the measures."""
    csv_file, again = tmp_path / "rows.csv", tmp_path / "again,1"
    shutil.copytree(finished, again)
    arguments = [f"--workdir={finished}", f"--workdir={again}", f"--csv={csv_file}", f"--report={tmp_path / 'report'}"]
    result = json.loads(run("evaluate.py", *arguments, "--json=-"))
    assert [member["workdir"] for member in result["members"]] == [str(finished), str(again)]
    assert all(member["accuracy_top1"] == result["accuracy_top1"] for member in result["members"])
    rows = list(csv.DictReader(open(csv_file, newline="")))
    assert [row["file"].split(",")[0] for row in rows] == [f"record {number}" for number in range(360)]
    right = [row["label"] == row["prediction"] for row in rows]
    assert sum(right) / 360 == result["accuracy_top1"]
    assert sum(float(rows[0][digit]) for digit in "0123456789") == pytest.approx(1, abs=1e-5)
    for name in ("confusion.png", "mistakes.png", "reliability.png"):
        assert np.asarray(Image.open(tmp_path / "report" / name).convert("L")).std() > 20  # not blank
    digits = load_digits()
    for digit in (8, 3):
        for number in np.flatnonzero(digits.target == digit)[:5]:
            path = tmp_path / "some" / str(digit) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(path)
    dataset = f"--dataset=image_folder:{tmp_path / 'some'}"
    some = json.loads(run("evaluate.py", f"--workdir={finished}", dataset, "--average=2", "--json=-"))
    assert some["examples"] == 10 and set(some["accuracy_of_class"]) == {"3", "8"}
    assert some["accuracy_top1_among_its_classes"] >= some["accuracy_top1"]
    (tmp_path / "some" / "3").rename(tmp_path / "some" / "three")
    errors = run("evaluate.py", f"--workdir={finished}", dataset, exit_code=2)
    assert len(errors.splitlines()) == 1 and "1 of the dataset's 2 classes are none of the network's 10" in errors


@pytest.mark.smoke
def test_predict_images(finished, tmp_path):
    digits = load_digits()
    for index in range(3):
        Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.jpg").write_text("no image")
    process = Program("predict.py", f"--workdir={finished}", f"--images={tmp_path / '0.png'},{tmp_path}", "--top=2")
    assert process.end() == 1
    lines = [line.split("\t") for line in process.output.splitlines()]
    assert [pathlib.Path(line[0]).name for line in lines] == ["0.png", "0.png", "1.png", "2.png"]
    assert all(len(line) == 5 and float(line[2]) >= float(line[4]) for line in lines)
    assert len(process.errors.splitlines()) == 1 and "broken.jpg" in process.errors
    run("predict.py", f"--workdir={finished}", f"--images={tmp_path}/?.png", f"--csv={tmp_path / 'rows.csv'}")
    rows = list(csv.DictReader(open(tmp_path / "rows.csv", newline="")))
    assert [row["file"] for row in rows] == [line[0] for line in lines[1:]]
    assert all(float(row["probability_5"]) <= float(row["probability_1"]) for row in rows)
    output = run("predict.py", f"--workdir={finished}", f"--images={tmp_path}/?.png", "--top=1", "--json=-")
    assert [each["classes"][0]["class"] for each in json.loads(output)] == [row["class_1"] for row in rows]


def test_names_are_printed_neither_as_markup_nor_as_control_characters(finished, tmp_path):
    workdir, names = tmp_path / "run[/b]:cat:$\x1b[31m", [f"[bold]{number}[/b]\x1b[2J:cat:" for number in range(10)]
    shutil.copytree(finished, workdir)
    config = read_json(workdir / "config.json")
    (workdir / "config.json").write_text(json.dumps(config | {"class_names": names}))
    image = pathlib.Path("d[/b]\x1b[31m.png")
    (tmp_path / image).parent.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / image)
    shutil.copy(tmp_path / image, os.fsencode(tmp_path / image.parent) + b"/\xff:cat:\r.png")
    (tmp_path / image.parent / "broken\x1b[31m.png").write_text("no image")
    arguments = [f"--workdir={workdir}", f"--images={image.parent}"]
    process = Program("predict.py", *arguments, cwd=tmp_path, COLUMNS="400")
    assert process.end() == 1 and process.errors.startswith("cannot read d[/broken")
    output, errors = process.output, process.errors
    assert r"d[/b]\x1b[31m.png" in output and r"d[/\udcff:cat:\r.png" in output
    assert r"[bold]0[/b]\x1b[2J:cat:" in output and r"broken\x1b[31m.png" in errors
    assert all(character.isprintable() for character in (output + errors).translate({ord("\n"): "", ord("\t"): ""}))

    (tmp_path / image.parent / "broken\x1b[31m.png").unlink()
    assert b"/\xff:cat:" in os.fsencode(run("predict.py", *arguments, "--csv=-", cwd=tmp_path))

    errors = run("predict.py", f"--workdir={workdir}", "--images=\x1b[31m\udcff", exit_code=2)
    assert len(errors.splitlines()) == 1 and r"\x1b[31m\udcff" in errors
    new = tmp_path / "new[/b]:cat:$^$\x1b[31m"  # in a title of curves.png $^$ would be a damaged formula
    for _ in range(2):  # a run, and "is finished"
        output = run("train.py", SHORT[0], "--config.num_steps=1", f"--workdir={new}")
        assert r"new[/b]:cat:$^$\x1b[31m" in output and "\x1b" not in output
    assert (new / "curves.png").exists()


def test_predict_arrays(finished, tmp_path):
    inputs = np.random.RandomState(0).standard_normal((70, 32, 32, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)
    run("predict.py", f"--workdir={finished}", f"--inputs={tmp_path / 'x.npy'}", f"--logits={tmp_path / 'y.npz'}")
    logits = np.load(tmp_path / "y.npz")["logits"]
    assert logits.shape == (70, 10) and np.all(np.isfinite(logits))
    for wrong in (inputs[:0], inputs[..., 0], inputs.astype(np.float16), np.zeros((2, 8, 8, 1), np.float32)):
        np.save(tmp_path / "wrong.npy", wrong)
        arguments = [f"--inputs={tmp_path / 'wrong.npy'}", f"--logits={tmp_path / 'z.npz'}"]
        assert len(run("predict.py", f"--workdir={finished}", *arguments, exit_code=2).splitlines()) == 1
    np.save(tmp_path / "x.npy", inputs[69:])
    run("predict.py", f"--workdir={finished}", f"--inputs={tmp_path / 'x.npy'}", f"--logits={tmp_path / 'y.npz'}")
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["logits"], logits[69:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train.py", [], "--config is missing"),
        ("train.py", ["--config.seed=1"], "--config is missing"),
        ("train.py", ["--config=configs/resnet5.py"], "did you mean configs/resnet50.py?"),
        (
            "train.py",
            ["--config=configs/base.py", "--config.modle=vgg16"],
            "--config.modle does not exist; did you mean model?",
        ),
        ("train.py", ["--config=configs/base.py", "--config.seed=one"], "--config.seed=one"),
        ("train.py", ["--config=configs/base.py", "--config.learning-rate=1"], "did you mean learning_rate?"),
        ("train.py", ["--config=configs/base.py", "--config.model.name=x"], "--config.model.name does not exist"),
        ("train.py", ["--config=configs/base.py", "--config.mean[0]=1"], "--config.mean[0] does not exist"),
        ("train.py", ["--config=configs/base.py", "--config..=3"], "does not exist"),
        ("train.py", ["--config=configs/base.py", "--config.model=**"], "unknown model '**'"),
        ("train.py", ["--config=configs/base.py", "--config.step_epochs=30,60"], "it needs schedule=step"),
        ("train.py", ["--config=README.md"], "config file README.md is no recipe"),
        ("train.py", ["--config=models/vgg.py"], "config file models/vgg.py is invalid"),
        ("train.py", ["--config=configs/base.py", "--wrkdir=x"], "wrkdir"),
        ("train.py", ["--config=configs/base.py", "extra"], "'extra' has no flag"),
        ("train.py", ["--config=configs/base.py", "--config.dataset=digit"], "did you mean digits?"),
        ("train.py", ["--config=configs/resnet50.py", "--config.data_dir=/nowhere"], "ILSVRC2012_img_train.tar"),
        ("train.py", ["--config=configs/base.py", "--config.init_from=/nowhere"], "/nowhere is no workdir"),
        ("evaluate.py", ["--workdir=/nowhere"], "/nowhere is no workdir"),
        ("predict.py", ["--workdir=/nowhere"], "give --images=FILES"),
        ("predict.py", ["--workdir=/nowhere", "--images="], "--images is empty"),
        ("evaluate.py", [], "workdir"),
        ("prepare.py", ["digits", "--quality=50"], "--quality has no effect without --max_side"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, program, arguments, message):
    extra = [f"--workdir={tmp_path / 'run'}"] if program == "train.py" else []
    errors = run(program, *arguments, *extra, exit_code=2)
    assert len(errors.splitlines()) == 1 and message in errors
    assert not list(tmp_path.iterdir())


BASE = f"--config={ROOT}/configs/base.py"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("train.py", [BASE, "--workdir=https://server/run"]),
        ("train.py", [BASE, "--config.init_from=ftp://server/run"]),
        ("train.py", [BASE, "--config.dataset=image_folder:https://server/images"]),
        ("train.py", [BASE, "--config.dataset=gs://bucket/imagenet2012"]),
        ("train.py", [BASE, "--config.dataset=cifar10", "--config.data_dir=hdfs://server/data"]),
        ("train.py", [BASE, "--config.compilation_cache_dir=gs://bucket"]),
        ("train.py", [BASE, "--config.remote_cache_dir=gs://bucket"]),
        ("train.py", ["--config=gs://bucket/recipe.py"]),
        ("evaluate.py", ["--workdir=https://server/run"]),
        ("predict.py", ["--workdir=run", "--images=https://server/cat.jpg"]),
        ("convert.py", [BASE, "--weights=x.pth", "--workdir=gs://bucket/run"]),
        ("summarize.py", ["--workdir=gs://bucket/run", "--effective_receptive_field=x.png"]),
        ("benchmark.py", ["--json=gs://bucket/rows.json"]),
        ("prepare.py", ["cifar10", "--data_dir=gs://bucket"]),
        ("prepare.py", ["cifar10", "--archive=s3://bucket/cifar10.tar.gz"]),
    ],
)
def test_remote_paths_that_are_not_supported_are_refused_at_once(tmp_path, program, arguments):
    errors = run(program, *arguments, exit_code=2, cwd=tmp_path, HOME=str(tmp_path))
    assert len(errors.splitlines()) == 1 and re.search("is remote|in no store that is supported", errors)
    assert not list(tmp_path.iterdir())


def test_home_and_environment_variables_in_paths(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(home / "images" / "zero.png")
    (home / "recipe.py").write_text((ROOT / "configs" / "base.py").read_text())
    place = {"cwd": elsewhere, "HOME": str(home), "IMAGES": "images", "PYTHONPATH": str(ROOT)}
    quick = "--config=~/recipe.py", "--config.num_steps=1", "--config.compilation_cache_dir=$HOME/compiled"
    run("train.py", *quick, "--workdir=~/first", **place)
    output = run("train.py", *quick, "--workdir=${HOME}/second", "--config.init_from=~/first", **place)
    assert "weights are those of ~/first" in output
    run("evaluate.py", "--workdir=~/second", "--json=$HOME/result.json", **place)
    assert "zero.png" in run("predict.py", "--workdir=~/second", "--images=~/$IMAGES", **place)
    assert {"first", "second", "compiled", "result.json"} <= {path.name for path in home.iterdir()}
    errors = run("train.py", *quick, "--workdir=$NOWHERE/run", exit_code=2, **place)
    assert "names $NOWHERE, but there is no such environment variable" in errors
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"model": "resnet18", "batch_size": 1},
        {"model": "resnet18", "batch_size": 4, "bn_virtual_batch_size": 1},
        {"model": "resnet18", "batch_size": 4, "accumulation_steps": 4},
        {"model": "googlenet_bn", "batch_size": 1, "aux_weight": 0.3},
    ],
)
def test_batch_normalisation_over_one_value_a_channel_is_refused(tmp_path, options):
    """Only training mode refuses it: at 32 pixels the last maps have one pixel."""
    options = {"dataset": "synthetic", "num_classes": 10, "image_size": 32, "num_steps": 1, **options}
    words = [f"--config.{name}={value}" for name, value in options.items()]
    errors = run("train.py", BASE, *words, f"--workdir={tmp_path / 'run'}", exit_code=2)
    assert len(errors.splitlines()) == 1 and "groups of 1 images with maps of 1x1 pixels sees one value" in errors
    assert not list(tmp_path.iterdir())


def test_a_best_checkpoint_that_is_gone_is_an_error(finished, tmp_path):
    workdir, best = tmp_path / "run", read_json(finished / "summary.json")["best"]["step"]
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(best))
    for program, arguments in (
        ("evaluate.py", ["--json=" + str(tmp_path / "result.json")]),
        ("convert.py", ["--to=safetensors"]),
        ("predict.py", [f"--images={finished / 'curves.png'}"]),
    ):
        errors = run(program, f"--workdir={workdir}", "--step=best", *arguments, exit_code=2)
        assert len(errors.splitlines()) == 1 and f"that of step {best}, whose checkpoint is gone" in errors
    assert not (tmp_path / "result.json").exists() and not list(workdir.glob("*.safetensors"))


def test_the_options_are_listed():
    output = run("train.py", "--options")
    assert "Optimizer" in output and "learning_rate=0.05" in output


def test_a_checkpoint_that_does_not_exist(finished):
    assert "no checkpoint of step 7 " in run("evaluate.py", f"--workdir={finished}", "--step=7", exit_code=2)
    assert "give a number, or best" in run("evaluate.py", f"--workdir={finished}", "--step=last", exit_code=2)


def test_a_workdir_of_another_config(finished):
    errors = run("train.py", *SHORT, "--config.learning_rate=0.1", f"--workdir={finished}", exit_code=2)
    assert "belongs to a run with learning_rate=0.05, not 0.1" in errors


def test_weights_of_another_run(finished, tmp_path):
    """All layers are taken over except the last one, whose number of classes differs."""
    workdir = tmp_path / "run"
    options = [f"--config.init_from={finished}", "--config.num_classes=12", f"--workdir={workdir}"]
    # With a tiny learning rate one step does not change the weights visibly.
    output = run("train.py", SHORT[0], *options, "--config.num_steps=1", "--config.learning_rate=1e-30")
    line = next(line for line in output.splitlines() if line.startswith("weights are those of"))
    (_, theirs, _, _), (_, ours, _, _) = (load_weights(path, make_mesh(1)) for path in (finished, workdir))
    differing = {
        path
        for path, value in nnx.traversals.flatten_mapping(ours).items()
        if not np.array_equal(value, nnx.traversals.flatten_mapping(theirs)[path])
    }
    assert len(differing) == 2 and all(".".join(map(str, path)) in line for path in differing)
    errors = run("train.py", *SHORT, options[0], "--config.model=resnet20", f"--workdir={tmp_path / 'x'}", exit_code=2)
    assert "holds another network" in errors and not (tmp_path / "x").exists()
