"""Published weights are found by name, downloaded once, verified, and bring their images' settings along."""

import csv
import hashlib
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx
from golden import make_state_dict
from torch_pickles import write_checkpoint

import models
from configs import base
from input_pipeline import downloads, known_class_names
from models.torch_files import write_safetensors
from models.torch_names import from_torch, torch_shapes
from training import configuration, conversion, published_weights
from training.program import make_program
from training.published_weights import fetch, find, is_published
from training.state import make_mesh
from training.transfer import initialize_from, load_model
from training.workdir import read_class_names

TABLE = published_weights.published_weights()
with open(pathlib.Path(models.__file__).parents[1] / "analysis" / "reference.csv", newline="") as file:
    REFERENCE = {row["name"]: row for row in csv.DictReader(file)}
# The accuracies of the papers' networks in torchvision's documentation of its weights.
DOCUMENTED = {"torchvision/resnet50": 80.858, "torchvision/vgg16": 71.592, "torchvision/squeezenet1_1": 58.178}


def test_the_table():
    for name, row in TABLE.items():
        assert is_published(name) and models.get_entry(row.model).torch_names, name
        assert re.fullmatch("[0-9a-f]{8,}", row.sha256) or row.url.startswith(published_weights.HUB), name
        assert row.sha256 in row.url and row.source and row.interpolation in ("bilinear", "bicubic")
        assert row.resize >= row.image_size and 50 < row.top1 < (row.test_top1 or 90), name
        if name.startswith("torchvision/"):  # what the registry says of the same files
            assert (row.mean, row.std) == (
                models.get_entry(row.model).torch_mean,
                models.get_entry(row.model).torch_std,
            )
        # Besides the parameters a file has running statistics, and may have auxiliary heads.
        counted = float(REFERENCE[row.model]["parameters_with_aux"] or REFERENCE[row.model]["parameters"])
        assert float(REFERENCE[row.model]["parameters"]) < (row.mebibytes + 0.001) * 2**18 < 1.03 * counted, name
    for name, top1 in DOCUMENTED.items():
        assert find(name).top1 == top1
    defaults = [name.rpartition(".")[0] for name, row in TABLE.items() if row.is_default]
    assert len(defaults) == len(set(defaults)) == len({name.rpartition(".")[0] for name in TABLE})


def test_every_network_that_is_published_is_in_the_table():
    """The others have no counterpart: variants of the papers, CIFAR's networks, MobileNets of other sizes."""
    without = {entry.name for entry in models.REGISTRY.values() if entry.torch_names} - {
        row.model for row in TABLE.values()
    }
    variants = (
        r"plain\d+|resnet\d+_(v1|a|c|blur)|resnet(20|32|44|56|110)|googlenet(_no_lrn|_naive|_bn)?|mobilenet_v1_.+"
    )
    variants += "|vit_tiny_patch32_224"
    assert all(re.fullmatch(variants, name) for name in without), without


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("torchvision/resnet5", None, "did you mean torchvision/resnet50"),
        ("timm/resnet50.a1_1n1k", None, r"did you mean timm/resnet50.a1_in1k\? .*given as ./timm/resnet50.a1_1n1k"),
        ("timm/zzz", None, "--list prints"),
        (
            "torchvision/resnet50",
            "vgg16",
            "has the weights of resnet50, not of vgg16; for vgg16 there are torchvision/vgg16",
        ),
        ("torchvision/resnet50", "lenet5", "for lenet5 none are known"),
        ("torchvision/resnet50", "resnet50_v1", "has the weights of resnet50, not of resnet50_v1"),
    ],
)
def test_names_that_do_not_fit(name, model, message):
    with pytest.raises(ValueError, match=message):
        find(name, model)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches, no huggingface_hub, and short waits."""
    for variable, folder in (("TORCH_HOME", "torch"), ("HF_HOME", "hf")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    for variable in ("HF_HUB_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return tmp_path


def file_of(model, path, **create):
    """Writes golden weights of a network with PyTorch's names; returns the file's bytes."""
    shapes = torch_shapes(models.get_entry(model), models.create_model(model, abstract=True, **create))
    tensors = {name: array.astype(np.float32) for name, array in make_state_dict(shapes).items()}
    if path.suffix == ".pth":
        write_checkpoint(path, {"state_dict": tensors})
    else:
        write_safetensors(path, tensors)
    return path.read_bytes()


@pytest.fixture
def torchvision(caches, server, monkeypatch):
    """torchvision's SqueezeNet at the server, as its own file is at download.pytorch.org."""
    row = find("torchvision/squeezenet1_1")
    data = file_of(row.model, caches / "weights.pth")
    sha256 = hashlib.sha256(data).hexdigest()[:8]
    path = f"/models/squeezenet1_1-{sha256}.pth"
    server.files[path] = data
    changed = row.__class__(**{**row.__dict__, "url": server.url + path, "sha256": sha256})
    monkeypatch.setitem(TABLE, row.name, changed)
    return changed, caches / "torch" / "hub" / "checkpoints" / path.rpartition("/")[2], path


