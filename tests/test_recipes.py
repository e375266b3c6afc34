"""Every recipe trains by train.py, two steps on small synthetic images."""

import importlib
import json
import math
import pathlib
import re

import jax
import pytest

import models
import train
from configs import base
from configs._option import text_of
from training import configuration, published_weights
from training.interruption import Interruption
from training.state import make_mesh

# Recipes that take 20 s and more, because of their size or compile time, and recipes that differ from another one only
# in the network, which tests/models/ covers.
SLOW = {"alexnet_owt", "cifar10_densenet40_k12", "densenet121", "googlenet_bn", "inception_resnet_v2", "inception_v3"}
SLOW |= {"inception_v4", "resnet101", "resnet152", "resnet50_v1", "vgg16", "vgg16_bn", "xception", "zfnet"}
SLOW |= {"alexnet_ungrouped", "zfnet_wide", "vgg11", "vgg13", "vgg16_c", "vgg19", "vgg11_bn", "vgg13_bn", "vgg19_bn"}
SLOW |= {"googlenet_bn_3x3", "resnet101_v1", "resnet152_v1", "plain18", "densenet169", "densenet201", "squeezenet1_1"}
SLOW |= {"resnet34", "plain34", "nin", "resnet18", "alexnet", "squeezenet1_0", "cifar10_resnet110"}
SLOW |= {
    "imagenette_googlenet",
    "finetune",
    "resnet50_a1",
    "resnet50_a3",
    "resnet50_tv2",
    "resnet152_a1h",
    "vgg16_modern",
}
SLOW |= {"vgg16_bn_modern", "densenet121_ra", "inception_v3_ra", "mobilenet_v1_ra4", "imagenette_20", "imagenette_80"}
SLOW |= {"imagenette_5", "resnet18_16epochs", "convnext_tiny", "vit_s16"}

RECIPES = sorted(path.stem for path in (pathlib.Path(__file__).parent.parent / "configs").glob("[!_]*.py"))


def parameter(name):
    return pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))


@pytest.mark.parametrize("name", list(map(parameter, RECIPES)))
def test_recipe(name, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(1))  # eight copies of VGG would not fit into memory
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    config = importlib.import_module(f"configs.{name}").get_config()
    config.dataset, config.synthetic_examples, config.num_classes = "synthetic", 8, 10
    config.train_split = None
    config.image_size = min(models.get_entry(config.model).image_size, 96)
    config.train_sizes = tuple((epoch, min(size, 64)) for epoch, size in config.train_sizes)
    config.batch_size = 8 if config.repeated_augmentation < 4 else 16
    config.eval_batch_size, config.num_steps, config.warmup_epochs = 8, 2, 0.0
    config.compilation_cache_dir, config.init_from, config.bn_virtual_batch_size = "", "", 0
    train.train(config, tmp_path / name, Interruption())

    summary = json.loads((tmp_path / name / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert summary["step"] == 2 and summary["model"] == config.model
    assert {"train", "validation"} == {row["split"] for row in rows}
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert ("total_loss" in rows[0]) == (any(config.aux_weight) or config.loss != "cross_entropy")
    heads = [name for name in rows[0] if name.startswith("aux")]
    assert len(heads) == (len(models.get_entry(config.model).aux_heads) if any(config.aux_weight) else 0)
    assert (tmp_path / name / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("name", RECIPES)
def test_the_options_of_a_recipe_do_not_contradict_each_other_at_full_size(name, monkeypatch):
    monkeypatch.setattr(configuration, "check_image_size", lambda network, config: None)  # slow, and tested elsewhere
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    config = importlib.import_module(f"configs.{name}").get_config()
    config = configuration.resolve_run(configuration.resolve_network(config), num_classes=10, num_images=1_281_167)
    for option in base.OPTIONS:
        base.OPTIONS[option].check(option, config[option])


PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_of_recipes_has_the_options_of_each(name):
    """The table has each option that differs from the recipe it starts from, with the recipe's value."""
    config = importlib.import_module(f"configs.{name}").get_config()
    parent = re.search(r"As `(\w+)`, but:", SECTIONS[name])
    start = importlib.import_module(f"configs.{parent[1]}").get_config() if parent else base.get_imagenet_config()
    differing = {option for option in base.OPTIONS if config[option] != start[option]}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in SECTIONS[name].splitlines()]
    listed = {row[0]: row[1] for row in rows if row[0] in base.OPTIONS}
    assert differing <= listed.keys()
    for option, text in listed.items():
        value = config[option]
        assert float(text) == value if isinstance(value, float) else text == text_of(value), option


# The weights that the sources published, and whether the header's first accuracy is that at the test size.
WEIGHTS = {
    "resnet50_a1": ("timm/resnet50.a1_in1k", False),
    "resnet50_a3": ("timm/resnet50.a3_in1k", True),
    "resnet18_a1": ("timm/resnet18.a1_in1k", False),
    "resnet152_a1h": ("timm/resnet152.a1h_in1k", False),
    "resnet50_tv2": ("torchvision/resnet50.IMAGENET1K_V2", False),
    "mobilenet_v1_ra4": ("timm/mobilenetv1_100.ra4_e3600_r224_in1k", False),
    "densenet121_ra": ("timm/densenet121.ra_in1k", False),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_accuracies_in_the_headers_are_those_of_the_published_weights(name):
    weights, at_test_size = published_weights.find(WEIGHTS[name][0]), WEIGHTS[name][1]
    header = importlib.import_module(f"configs.{name}").__doc__
    first, second = re.search(r"Published: ([\d.]+) % top-1(?:[^;\n]*; ([\d.]+) % at \d+ pixels)?", header).groups()
    known = (weights.test_top1, None) if at_test_size else (weights.top1, weights.test_top1 if second else None)
    for found, expected in zip((first, second), known, strict=True):
        assert (found is None) == (expected is None)
        assert found is None or float(found) == pytest.approx(expected, abs=0.051 if len(found) == 4 else 1e-9)
