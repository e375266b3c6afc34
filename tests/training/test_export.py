"""Exported files give our logits: StableHLO in a process without our code, ONNX in onnxruntime."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from families import SMALL, smallest_size
from safetensors import safe_open

from configs import base
from models import REGISTRY, get_entry, initial_values
from models.torch_files import write_safetensors
from training import export
from training.configuration import resolve_network
from training.inference import make_apply
from training.state import make_model
from training.transfer import save_weights

# One member of each family; those with large files or long programs take 20 seconds to three minutes each.
LONG = ("alexnet", "convnext", "densenet", "googlenet", "inception", "vgg", "xception", "zfnet")
QUICK = set(SMALL.values()) - {SMALL[family] for family in LONG}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in REGISTRY]


def make_workdir(folder, name):
    """Makes a workdir of random weights; returns uint8 images and their logits by our own code."""
    entry, config = get_entry(name), base.get_config()
    config.update({"model": name, "num_classes": 3, "image_size": smallest_size(entry)})
    config.update({"mean": (0.4,) * entry.channels, "std": (0.2,) * entry.channels})
    config = resolve_network(config)
    config.num_steps = 1
    model = make_model(config, training=False)
    values = initial_values(model, 0)
    save_weights(folder, config, ("cat", "dog", "ünïcode"), values)
    size = config.image_size
    images = np.random.RandomState(0).randint(0, 256, (3, size, size, entry.channels)).astype(np.uint8)
    return images, np.asarray(make_apply(config, model)(values, values, images))


RUN_STABLEHLO = """
import json, sys, zipfile
import jax, numpy as np
with zipfile.ZipFile(sys.argv[1]) as file:
    network = jax.export.deserialize(bytearray(file.read("network.bin")))
    class_names = json.loads(file.read("metadata.json"))["class_names"]
np.save(sys.argv[3], network.call(np.load(sys.argv[2])))
print(json.dumps(class_names))
"""


def test_stablehlo_runs_in_a_process_without_our_code(tmp_path):
    images, logits = make_workdir(tmp_path / "run", "resnet20")
    for uint8, batch_size in ((False, None), (True, 3)):
        exported = export.export_workdir(tmp_path / "run", "stablehlo", None, batch_size, uint8)
        assert (exported.model, exported.step) == ("resnet20", 0) and exported.path.name == "resnet20.stablehlo"
        np.save(tmp_path / "images.npy", images if uint8 else images.astype(np.float32))
        command = [sys.executable, "-c", RUN_STABLEHLO, exported.path, tmp_path / "images.npy", tmp_path / "logits.npy"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == ["cat", "dog", "ünïcode"]
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, rtol=0, atol=1e-4 * np.abs(logits).max())


@pytest.mark.parametrize("name", NAMES)
def test_stablehlo_gives_our_logits(name, tmp_path):
    import jax

    images, logits = make_workdir(tmp_path, name)
    path = export.export_workdir(tmp_path, "stablehlo").path
    with zipfile.ZipFile(path) as file:
        network = jax.export.deserialize(bytearray(file.read("network.bin")))
    for count in (3, 1):  # one file for any number of images
        actual = network.call(images[:count].astype(np.float32))
        np.testing.assert_allclose(actual, logits[:count], rtol=0, atol=1e-4 * np.abs(logits).max())
    assert network.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("name", NAMES)
def test_onnx_gives_our_logits(name, tmp_path):
    pytest.importorskip("jax2onnx")
    import onnxruntime

    images, logits = make_workdir(tmp_path, name)
    uint8 = name == "lenet5"
    path = export.export_workdir(tmp_path, "onnx", uint8=uint8).path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (3, 1):
        (actual,) = session.run(["logits"], {"images": images[:count].astype(np.uint8 if uint8 else np.float32)})
        np.testing.assert_allclose(actual, logits[:count], rtol=0, atol=1e-4 * np.abs(logits).max())
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["cat", "dog", "ünïcode"]


def test_safetensors_names_the_classes(tmp_path):
    make_workdir(tmp_path, "resnet20")
    with safe_open(export.export_workdir(tmp_path, "safetensors").path, "numpy") as file:
        assert json.loads(file.metadata()["class_names"]) == ["cat", "dog", "ünïcode"]
        assert "layer1.0.conv1.weight" in file.keys()


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match=r"none/x.safetensors cannot be written: .*No such file"):
        write_safetensors(tmp_path / "none" / "x.safetensors", {"a": np.zeros(2)})
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(OSError, match=r"x.safetensors cannot be written: Is a directory"):
        write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_an_exporter_cannot_do_is_refused_by_name(tmp_path, monkeypatch):
    make_workdir(tmp_path, "lenet5")

    def fails(path, *_):
        path.write_bytes(b"half")
        raise NotImplementedError("no rule for foo")

    monkeypatch.setattr(export, "_write_onnx", fails)
    with pytest.raises(ValueError, match="lenet5 cannot be written as onnx: NotImplementedError: no rule for foo"):
        export.export_workdir(tmp_path, "onnx")
    monkeypatch.setattr(export, "_write_onnx", lambda *_: __import__("a_missing_package"))
    with pytest.raises(ValueError, match="pip install a_missing_package"):
        export.export_workdir(tmp_path, "onnx")
    assert not [path for path in tmp_path.iterdir() if "lenet5" in path.name]
