"""convert.py makes a workdir of PyTorch's weights for the other programs, and exports the same weights again."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from golden import make_state_dict
from PIL import Image
from program import run
from torch_pickles import write_checkpoint

import models
from models.torch_files import read_state_dict, write_safetensors
from models.torch_names import torch_shapes
from training.state import make_mesh
from training.transfer import load_weights

RESNET = (
    "--config=configs/cifar10_resnet20.py",
    "--config.dataset=synthetic",
    "--config.synthetic_examples=8",
    "--config.num_classes=10",
)


@pytest.fixture
def weights(tmp_path):
    """A state dict of ResNet-20 with DataParallel's names, as safetensors."""
    state_dict = make_state_dict(
        torch_shapes(models.get_entry("resnet20"), models.create_model("resnet20", abstract=True))
    )
    state_dict = {f"module.{name}": array.astype(np.float32) for name, array in state_dict.items()}
    write_safetensors(tmp_path / "in.safetensors", state_dict)
    return tmp_path / "in.safetensors"


@pytest.mark.smoke
def test_there_and_back(weights, tmp_path):
    workdir = tmp_path / "run"
    output = run("convert.py", *RESNET, f"--weights={weights}", f"--workdir={workdir}", "--to=safetensors")
    assert "resnet20" in output
    given, returned = read_state_dict(weights), read_state_dict(workdir / "resnet20.safetensors")
    assert given.keys() == returned.keys()
    assert all(np.array_equal(given[name], returned[name]) for name in given)


def test_the_other_programs_take_it(weights, tmp_path):
    workdir, inputs = tmp_path / "run", np.random.RandomState(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    run("convert.py", *RESNET, f"--weights={weights}", f"--workdir={workdir}")
    np.save(tmp_path / "x.npy", inputs)
    run("predict.py", f"--workdir={workdir}", f"--inputs={tmp_path / 'x.npy'}", f"--logits={tmp_path / 'y.npz'}")
    config, params, batch_stats, step = load_weights(workdir, make_mesh(1))
    # The published networks were trained with ImageNet's normalisation, so the recipe's normalisation is replaced.
    assert step == 0 and config.mean == (0.485, 0.456, 0.406)
    model = models.create_model("resnet20")
    model_state = jax.tree.map(np.asarray, {"params": params, "batch_stats": batch_stats})
    from flax import nnx

    nnx.update(model, model_state["params"], model_state["batch_stats"])
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["logits"], model(inputs), rtol=1e-3, atol=1e-3)
    result = json.loads(run("evaluate.py", f"--workdir={workdir}", "--json=-"))
    assert result["examples"] == 8
    options = ["--config.num_steps=1", "--config.compilation_cache_dir=", f"--config.init_from={workdir}"]
    assert "but for nothing" in run("train.py", *RESNET, *options, f"--workdir={tmp_path / 'tuned'}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("bn1.weight"), "'bn1.weight'"),
        (lambda tensors: tensors.update(extra=np.zeros(3, np.float32)), "'extra'"),
        (lambda tensors: tensors.update({"linear.bias": np.zeros(7, np.float32)}), "'linear.bias' has shape"),
        (lambda tensors: tensors.update({"bn1.weight": np.full(16, np.nan, np.float32)}), "not finite"),
    ],
    ids=["missing", "surplus", "misshapen", "not finite"],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(weights, tmp_path, change, message):
    tensors = read_state_dict(weights)
    change(tensors)
    np.savez(tmp_path / "changed.npz", **tensors)
    workdir = tmp_path / "run"
    errors = run("convert.py", *RESNET, f"--weights={tmp_path / 'changed.npz'}", f"--workdir={workdir}", exit_code=2)
    assert len(errors.splitlines()) == 1 and message in errors and not workdir.exists()