@pytest.fixture
def timm(caches, server, monkeypatch):
    """timm's SqueezeNet, if there were one, at the server, as its files are on the Hugging Face hub."""
    row = find("torchvision/squeezenet1_1")
    data = file_of(row.model, caches / "weights.safetensors")
    path, elsewhere = "/timm/squeezenet1_1.tv_in1k/resolve/main/model.safetensors", "/cdn/blob"
    server.files[elsewhere] = data
    url = published_weights.HUB + path
    changed = row.__class__(**{**row.__dict__, "name": "timm/squeezenet1_1.tv_in1k", "url": url, "sha256": ""})
    monkeypatch.setitem(TABLE, changed.name, changed)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    sha256 = hashlib.sha256(data).hexdigest()
    redirect = {
        "Location": f"http://127.0.0.1:{server.url.rpartition(':')[2]}{elsewhere}",
        "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": "c" * 40, "ETag": '"0123"',
    }  # fmt: skip
    server.faults[path] = [("status", 302, redirect)] * 100
    folder = caches / "hf" / "hub" / "models--timm--squeezenet1_1.tv_in1k"
    return changed, folder, path, redirect


def test_a_file_of_torchvision_is_downloaded_once_and_verified(torchvision, server):
    row, cached, path = torchvision
    server.faults[path] = [("stop", 100_000), ("status", 429, {"Retry-After": "0"})]
    with pytest.raises(ConnectionError, match="stopped after 100,000"):
        fetch(row)
    assert not cached.exists()
    assert fetch(row) == fetch(row) == cached and cached.read_bytes() == server.files[path]
    assert server.requests == [("GET", path, start) for start in (0, 100_000, 100_000)]
    cached.write_bytes(b"damaged")
    with pytest.raises(OSError, match="is damaged: its SHA-256 is .* remove it to download it again"):
        fetch(row)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([("instead", b"something else")], "is not what it was: its SHA-256 is"),
        ([("status", 404, {})], "HTTP 404"),
        ([("hang",)], "timed out"),
        ([("status", 429, {"Retry-After": "900"})], "try again in 900 s"),
    ],
    ids=["damaged", "missing", "silent", "busy"],
)
def test_what_is_not_verified_is_never_in_the_cache(torchvision, server, faults, message):
    row, cached, path = torchvision
    server.faults[path] = faults
    with pytest.raises(OSError, match=message):
        fetch(row)
    assert not cached.exists() and not [other for other in cached.parent.iterdir() if other.stat().st_size]


def test_without_a_network_the_error_names_the_address_and_the_folder(torchvision, monkeypatch):
    row, cached, _ = torchvision
    row = row.__class__(**{**row.__dict__, "url": f"http://127.0.0.1:1/{cached.name}"})
    with pytest.raises(ConnectionError) as raised:
        fetch(row)
    assert "\n" not in str(raised.value)
    assert f"cannot download {row.url}: " in str(raised.value)
    assert f"put it into {cached.parent} as {cached.name}" in str(raised.value)


def test_a_file_of_the_hub_has_the_hub_s_layout(timm, server, monkeypatch):
    row, folder, path, redirect = timm
    sha256 = redirect["X-Linked-Etag"].strip('"')
    server.faults["/cdn/blob"] = [("stop", 100_000)]
    with pytest.raises(ConnectionError, match="stopped after 100,000"):
        fetch(row)
    assert not (folder / "snapshots").exists()
    found = fetch(row)
    assert found == folder / "snapshots" / ("c" * 40) / "model.safetensors"
    assert found.resolve() == folder / "blobs" / sha256 and found.read_bytes() == server.files["/cdn/blob"]
    assert (folder / "refs" / "main").read_text() == "c" * 40
    assert [place.name for place in (folder / "blobs").iterdir()] == [sha256]
    before = len(server.requests)
    assert fetch(row) == found and len(server.requests) == before
    (folder / "blobs" / sha256).write_bytes(b"damaged")
    with pytest.raises(OSError, match="is damaged: its SHA-256 is"):
        fetch(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda headers: headers.update({"X-Linked-Etag": f'"{"0" * 64}"'}), "is not what it was"),
        (lambda headers: headers.pop("X-Linked-Etag"), "comes without a checksum, so it is not used"),
        (lambda headers: headers.update({"X-Linked-Etag": '"../../../evil"'}), "comes without a checksum"),
    ],
    ids=["another checksum", "none", "a path"],
)
def test_a_file_of_the_hub_without_the_right_checksum_is_not_used(timm, server, change, message):
    row, folder, _, redirect = timm
    change(redirect)
    with pytest.raises(OSError, match=message):
        fetch(row)
    assert not (folder / "snapshots").exists() and not list(folder.glob("blobs/*"))


