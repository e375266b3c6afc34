"""summarize.py as a user runs it."""

import csv
import json

import pytest
from PIL import Image
from program import ROOT, Program

from configs import base
from models import initial_values
from training.configuration import resolve_network
from training.state import make_model
from training.transfer import save_weights


def run(*arguments):
    """Returns the exit code, the standard output and the standard error, from a folder without configs/."""
    process = Program("summarize.py", *arguments, cwd=ROOT / "docs")
    return process.end(), process.output, process.errors


def test_json_csv_and_picture(tmp_path):
    code, output, errors = run(
        *("--config.model=vgg16", "--config.batch_size=2", "--json=-", "--sort=parameters"),
        *(f"--csv={tmp_path}/vgg16.csv", f"--picture={tmp_path}/vgg16.png"),
    )
    assert Image.open(tmp_path / "vgg16.png").format == "PNG"
    assert (code, errors) == (0, "")
    result = json.loads(output)
    assert (result["model"], result["image_size"], result["macs"]) == ("vgg16", 224, 15_470_264_320)
    assert (result["parameters"], result["parameters_with_aux"]) == (138_357_544, None)
    assert "backward_macs" not in result
    largest = result["layers"][0]
    assert largest == {
        "name": "dense1",
        "kind": "dense",
        "kernel": None,
        "stride": None,
        "output_shape": [4096],
        "parameters": 102_764_544,
        "macs": 102_760_448,
        "activation_bytes": 2 * 4 * 4096,
        "receptive_field": 404,
        "jump": 32,
    }
    with (tmp_path / "vgg16.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["layers"]) == 21 + 15 + 2  # ReLU and dropout have rows too
    assert (rows[0]["name"], rows[0]["macs"], rows[3]["output_shape"]) == ("dense1", "102760448", "28x28x512")


def test_the_table_is_whole_when_piped():
    code, output, errors = run("--config=" + str(ROOT / "configs" / "googlenet.py"), "--backward", "--wide")
    assert (code, errors) == (0, "")
    table, totals, note, shares = output.split("\n\n")
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1 and all(line[0] == line[-1] == "|" for line in lines)
    assert lines[0].split()[1::2][:3] == ["name", "kind", "kernel"] and "backward_macs" in lines[0]
    assert "parameters: 6,998,552 (13,378,280 with its auxiliary heads)" in totals
    columns = list(zip(*(line.split("|")[1:-1] for line in shares.splitlines()[2:]), strict=True))
    for column in columns[1:]:
        assert sum(map(float, column)) == pytest.approx(100, abs=0.2)


def test_the_effective_receptive_field_of_a_run(tmp_path):
    config = base.get_config()
    config.num_classes = 10
    config = resolve_network(config)
    save_weights(tmp_path, config, tuple("0123456789"), initial_values(make_model(config, training=True), 0))
    picture = tmp_path / "field.png"
    code, output, errors = run(f"--workdir={tmp_path}", f"--effective_receptive_field={picture}", "--images=9")
    assert (code, errors) == (0, "")
    # LeCun 1998: 5x5, 2x2, 5x5 and 2x2 windows, the second and the fourth of stride 2.
    assert output.startswith("lenet5, step 0, 9 validation images of digits: 95.45 % of the influence")
    assert "its theoretical field has 16, the images 32" in output
    assert Image.open(picture).format == "PNG"


def test_the_table_of_lectures():
    """The rows of CS231n's notes, "VGGNet in detail"; the sum that the notes give, 24M, is not that of their rows."""
    code, output, errors = run("--config.model=vgg16", "--no_biases")
    assert (code, errors) == (0, "")
    table, totals = output.split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows[0] == ["image", "", "224x224x3", "150,528", "0"]
    assert rows[2] == ["stage1.1/conv", "conv", "224x224x64", "3,211,264", "36,864"]
    assert rows[-3:] == [
        ["dense1", "dense", "4096", "4,096", "102,760,448"],
        ["dense2", "dense", "4096", "4,096", "16,777,216"],
        ["head", "dense", "1000", "1,000", "4,096,000"],
    ]
    assert len(rows) == 22
    assert sum(int(row[3].replace(",", "")) for row in rows) == 15_237_608 and "15,237,608, 61.0 MB" in totals
    assert "parameters without biases: 138,344,128" in totals


def test_some_networks_and_the_pictures_of_all():
    code, output, errors = run("--models=resnet34*,plain34", "--csv=-")
    assert (code, errors) == (0, "")
    rows = list(csv.DictReader(output.splitlines()))
    assert [row["model"] for row in rows] == ["resnet34", "resnet34_v2", "resnet34_a", "resnet34_c", "plain34"]


def test_the_accuracies_over_cost_need_no_benchmark(tmp_path):
    code, output, errors = run(f"--report={tmp_path}", "--models=lenet5")
    assert (code, errors) == (0, "")
    pictures = ["accuracy_over_gflops.png", "accuracy_per_parameter.png"]
    assert output.splitlines()[-1] == f"pictures: {', '.join(f'{tmp_path}/{name}' for name in pictures)}"
    assert all(Image.open(tmp_path / name).width > 500 for name in pictures)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.model=vgg_16"], "unknown model 'vgg_16'; did you mean 'vgg16'?"),
        (["--config.model=lenet5", "--sort=mac"], "--sort=mac is no column; did you mean macs?"),
        (["--config.model=lenet5", "--json=/nowhere/at/all.json"], "/nowhere/at/all.json cannot be written"),
        (["--workdir=/nowhere", "--effective_receptive_field=field.png"], "/nowhere is no workdir"),
        (["--workdir=/nowhere"], "give both --workdir=DIR and --effective_receptive_field=FILE.png"),
        (["--models=vgg,resnet"], "unknown model 'vgg'"),
        (["--config.model=lenet5", "--models=vgg16"], "--models, --layer and --report are not for a single network"),
        (["--layer=Conv(3, 8, 3)"], "give both --layer=CALL and --map=HEIGHTxWIDTHxCHANNELS"),
        (["--layer=Conv(3, 8, 3)", "--map=8x8x3", "--picture=x.png"], "leave --models, --picture and --report out"),
        (["--no_biases"], "--no_biases is for one network"),
        (["--wide"], "--wide is for one network"),
        (["--workdir=/x", "--effective_receptive_field=f.png", "--json=x.json"], "--json has no effect on --effective"),
        (["--config.modell=vgg16"], "option --config.modell does not exist; did you mean model?"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message):
    code, output, errors = run(*arguments)
    assert (code, output, len(errors.splitlines())) == (2, "", 1)
    assert message in errors


def test_the_whole_zoo_is_there_without_counting(tmp_path):
    code, output, errors = run("--sort=GMACs", "--csv=-", f"--picture={tmp_path}/shapes.png")
    assert (code, errors) == (0, "") and Image.open(tmp_path / "shapes.png").format == "PNG"
    rows = list(csv.DictReader(output.splitlines()))
    assert rows[0]["model"].startswith("vgg19") and rows[-1]["model"].startswith("lenet5")
    (row,) = (row for row in rows if row["model"] == "resnet50")
    assert (row["family"], row["paper"], row["top1"], row["source"]) == ("resnet", "He 2015", "76.13", "torchvision V1")