def test_heads_that_are_not_asked_for_are_left_out_and_named(tmp_path):
    entry = models.get_entry("googlenet_bn_3x3")
    shapes = torch_shapes(entry, models.create_model(entry.name, aux_heads=entry.aux_heads, abstract=True))
    np.savez(tmp_path / "in.npz", **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    options = ["--config=configs/googlenet.py", f"--config.model={entry.name}", f"--weights={tmp_path / 'in.npz'}"]
    output = run("convert.py", *options, "--config.aux_weight=0", f"--workdir={tmp_path / 'without'}")
    assert "left out" in output and "aux1.conv.conv.weight" in output
    output = run("convert.py", *options, f"--workdir={tmp_path / 'with'}")
    assert "left out" not in output
    config = json.loads((tmp_path / "with" / "config.json").read_text())["config"]
    # torchvision's transform_input: this network saw pixels between -1 and 1.
    assert config["mean"] == [0.5, 0.5, 0.5] and config["std"] == [0.5, 0.5, 0.5]


def test_bad_calls(weights, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert "give --weights=FILE" in run("convert.py", workdir, exit_code=2)
    assert "--config is missing" in run("convert.py", f"--weights={weights}", workdir, exit_code=2)
    assert "no file of weights" in run("convert.py", *RESNET, "--weights=/none.pth", workdir, exit_code=2)
    assert "no workdir" in run("convert.py", "--to=safetensors", workdir, exit_code=2)
    assert "--key has no effect" in run("convert.py", "--to=onnx", "--key=model", workdir, exit_code=2)
    assert "--step has no effect" in run(
        "convert.py", *RESNET, f"--weights={weights}", "--step=1", workdir, exit_code=2
    )
    assert not pathlib.Path(tmp_path / "run").exists()


def test_a_state_dict_of_a_training_checkpoint_is_chosen_and_the_others_are_named(weights, tmp_path):
    tensors = read_state_dict(weights)
    averaged = {name: array + 1 for name, array in tensors.items()}
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, {"state_dict": tensors, "state_dict_ema": averaged})
    output = run("convert.py", *RESNET, f"--weights={path}", f"--workdir={tmp_path / 'run'}", "--to=safetensors")
    assert "taken from state_dict; --key chooses another: state_dict_ema" in output
    arguments = "--key=state_dict_ema", f"--workdir={tmp_path / 'ema'}", "--to=safetensors"
    assert "taken from state_dict_ema" in run("convert.py", *RESNET, f"--weights={path}", *arguments)
    for folder, expected in (("run", tensors), ("ema", averaged)):
        returned = read_state_dict(tmp_path / folder / "resnet20.safetensors")
        assert all(np.array_equal(expected[name], returned[name]) for name in returned)


def test_accuracy_does_not_depend_on_the_names_of_the_folders(weights, tmp_path):
    """The same images in folders of CIFAR-10's classes, in folders of some of them, and with an additional class."""
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    workdir, images = tmp_path / "run", tmp_path / "images"
    noise = np.random.RandomState(0).randint(0, 256, (10, 2, 32, 32, 3)).astype(np.uint8)
    for name, pair in zip(names, noise, strict=True):
        (images / "val" / name).mkdir(parents=True)
        for number, pixels in enumerate(pair):
            Image.fromarray(pixels).save(images / "val" / name / f"{number}.png")
    options = [
        "--config=configs/cifar10_resnet20.py",
        f"--config.dataset=image_folder:{images}",
        "--config.num_classes=10",
    ]
    run("convert.py", *options, f"--weights={weights}", f"--workdir={workdir}")

    def evaluate():
        return json.loads(run("evaluate.py", f"--workdir={workdir}", "--split=val", "--json=-"))

    whole = evaluate()
    # Without the first class the labels of the other classes do not change.
    shutil.rmtree(images / "val" / names[0])
    subset = evaluate()
    lost = whole["examples"] * whole["loss"] - subset["examples"] * subset["loss"]
    assert (whole["examples"], subset["examples"]) == (20, 18)
    # The contribution of the first class's two images, evaluated alone.
    for name in names[1:]:
        shutil.rmtree(images / "val" / name)
    (images / "val" / names[0]).mkdir()
    for number, pixels in enumerate(noise[0]):
        Image.fromarray(pixels).save(images / "val" / names[0] / f"{number}.png")
    assert 2 * evaluate()["loss"] == pytest.approx(lost, rel=1e-3)
    (images / "val" / names[0]).rename(images / "val" / "owl")
    assert "'owl'; name them as the network's are" in run(
        "evaluate.py", f"--workdir={workdir}", "--split=val", "--json=-", exit_code=2
    )


def test_all_images_of_another_folder_are_evaluated_but_of_the_runs_own_only_those_held_out(weights, tmp_path):
    for name in ("0", "1"):
        for number, pixels in enumerate(np.random.RandomState(0).randint(0, 256, (10, 32, 32, 3)).astype(np.uint8)):
            path = tmp_path / "own" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    shutil.copytree(tmp_path / "own", tmp_path / "other")
    (tmp_path / "link").symlink_to(tmp_path / "own")
    own = [
        RESNET[0],
        "--config.num_classes=10",
        f"--config.dataset=image_folder:{tmp_path / 'own'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    run("convert.py", *own, f"--weights={weights}")

    def count(folder):
        arguments = [f"--workdir={tmp_path / 'run'}", f"--dataset=image_folder:{tmp_path / folder}", "--json=-"]
        return json.loads(run("evaluate.py", *arguments, "--batch_size=3"))["examples"]

    # validation_share is 0.2
    assert [count(folder) for folder in ("own", "own/", "link", "other")] == [4, 4, 4, 20]