def test_the_hub_s_errors_name_the_folder(timm, server):
    row, folder, path, _ = timm
    server.faults[path] = [("status", 404, {})]
    with pytest.raises(OSError, match="HTTP 404") as raised:
        fetch(row)
    assert f"put it into {folder}/snapshots/main as model.safetensors" in str(raised.value)
    (folder / "snapshots" / "main").mkdir(parents=True)
    (folder / "snapshots" / "main" / "model.safetensors").write_bytes(server.files["/cdn/blob"])
    assert fetch(row) == folder / "snapshots" / "main" / "model.safetensors"


def test_huggingface_hub_is_used_where_it_is_installed(timm, monkeypatch):
    row, folder, _, redirect = timm
    asked, blob = [], folder / "blobs" / ("1" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"half a file")

    def hf_hub_download(*arguments, **options):
        asked.append((arguments, options))
        return str(blob)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    with pytest.raises(OSError, match="is damaged"):
        fetch(row)
    options = {"cache_dir": folder.parent, "endpoint": redirect["Location"].removesuffix("/cdn/blob")}
    assert asked == [(("timm/squeezenet1_1.tv_in1k", "model.safetensors"), options)]


def tuned_config(**options):
    config = base.get_imagenet_config()
    config.update(
        {"model": "squeezenet1_1", "init_from": "torchvision/squeezenet1_1", "dataset": "synthetic"} | options
    )
    return config


def test_the_settings_of_the_images_come_along_unless_they_are_typed():
    config = tuned_config(mean=(0.5,), image_size=64)
    resolved = configuration.resolve_network(config)
    row = find(config.init_from)
    assert (resolved.image_size, resolved.eval_resize, resolved.mean, resolved.std) == (224, 256, row.mean, row.std)
    config.update({"image_size": 112, "mean": (0.4,)})
    resolved = configuration.resolve_network(config, typed=("image_size", "mean"))
    assert (resolved.image_size, resolved.eval_resize, resolved.mean, resolved.std) == (112, 128, (0.4,), row.std)
    config = tuned_config(model="resnet50", init_from="timm/resnet50.a1_in1k", image_size=None)
    assert configuration.resolve_network(config).interpolation == "bicubic"
    with pytest.raises(ValueError, match="channels=1 does not fit .* wants colour"):
        configuration.resolve_network(tuned_config(channels=1))


@pytest.mark.parametrize("publisher", ["torchvision", "timm"])
def test_a_run_starts_from_published_weights(publisher, request):
    row = request.getfixturevalue(publisher)[0]
    config = configuration.resolve_network(tuned_config(init_from=row.name, image_size=64), typed=("image_size",))
    config.num_classes, config.num_steps = 2, 1
    state = make_program(config, make_mesh(1), 1).initial_state()
    fresh = np.asarray(state["params"]["head"]["conv"]["kernel"])
    source = conversion.load_published(config)
    entry = models.get_entry(row.model)
    shapes = torch_shapes(entry, models.create_model(row.model, abstract=True))
    expected = from_torch(entry, models.create_model(row.model, abstract=True), make_state_dict(shapes))
    # Classes that ImageNet has keep their weights; others get a new head.
    begun = initialize_from(state, source, config, ("goldfish", "tench"))
    assert not begun.new
    params = begun.state["params"]
    np.testing.assert_array_equal(params["conv1"]["conv"]["kernel"], expected["conv1"]["conv"]["kernel"])
    np.testing.assert_array_equal(params["head"]["conv"]["kernel"], expected["head"]["conv"]["kernel"][..., [1, 0]])
    state = make_program(config, make_mesh(1), 1).initial_state()
    begun = initialize_from(state, source, config, ("daisy", "a rose"))
    assert begun.new == ["head.conv.bias", "head.conv.kernel"] and "'a rose'" in begun.differing_classes
    np.testing.assert_array_equal(begun.state["params"]["head"]["conv"]["kernel"], fresh)


def test_published_weights_become_a_workdir(timm, tmp_path):
    row, workdir = timm[0], tmp_path / "run"
    config = base.get_imagenet_config()
    config.model = row.model
    imported = conversion.import_weights(config, row.name, workdir)
    assert (imported.model, imported.left_out) == ("squeezenet1_1", [])
    model, config = load_model(workdir)
    assert (config.image_size, config.eval_resize, config.mean) == (224, 256, row.mean)
    shapes = torch_shapes(models.get_entry(row.model), model)
    expected = models.create_model(row.model)
    nnx.update(
        expected,
        jax.tree.map(jax.numpy.asarray, from_torch(models.get_entry(row.model), expected, make_state_dict(shapes))),
    )
    images = np.random.RandomState(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(model(images), expected(images), rtol=1e-5)
    assert tuple(read_class_names(workdir)) == known_class_names("imagenet2012")
    config = base.get_imagenet_config()
    config.model = "squeezenet1_0"
    with pytest.raises(ValueError, match="has the weights of squeezenet1_1, not of squeezenet1_0"):
        conversion.import_weights(config, row.name, tmp_path / "other")
